"""Whole models: images per second, memory and compile time of inference and of the training step."""

import functools
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from flatten_jax.models import abstract_variables, dummy_images
from flatten_jax.runtime import compiler_options
from flatten_jax.segmentation.create import create
from flatten_jax.segmentation.model import Segmenter
from flatten_jax.segmentation.task import Segment
from flatten_jax.training.optimizer import decay_mask
from flatten_jax.training.sharding import make_mesh, over_data, put_batch, replicated
from flatten_jax.training.step import Training, abstract_state, init_state, make_train_step
from flatten_jax.training.tasks import Classify


def inference(model: nn.Module, batch_size: int, variables: Any = None, images: Any = None) -> Callable[[], jax.Array]:
    """A call that computes, and waits for, the logits (B, classes) of normalised images (B, height, width, 3).

    Initial variables and noise if none are given. On one accelerator, or on all of a CPU's devices
    (`runtime.device_per_core`) where they divide the batch.
    """
    if variables is None:
        variables = jax.jit(model.init)(jax.random.key(0), dummy_images(model))
    if images is None:
        images = np.random.default_rng(0).normal(size=(batch_size, *model.image_size, 3)).astype(np.float32)
    devices = jax.local_devices()
    mesh = make_mesh(devices if devices[0].platform == "cpu" and batch_size % len(devices) == 0 else devices[:1])
    variables, images = jax.device_put((variables, images), (replicated(mesh), over_data(mesh)))
    compiled = jax.jit(model.apply, compiler_options=compiler_options()).lower(variables, images).compile()
    return lambda: jax.block_until_ready(compiled(variables, images))


def training(model: nn.Module, batch_size: int) -> Callable[[], None]:
    """A call that takes, and waits for, a training step of main.py on one device, without mixing and erasing."""
    setting = _setting(model)
    rng = np.random.default_rng(0)
    highest = {"image": 256, "label": model.num_classes}
    batch = {
        name: rng.integers(0, highest[name], array.shape, array.dtype)
        for name, array in setting.task.abstract_batch(batch_size, setting.mesh).items()
    }
    batch = put_batch(batch, setting.mesh)
    state = init_state(setting)
    compiled = make_train_step(setting).lower(state, batch).compile()
    held = [state]

    def run() -> None:
        held[0], metrics = compiled(held[0], batch)  # the state's memory is reused: the old one is gone
        jax.block_until_ready((held[0], metrics))

    return run


def _setting(model: nn.Module) -> Training:
    """The release's optimizer without a clip, on one device."""

    def schedule(step: Any) -> jax.Array:
        return jnp.full((), 1e-4)

    optimizer = optax.adamw(schedule, weight_decay=0.05, mask=lambda params: decay_mask(params, model.no_weight_decay))
    task = Segment(model) if isinstance(model, Segmenter) else Classify(model, label_smoothing=0.1)
    return Training(task, optimizer, schedule, make_mesh(jax.local_devices()[:1]))


KINDS = {"inference": inference, "training": training}


def make(kind: str, name: str, batch_size: int, **options: Any) -> Callable[[], Any]:
    """The call of one kind for the name of a model or segmenter and options of it."""
    return KINDS[kind](create(name, **options), batch_size)


@dataclass(frozen=True)
class Costs:
    """What a computation costs beside its time.

    Attributes:
        compile_seconds: of tracing, lowering and XLA, without JAX's compilation cache.
        bytes: arguments, results and temporaries by XLA's count.
    """

    compile_seconds: float
    bytes: int


@functools.cache
def costs(kind: str, name: str, batch_size: int, **options: Any) -> Costs:
    """What compiling says of one kind, from shapes alone: no array is made. Asked again, it does not compile again.

    Args:
        **options: of the model, such as remat=True or scan=True.
    """
    model = create(name, **options)
    if kind == "inference":
        images = jax.ShapeDtypeStruct((batch_size, *model.image_size, 3), np.float32)
        forward = jax.jit(model.apply, compiler_options=compiler_options())
        compiled, seconds = _compile(forward.lower, abstract_variables(model), images)
    else:
        setting = _setting(model)
        batch = setting.task.abstract_batch(batch_size, setting.mesh)
        compiled, seconds = _compile(make_train_step(setting).lower, abstract_state(setting), batch)
    return Costs(seconds, _bytes(compiled))


def _compile(lower: Callable[..., Any], *args: Any) -> tuple[Any, float]:
    before = jax.config.jax_enable_compilation_cache
    jax.config.update("jax_enable_compilation_cache", False)
    try:
        began = time.perf_counter()
        return lower(*args).compile(), time.perf_counter() - began
    finally:
        jax.config.update("jax_enable_compilation_cache", before)


def _bytes(compiled: Any) -> int:
    memory = compiled.memory_analysis()
    in_place = memory.output_size_in_bytes - memory.alias_size_in_bytes
    return memory.argument_size_in_bytes + in_place + memory.temp_size_in_bytes
