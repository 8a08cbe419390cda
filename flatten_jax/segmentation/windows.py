"""Logits of windows, laid over each other and resized to the picture's own size, without either being made whole.

mmsegmentation resizes the logits of each window to the window, adds them up at the resized picture's size, divides by
how many windows a pixel is in, and resizes the result to the original size, each time bilinear with half-pixel centres.
All of it is linear and acts on rows and columns separately: a sum over windows of rows @ logits @ columns. A picture
taken whole is one window.
"""

import jax
import jax.numpy as jnp

from flatten_jax.segmentation.metrics import confusion_of

ROWS = 16  # of the original size that are predicted at a time, because logits of a whole picture are large


def axis_weights(
    places: jax.Array,
    original: jax.Array,
    resized: jax.Array,
    starts: jax.Array,
    valid: jax.Array,
    window: int,
    cells: int,
) -> jax.Array:
    """How much each row (or column) of each window's logits counts in those at the original size.

    Over both axes the sum of weights is one over the number of windows, whatever pixel: only the argmax is of use.

    Args:
        places: (n,) rows at the original size; those beyond it get the last one's.
        original, resized: () lengths of the picture.
        starts: (windows,) of the windows in the resized picture; only those that are `valid` are there.
        window: its length.
        cells: of the logits along it.

    Returns:
        (windows, n, cells).
    """
    at = jnp.clip((places + 0.5) * (resized / original) - 0.5, 0, resized - 1)
    low = jnp.floor(at)
    total = 0.0
    for tap, share in ((low, 1 - (at - low)), (jnp.minimum(low + 1, resized - 1), at - low)):
        offset = tap - starts[:, None]
        inside = (offset >= 0) & (offset < window) & valid[:, None]
        share = jnp.where(inside, share / jnp.maximum(inside.sum(0), 1), 0)
        cell = jnp.clip((offset + 0.5) * (cells / window) - 0.5, 0, cells - 1)
        near = jnp.maximum(0, 1 - jnp.abs(cell[..., None] - jnp.arange(cells)))
        total += share[..., None] * near
    return total


def predicted_rows(logits: jax.Array, down: jax.Array, across: jax.Array, used: jax.Array) -> jax.Array:
    """Class ids (B, rows, columns) of some rows of the original size.

    Args:
        logits: (B, windows, cells down, cells across, classes).
        down: (B, windows, rows, cells down), see `axis_weights`.
        across: (B, windows, columns, cells across).
        used: () how many of the windows have to be looked at.
    """

    def add(i: jax.Array, total: jax.Array) -> jax.Array:
        here = (jax.lax.dynamic_index_in_dim(x, i, 1, keepdims=False) for x in (down, logits, across))
        # Not in bfloat16 or TF32: what is compared are sums that differ little.
        return total + jnp.einsum("brh,bhwc,bpw->brpc", *here, precision="highest")

    shape = (logits.shape[0], down.shape[2], across.shape[2], logits.shape[-1])
    return jax.lax.fori_loop(0, used, add, jnp.zeros(shape)).argmax(-1)


def confusion_of_windows(logits: jax.Array, batch: dict[str, jax.Array], window: tuple[int, int]) -> jax.Array:
    """int32 (classes, classes): pixels of each (label, prediction) at the original sizes.

    Args:
        logits: (B, windows, cells down, cells across, classes), float32.
        batch: label uint8 (B, height, width), IGNORED beyond the original size, the height a multiple of ROWS; original
            int32 (B, 2) and resized int32 (B, 2), (height, width); places int32 (B, windows, 2), (top, left); windows
            int32 (B,), how many of them there are.
        window: (height, width).
    """
    label, used = batch["label"], batch["windows"].max()
    valid = jnp.arange(logits.shape[1]) < batch["windows"][:, None]

    def weights(places: jax.Array, axis: int) -> jax.Array:
        of_one = lambda *given: axis_weights(places, *given, window[axis], logits.shape[2 + axis])  # noqa: E731
        lengths = batch["original"][:, axis], batch["resized"][:, axis]
        return jax.vmap(of_one)(*lengths, batch["places"][..., axis], valid)

    across = weights(jnp.arange(label.shape[2]), 1)

    def add(i: jax.Array, counts: jax.Array) -> jax.Array:
        down = weights(i * ROWS + jnp.arange(ROWS), 0)
        here = jax.lax.dynamic_slice_in_dim(label, i * ROWS, ROWS, axis=1)
        return counts + confusion_of(here, predicted_rows(logits, down, across, used), logits.shape[-1])

    chunks = -(-batch["original"][:, 0].max() // ROWS)
    return jax.lax.fori_loop(0, chunks, add, jnp.zeros((logits.shape[-1],) * 2, jnp.int32))
