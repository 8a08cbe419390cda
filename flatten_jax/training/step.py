"""The state of training and the one jitted step that advances it."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import ml_collections
import optax
from jax.sharding import Mesh

from flatten_jax.models.images import dummy_images, normalize
from flatten_jax.runtime import compiler_options
from flatten_jax.training import preprocess
from flatten_jax.training.sharding import by_size, over_data, replicated


@flax.struct.dataclass
class TrainState:
    """All that a run is: with it and the configuration, every later step is determined.

    Random numbers and the position in the data are functions of (seed, step), so neither is kept here.
    """

    step: jax.Array  # () int32, optimizer steps done
    params: Any
    opt_state: Any
    ema: Any  # moving average of params, or None


def init_state(
    model: nn.Module, optimizer: optax.GradientTransformation, seed: int, ema: bool, mesh: Mesh, params: Any = None
) -> TrainState:
    """The state at step 0, made on the devices; `params` from elsewhere, or initialised from the seed."""

    def init(params: Any) -> TrainState:
        if params is None:
            params = model.init(jax.random.key(seed), dummy_images(model))["params"]
        step = jnp.zeros((), jnp.int32)
        return TrainState(step, params, optimizer.init(params), jax.tree.map(jnp.copy, params) if ema else None)

    return jax.jit(init, out_shardings=by_size(mesh, jax.eval_shape(init, params)))(params)


def abstract_state(
    model: nn.Module, optimizer: optax.GradientTransformation, seed: int, ema: bool, mesh: Mesh
) -> TrainState:
    """Shapes, dtypes and shardings of `init_state`'s result, for restoring into."""
    shapes = jax.eval_shape(lambda: init_state(model, optimizer, seed, ema, mesh))
    return jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), shapes, by_size(mesh, shapes)
    )


def make_train_step(
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    schedule: Callable[[jax.Array], jax.Array],
    config: ml_collections.ConfigDict,
    mesh: Mesh,
) -> Callable[[TrainState, dict[str, jax.Array]], tuple[TrainState, dict[str, jax.Array]]]:
    """step(state, batch) -> (state, metrics), jitted over the mesh; the old state's memory is reused.

    A batch is image uint8 (B, height, width, 3) and label int32 (B,), split over the devices. Metrics are scalars of
    this step: loss, learning_rate, grad_norm (before clipping), update_norm.

    With `train.skip_nonfinite_steps` a step where one of them is not finite changes nothing but the number of steps.
    """
    augment, accumulation = config.augment, config.train.accumulation
    may_skip = config.train.skip_nonfinite_steps > 0
    mixing = preprocess.Mixing(augment.mixup, augment.cutmix, augment.mix_prob, augment.switch_prob)

    def loss_and_grad(params: Any, images: jax.Array, targets: jax.Array, key: jax.Array) -> tuple[jax.Array, Any]:
        def loss(params: Any) -> jax.Array:
            logits = model.apply({"params": params}, images, train=True, rngs={"dropout": key})
            return optax.softmax_cross_entropy(logits, targets).mean()

        return jax.value_and_grad(loss)(params)

    def accumulated(params: Any, images: jax.Array, targets: jax.Array, key: jax.Array) -> tuple[jax.Array, Any]:
        """Mean of loss and gradient over `accumulation` parts, one after the other; every part is on all devices."""

        def part(carry: Any, inputs: Any) -> tuple[Any, None]:
            return jax.tree.map(lambda total, x: total + x / accumulation, carry, loss_and_grad(params, *inputs)), None

        parts = [x.reshape(-1, accumulation, *x.shape[1:]).swapaxes(0, 1) for x in (images, targets)]
        zeros = jnp.zeros(()), jax.tree.map(jnp.zeros_like, params)
        return jax.lax.scan(part, zeros, (*parts, jax.random.split(key, accumulation)))[0]

    def step(state: TrainState, batch: dict[str, jax.Array]) -> tuple[TrainState, dict[str, jax.Array]]:
        key = jax.random.fold_in(jax.random.key(config.seed), state.step)
        erase_key, mix_key, model_key = jax.random.split(key, 3)
        images = normalize(batch["image"])
        targets = preprocess.soft_targets(batch["label"], model.num_classes, augment.label_smoothing)
        if augment.erase_prob:
            images = preprocess.random_erase(erase_key, images, augment.erase_prob)
        if augment.mixup or augment.cutmix:
            images, targets = preprocess.mix(mix_key, images, targets, mixing)

        compute = loss_and_grad if accumulation == 1 else accumulated
        loss, grads = compute(state.params, images, targets, model_key)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        ema = state.ema
        if ema is not None:
            ema = optax.incremental_update(params, ema, 1 - config.train.ema_decay)
        metrics = {
            "loss": loss,
            "learning_rate": schedule(state.step),
            "grad_norm": optax.global_norm(grads),
            "update_norm": optax.global_norm(updates),
        }
        new = TrainState(state.step + 1, params, opt_state, ema)
        if may_skip:
            finite = jnp.isfinite(jnp.stack([loss, metrics["grad_norm"], metrics["update_norm"]])).all()
            unchanged = state.replace(step=state.step + 1)
            new = jax.tree.map(lambda ours, old: jnp.where(finite, ours, old), new, unchanged)
        return new, metrics

    layout = by_size(mesh, abstract_state(model, optimizer, config.seed, config.train.ema_decay > 0, mesh))
    return jax.jit(
        step,
        donate_argnums=0,
        in_shardings=(layout, over_data(mesh)),
        out_shardings=(layout, replicated(mesh)),
        compiler_options=compiler_options(mesh.devices.flat[0].platform),
    )
