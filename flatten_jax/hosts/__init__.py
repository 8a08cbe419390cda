"""Where an attention stands: which tokens see each other, and the layers that project around it, family by family."""

from flatten_jax.hosts.drop_in import FocusedLinearAttention, LinearAttention
from flatten_jax.hosts.plain import QKVAttention, SplitAttention
from flatten_jax.hosts.reduced import ReducedAttention
from flatten_jax.hosts.stripes import StripeAttention
from flatten_jax.hosts.windows import WindowAttention

__all__ = [
    "FocusedLinearAttention",
    "LinearAttention",
    "QKVAttention",
    "ReducedAttention",
    "SplitAttention",
    "StripeAttention",
    "WindowAttention",
]
