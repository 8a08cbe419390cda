"""HorNet: ConvNeXt's pyramid around gated convolutions of an order that grows from stage to stage."""

from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from flatten_jax.attention import Site
from flatten_jax.models.blocks import dropped_path, scaled
from flatten_jax.models.convnext import ConvNeXt, pointwise
from flatten_jax.models.published import Published
from flatten_jax.models.staged import Staged
from flatten_jax.ops.cpu import gradient_apart
from flatten_jax.ops.initializers import NORMAL, ConvInit
from flatten_jax.ops.norm import LayerNorm


class HorNet(ConvNeXt):
    """HorNet (Rao et al., NeurIPS 2022, arXiv 2207.14284), with stem, steps and head of ConvNeXt.

    Any image_size of 32 pixels or more; the filters of HorNet-GF are made for 14 x 14 and 7 x 7 (at 384 px 24 x 24 and
    12 x 12) and resized. The original computes Fourier transforms in float32; here all of `gnconv` but its last layer
    is in float32.

    Attributes: those of `ConvNeXt`, and
        attn_type: an attention for each stage; `gnconv` in the names of parameters is the place of each.
        num_heads: of attentions that have heads, one entry per stage.
    """

    hallmark: ClassVar[str] = "stages.0.0.gnconv.proj_in.weight"
    conv_init: ClassVar[ConvInit] = NORMAL

    attn_type: str = "gnconv"
    embed_dims: tuple[int, ...] = (64, 128, 256, 512)
    depths: tuple[int, ...] = (2, 3, 18, 2)
    num_heads: tuple[int, ...] = (2, 4, 8, 16)

    attentions = Staged.attentions

    @nn.nowrap
    def blocks(self, x: jax.Array, i: int, train: bool) -> jax.Array:
        site = Site(x.shape[1:3], train=train)
        return self.stage(x, site, i, f"stages_{i}_", block=HorNetBlock, layer_scale=self.layer_scale)[-1]


class HorNetBlock(nn.Module):
    """x + gamma1 * gnconv(norm1(x)), then x + gamma2 * pwconv2(gelu(pwconv1(norm2(x)))), each with drop-path.

    Attributes:
        attention: makes the attention's host, which is called with (x, site).
        layer_scale: initial gamma1 and gamma2.
        epsilon: of the LayerNorms.
    """

    attention: Callable[..., nn.Module]
    layer_scale: float
    epsilon: float
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x: jax.Array, site: Site, rate: float | jax.Array = 0.0) -> tuple[jax.Array, jax.Array]:
        """x: (B, N, C), rate: of `drop_path` -> (x, what its attention gave), both (B, N, C)."""
        norm = partial(LayerNorm, self.epsilon, self.dtype)
        dropped = partial(dropped_path, self, rate=rate, train=site.train)
        x = gradient_apart(x)
        attended = self.attention(name="gnconv")(norm(name="norm1")(x), site)
        x = x + dropped(scaled(self, "gamma1", attended, self.layer_scale))
        y = pointwise(norm(name="norm2")(x), self.dtype)
        return x + dropped(scaled(self, "gamma2", y, self.layer_scale)), attended


def _gated(global_filter: bool = False, sides: tuple[int, int] = (14, 7)) -> dict[str, Any]:
    """Options of the gated convolutions: the later two stages of HorNet-GF have filters of these sides."""
    options: dict[str, Any] = dict(order=(2, 3, 4, 5), gnconv_scale=1 / 3)
    if global_filter:
        options |= dict(global_filter=(False, False, True, True), gf_size=(0, 0, *sides))
    return dict(attn_options=nn.FrozenDict(options))


_SIZES = {
    size: dict(embed_dims=tuple(width * 2**i for i in range(4)), num_heads=tuple(width // 32 * 2**i for i in range(4)))
    for size, width in {"t": 64, "s": 96, "b": 128, "l": 192}.items()
}
FAMILY = HorNet
MODELS = {
    **{f"hornet_{size}": dict(own, **_gated()) for size, own in _SIZES.items()},
    **{f"hornet_{size}_gf": dict(own, **_gated(True)) for size, own in _SIZES.items()},
    **{
        f"hornet_{size}_gf_384": dict(_SIZES[size], **_gated(True, (24, 12)), image_size=(384, 384))
        for size in ("b", "l")
    },
}
ALIASES = {
    **{f"hornet_{size}_7x7": f"hornet_{size[0]}" for size in ("tiny", "small", "base", "large")},
    **{f"hornet_{size}_gf": f"hornet_{size[0]}_gf" for size in ("tiny", "small", "base", "large")},
    **{f"hornet_{size}_gf_img384": f"hornet_{size[0]}_gf_384" for size in ("base", "large")},
}
PUBLISHED = {
    "hornet_t": Published(82.8),
    "hornet_t_gf": Published(83.0),
    "hornet_s": Published(83.8),
    "hornet_s_gf": Published(84.0),
    "hornet_b": Published(84.2),
    "hornet_b_gf": Published(84.3),
}
