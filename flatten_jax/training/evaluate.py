"""Evaluation: every image exactly once, padding masked, and the count asserted."""

from collections.abc import Callable, Iterable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from flatten_jax.models.images import normalize
from flatten_jax.runtime import compiler_options
from flatten_jax.training.sharding import over_data, replicated, to_host

Sums = dict[str, jax.Array]


def make_eval_step(model: nn.Module, mesh: Mesh) -> Callable[[Sums, Any, dict[str, jax.Array]], Sums]:
    """step(sums, params, batch) -> sums with the batch added: of the loss, of top-1 and top-5 hits, and of images.

    A batch is image uint8 (B, height, width, 3), label int32 (B,), mask bool (B,), split over the devices.
    """

    def step(sums: Sums, params: Any, batch: dict[str, jax.Array]) -> Sums:
        logits, label = model.apply({"params": params}, normalize(batch["image"])), batch["label"]
        # Among equal logits, or NaN, the label counts as the last: a broken network is not right about anything.
        own = jnp.take_along_axis(logits, label[:, None], axis=1)
        rank = (~(logits < own)).sum(axis=1) - 1
        values = {
            "loss": optax.softmax_cross_entropy_with_integer_labels(logits, label),
            "acc1": (rank < 1).astype(jnp.float32),
            "acc5": (rank < 5).astype(jnp.float32),
            "count": jnp.ones(label.shape, jnp.float32),
        }
        return {name: sums[name] + jnp.where(batch["mask"], v, 0).sum() for name, v in values.items()}

    everywhere = replicated(mesh)
    shardings = (everywhere, None, over_data(mesh))  # parameters stay as they lie
    options = compiler_options(mesh.devices.flat[0].platform)
    return jax.jit(step, donate_argnums=0, in_shardings=shardings, out_shardings=everywhere, compiler_options=options)


def zero_sums() -> Sums:
    """Where the sums of an evaluation start."""
    return {name: np.zeros((), np.float32) for name in ("loss", "acc1", "acc5", "count")}


def evaluate(
    eval_step: Callable, params: Any, batches: Iterable[dict[str, jax.Array]], expected_count: int
) -> dict[str, float]:
    """Means over the whole set: loss, acc1 and acc5 in percent, and count.

    Raises:
        RuntimeError: where not exactly `expected_count` images were seen; an accuracy over another set is wrong.
    """
    sums: Sums = zero_sums()
    for batch in batches:
        sums = eval_step(sums, params, batch)
    totals = {name: float(value) for name, value in to_host(sums).items()}
    count = round(totals["count"])
    if count != expected_count:
        raise RuntimeError(f"evaluation saw {count} images, the set has {expected_count}: the result would be wrong")
    percent = {"loss": 1.0, "acc1": 100.0, "acc5": 100.0}
    return {name: factor * totals[name] / count for name, factor in percent.items()} | {"count": count}
