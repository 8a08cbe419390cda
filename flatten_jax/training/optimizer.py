"""AdamW as the release sets it up: which tensors decay, and the learning rate step by step."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import optax

Schedule = Callable[[jax.Array | int], jax.Array]


def make_schedule(
    config: ml_collections.ConfigDict, *, batch_size: int, warmup_steps: int, total_steps: int
) -> Schedule:
    """Learning rate by step: linear warm-up, then the cosine *counted from step 0*, then the minimum.

    The schedule "rsqrt" falls with one over the square root of the step from the peak, at the end of the warm-up, on.
    "poly" is mmcv's: (1 - step / total_steps) ** power from the peak to the minimum, which the warm-up multiplies by a
    ramp from warmup_learning_rate / learning_rate to 1.

    Peak, warm-up and minimum rates are given for a batch of 512 images and scale with the batch.

    Args:
        config: `learning_rate`, `warmup_learning_rate`, `min_learning_rate`, `schedule`, `power`.
        batch_size: images in an optimizer step, over all devices.
        warmup_steps: steps of the ramp; 0 for none.
        total_steps: length of the cosine; steps after it (cooldown) run at the minimum.
    """
    peak, start, floor = (
        rate * batch_size / 512
        for rate in (config.learning_rate, config.warmup_learning_rate, config.min_learning_rate)
    )

    def schedule(step: jax.Array | int) -> jax.Array:
        step = jnp.asarray(step, jnp.float32)
        ramp = start + (peak - start) * step / max(1, warmup_steps)
        cosine = floor + 0.5 * (peak - floor) * (1 + jnp.cos(jnp.pi * step / total_steps))
        if config.get("schedule") == "rsqrt":
            top = max(1, warmup_steps)
            falling = jnp.maximum(floor, peak * jnp.sqrt(top / jnp.maximum(step, top)))
            return jnp.where(step < warmup_steps, ramp, jnp.where(step < total_steps, falling, floor))
        if config.get("schedule") == "poly":
            poly = floor + (peak - floor) * jnp.maximum(0, 1 - step / total_steps) ** config.power
            return jnp.where(step < warmup_steps, poly * ramp / peak, poly)
        return jnp.where(step < warmup_steps, ramp, jnp.where(step < total_steps, cosine, floor))

    return schedule


def decay_mask(params: Any, spared: tuple[str, ...] = (), which: str = "matrices") -> Any:
    """True for parameters that weight decay applies to: two or more dimensions, and a name that is not spared.

    So `positional_encoding`, `scale` and `dwc` of the linear attention are decayed, as in the release.

    Args:
        params: a tree of arrays.
        spared: names of leaves without decay: a model's `no_weight_decay`.
        which: "matrices"; "not_norms": all but what is spared or lies in a module with "norm" in its name, as in
            mmsegmentation's recipes of Swin, so biases too, and BatchNorms, which are called `bn`; "all".
    """

    def decayed(path: tuple, leaf: Any) -> bool:
        if which == "all":
            return True
        if which == "not_norms":
            return path[-1].key not in spared and not any("norm" in part.key for part in path)
        return leaf.ndim >= 2 and path[-1].key not in ("bias", *spared)

    return jax.tree_util.tree_map_with_path(decayed, params)


def make_optimizer(
    config: ml_collections.ConfigDict, schedule: Schedule, spared: tuple[str, ...], rates: Any = None
) -> optax.GradientTransformation:
    """AdamW with decoupled decay, after a clip by the global norm where `clip_norm` is set (0: none).

    Args:
        config: `weight_decay`, `decay`, `clip_norm`, `b1`, `b2`, `eps`.
        schedule: learning rate by step.
        spared: names of parameters without weight decay.
        rates: factors of the learning rate, see `Training`.
    """
    adamw = optax.adamw(
        schedule,
        b1=config.b1,
        b2=config.b2,
        eps=config.eps,
        weight_decay=config.weight_decay,
        mask=lambda params: decay_mask(params, spared, config.get("decay", "matrices")),
    )
    steps = [optax.clip_by_global_norm(config.clip_norm)] if config.clip_norm else []
    if rates is not None:
        adamw = optax.chain(adamw, optax.stateless(lambda updates, _: jax.tree.map(jnp.multiply, updates, rates)))
    return optax.chain(*steps, adamw) if steps else adamw
