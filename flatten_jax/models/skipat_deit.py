"""SkipAt-DeiT: DeiT of which the blocks in the middle use again what the attention before them gave."""

import re
from functools import partial
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from flatten_jax.attention.contract import Site
from flatten_jax.hosts import QKVAttention
from flatten_jax.models.deit import DeiT
from flatten_jax.models.published import Published
from flatten_jax.ops.dense import Dense

SKIPPING = "skipat"


class SkipAtDeiT(DeiT):
    """DeiT with `skipat` in blocks 3 to 8 (Venkataramanan et al., ICLR 2024, arXiv 2301.02240), and a class token.

    The original keeps the attention's layers in the blocks that skip it and never applies them; so do the models here,
    with `unused_attention`, which is for its weights. What replaces it, `param_1` to `param_6` there, lies in the
    blocks here. Its training code is not public. All layers start from DeiT's initial values here; in the original's
    class those of the blocks start from PyTorch's.

    Other attentions can be skipped as well: attn_type="rala*3+skipat*6+rala", with class_token=False if need be.

    Attributes: those of `DeiT`, and
        unused_attention: have `qkv` and `proj` in the blocks that skip.
    """

    hallmark: ClassVar[str] = "param_1.linear1.0.weight"

    attn_type: str = "softmax*3+skipat*6+softmax"
    class_token: bool = True
    unused_attention: bool = True

    def host(self, i: int, j: int, attention: str, options: dict[str, Any]) -> partial[nn.Module]:
        made = super().host(i, j, attention, options)
        return partial(_WithUnused, *made.args, **made.keywords) if self._keeps(attention) else made

    def _keeps(self, attention: str) -> bool:
        return self.unused_attention and attention == SKIPPING

    def original(self, name: str) -> str:
        found = re.fullmatch(r"blocks\.(\d+)\.attn\.((linear1|dwconv|linear2|eca)\..*)", name)
        if not found:
            return name
        (names,) = self.attentions()
        skipping = [j for j, attention in enumerate(names) if attention == SKIPPING]
        j = int(found[1])
        return f"param_{1 + skipping.index(j)}.{found[2]}" if j in skipping else name


class _WithUnused(QKVAttention):
    """A host with the layers of an attention that it does not apply."""

    @nn.compact
    def __call__(self, x: jax.Array, site: Site) -> jax.Array:
        out, none = super().__call__(x, site), jnp.zeros((0, x.shape[-1]), x.dtype)
        for width, name in ((3, "qkv"), (1, "proj")):
            Dense(width * x.shape[-1], dtype=self.dtype, name=name)(none)
        return out


FAMILY = SkipAtDeiT
MODELS = {
    "skipat_deit_t": dict(embed_dim=192, num_heads=3),
    "skipat_deit_s": dict(embed_dim=384, num_heads=6),
    "skipat_deit_b": dict(embed_dim=768, num_heads=12),
}
ALIASES: dict[str, str] = {}
PUBLISHED = {"skipat_deit_t": Published(73.3), "skipat_deit_s": Published(80.0)}
