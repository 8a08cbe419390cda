"""Maps of one stride brought to the strides 4, 8, 16 and 32, as dense prediction with BEiT and XCiT does it."""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from flatten_jax.ops.batch_norm import BatchNorm
from flatten_jax.ops.dense import affine, promote
from flatten_jax.ops.gelu import gelu
from flatten_jax.ops.initializers import TORCH_CONV


def feature_pyramid(maps: Sequence[jax.Array], stride: int, train: bool, dtype: jnp.dtype | None) -> list[jax.Array]:
    """Four maps (B, height, width, C) of one stride, 16 or 8, as layers `fpn1` and `fpn2` of the calling module.

    The first is doubled by `fpn1`: once for stride 8; twice for 16, with a BatchNorm and a GELU between. The second is
    doubled by `fpn2` for stride 16. The others are kept, or the largest of 2 x 2 and 4 x 4 values taken; rows and
    columns left over are not looked at.
    """
    first, second, third, fourth = maps
    features = first.shape[3]
    first = Upsample(features, dtype, name="fpn1_0")(first)
    if stride == 8:
        return [first, second, _largest(third, 2), _largest(fourth, 4)]
    first = gelu(BatchNorm(dtype=dtype, name="fpn1_1")(first, train))
    first = Upsample(features, dtype, name="fpn1_3")(first)
    return [first, Upsample(features, dtype, name="fpn2_0")(second), third, _largest(fourth, 2)]


class Upsample(nn.Module):
    """A value becomes 2 x 2: torch.nn.ConvTranspose2d(I, features, 2, stride=2).

    The kernel is (2, 2, features, I), that of the convolution of which this is the transpose.
    """

    features: int
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x: (B, height, width, I) -> (B, 2 height, 2 width, features)."""
        batch, height, width, channels = x.shape
        kernel = self.param("kernel", TORCH_CONV.kernel, (2, 2, self.features, channels))
        bias = self.param("bias", TORCH_CONV.bias(4 * self.features), (self.features,))
        matrix = kernel.reshape(-1, channels).T
        x = affine(*promote(x, matrix, jnp.tile(bias, 4), self.dtype))
        x = x.reshape(batch, height, width, 2, 2, self.features).swapaxes(2, 3)
        return x.reshape(batch, 2 * height, 2 * width, self.features)


def _largest(x: jax.Array, side: int) -> jax.Array:
    if min(x.shape[1:3]) < side:
        raise ValueError(
            f"a map of {x.shape[1:3]} has no {side} x {side} values: give pyramid=True a larger image_size"
        )
    return nn.max_pool(x, (side, side), (side, side))
