"""SOFT (Lu et al., NeurIPS 2021, arXiv 2110.11945) and SOFT++ (IJCV 2024): a Gaussian kernel, not softmax."""

from collections.abc import Mapping
from functools import partial
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from flatten_jax.attention.contract import Attention, Origin, Site, add_on_grid, heads, on_grid
from flatten_jax.attention.core import Kernel, wide
from flatten_jax.ops.convolution import strided_conv
from flatten_jax.ops.depthwise import depthwise_conv
from flatten_jax.ops.gelu import gelu
from flatten_jax.ops.norm import LayerNorm

# What is inverted loses more digits than half precision has, and so would the differences of squares.
_product = partial(jnp.matmul, precision="highest")


def gaussian(q: jax.Array, k: jax.Array) -> jax.Array:
    """exp(-|q_i - k_j|^2 / 2) per head: (B, N, h, d), (B, M, h, d) -> (B, h, N, M), in float32 at least."""
    q, k = wide(q), wide(k)
    products = jnp.einsum("bnhd,bmhd->bhnm", q, k, precision="highest")
    of_q, of_k = ((x * x).sum(axis=-1).swapaxes(1, 2) for x in (q, k))
    return jnp.exp(-jnp.maximum((of_q[..., None] + of_k[:, :, None]) / 2 - products, 0))


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def newton_solve(a: jax.Array, b: jax.Array, steps: int = 20) -> jax.Array:
    """X b with X about A^-1, A = a + I / 100, by X <- 2 X - X A X from 1.8 A / (largest row sum of a)^2.

    The steps are the definition: they cut off small eigenvalues, for which they do not converge. The derivative is
    that of an inverse, dX -> -X^T dX X^T with the last X, as in the original.

    Args:
        a: (..., m, m), of non-negative entries.
        b: (..., m, e).
        steps: how many.

    Returns:
        (..., m, e).
    """
    return _forward(a, b, steps)[0]


def _forward(a: jax.Array, b: jax.Array, steps: int) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    start = 1.8 / a.sum(axis=-1).max(axis=-1)[..., None, None] ** 2
    a = a + 0.01 * jnp.eye(a.shape[-1], dtype=a.dtype)
    x = _newton(start * a, a, steps - 1)
    out = _last_step(x, a, b)
    return out, (x, a, out)


def _backward(steps: int, saved: tuple[jax.Array, ...], gradient: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, a, out = saved
    of_b = _last_step(x.mT, a.mT, gradient)
    # -X^T (gradient b^T) X^T. In this order no digits are lost between two factors of the size of the inverse.
    return -_product(of_b, out.mT), of_b


newton_solve.defvjp(_forward, _backward)


def normed_newton_solve(a: jax.Array, b: jax.Array, steps: int = 20, per_example: bool = False) -> jax.Array:
    """D X D b with D = (row sums of a)^-1/2 and X about a^-1, by X <- 2 X - X a X from t a: SOFT++.

    t is 2 / (largest row sum)^2, halved up to 10 times until no column sum of |I - t a a| exceeds 1.01. All of it is
    differentiated.

    Args:
        a: (B, h, m, m), of non-negative entries.
        b: (B, h, m, e).
        steps: how many.
        per_example: whether each example has its own t, and not the whole batch one as in the original.

    Returns:
        (B, h, m, e).
    """
    rows, over = a.sum(axis=-1, keepdims=True), (1, 2, 3) if per_example else (0, 1, 2, 3)
    start = 2 / rows.max(axis=over, keepdims=True) ** 2
    eye, squared = jnp.eye(a.shape[-1], dtype=a.dtype), jax.lax.stop_gradient(start * _product(a, a))

    def halve(_: int, share: jax.Array) -> jax.Array:
        worst = jnp.abs(eye - share * squared).sum(axis=-2, keepdims=True).max(axis=over, keepdims=True)
        return jnp.where(worst > 1.01, share / 2, share)

    share = jax.lax.fori_loop(0, 10, halve, jnp.ones(start.shape, a.dtype))
    x = _newton(share * start * a, a, steps - 1)
    return rows**-0.5 * _last_step(x, a, rows**-0.5 * b)


def _newton(x: jax.Array, a: jax.Array, steps: int) -> jax.Array:
    """x after some steps 2 x - x a x."""
    return jax.lax.fori_loop(0, steps, lambda _, x: 2 * x - _product(_product(x, a), x), x)


def _last_step(x: jax.Array, a: jax.Array, b: jax.Array) -> jax.Array:
    """(2 x - x a x) b. On b instead of x the step costs less, and it corrects what was rounded in those before."""
    y = _product(x, b)
    return y + _product(x, b - _product(a, y))


class SOFT(Attention):
    """K X (K^T v) + conv(v): K is the `gaussian` of queries and landmarks, X the inverse of that of the landmarks.

    The queries are the keys too. X is what `newton_solve` computes. Landmarks are made of patches of the queries' grid
    by a strided convolution within heads (`Qlandmark_op`), a LayerNorm (`Qnorm_act_0`) and a GELU, with the same
    weights for all heads; rows and columns that fill no patch are left out. `conv` has one kernel for a head, applied
    to each of its channels. All but it is in float32. Beyond the code, which cannot run it, `ratio` may be 1.

    Attributes:
        ratio: side of the patches of tokens that a landmark is made of.
        conv_size: side of the kernels of `conv`, odd; 0: none.
        newton_steps: of the inverse.
    """

    origin: ClassVar[Origin] = Origin(
        paper="Lu et al., NeurIPS 2021",
        arxiv="2110.11945",
        code="fudan-zvg/SOFT@d3febc3",
        licence="MIT",
        formula="K(q, l) K(l, l)^-1 K(l, q) v + conv(v), K(a, b) = exp(-|a - b|^2 / 2), l = gelu(norm(patches of q))",
    )
    streams: ClassVar[str] = "qv"
    linear_cost: ClassVar[bool] = False  # landmarks grow with the tokens
    takes_prefix: ClassVar[bool] = False
    takes_reduced: ClassVar[bool] = False
    original: ClassVar[Mapping[str, str]] = {
        "q": "W_q",
        "v": "W_v",
        "proj": "ff",
        "Qlandmark_op": "attn.Qlandmark_op",
        "Qnorm_act_0": "attn.Qnorm_act.0",
        "conv": "attn.conv",
    }

    ratio: int = 2
    conv_size: int = 3
    newton_steps: int = 20

    @nn.compact
    def __call__(self, x: jax.Array, site: Site, q: jax.Array, v: jax.Array) -> jax.Array:
        if not 1 <= self.ratio <= min(site.grid):
            raise ValueError(f"ratio={self.ratio} must be 1 to {min(site.grid)}, the shorter side of grid={site.grid}")
        if self.newton_steps < 1:
            raise ValueError(f"newton_steps={self.newton_steps} must be at least 1, the originals take 20")
        q = heads(wide(q) * (q.shape[2] // self.num_heads) ** -0.25, self.num_heads)
        landmarks = self.landmarks(q, site)
        near, among = gaussian(q, landmarks), gaussian(landmarks, landmarks)
        gathered = jnp.einsum("bhnm,bnhe->bhme", near, wide(heads(v, self.num_heads)))
        out = jnp.einsum("bhnm,bhme->bnhe", near, self.solve(among, gathered)).reshape(v.shape).astype(v.dtype)
        if not self.conv_size:
            return out
        kernel = Kernel((self.conv_size, self.conv_size, 1, self.num_heads), self.conv_init, name="conv")()
        kernel = jnp.repeat(kernel[:, :, 0], v.shape[2] // self.num_heads, axis=2)
        return add_on_grid(out, depthwise_conv(on_grid(v, site), kernel), site)

    def landmarks(self, q: jax.Array, site: Site) -> jax.Array:
        """(B, N, h, d) -> (B, m, h, d)."""
        batch, _, h, d = q.shape
        maps = q.swapaxes(1, 2).reshape(batch * h, *site.grid, d)
        kernel = Kernel((self.ratio, self.ratio, d, d), self.conv_init, name="Qlandmark_op")()
        maps = strided_conv(maps, kernel.astype(q.dtype), jnp.zeros(d, q.dtype), self.ratio)
        landmarks = gelu(LayerNorm(epsilon=1e-5, name="Qnorm_act_0")(maps))
        return landmarks.reshape(batch, h, -1, d).swapaxes(1, 2)

    def solve(self, a: jax.Array, b: jax.Array) -> jax.Array:
        """The inverse of the landmarks' kernel (B, h, m, m) times b (B, h, m, e)."""
        return newton_solve(a, b, self.newton_steps)


class SOFTPlusPlus(SOFT):
    """SOFT with `normed_newton_solve`: the kernel of the landmarks is normalised by its row sums, and not regularised.

    As in the original, where the steps start depends on the whole batch, and so does what an example gets.

    Attributes:
        per_example: whether the steps start for each example by itself (not in the original).
    """

    origin: ClassVar[Origin] = SOFT.origin._replace(
        paper="Lu et al., IJCV 2024",
        arxiv="2207.03341",
        formula="K(q, l) D K(l, l)^-1 D K(l, q) v + conv(v), D = (row sums of K(l, l))^-1/2, K and l of SOFT",
    )

    independent: ClassVar[bool] = False

    per_example: bool = False

    def solve(self, a: jax.Array, b: jax.Array) -> jax.Array:
        """That of the landmarks' normalised kernel."""
        return normed_newton_solve(a, b, self.newton_steps, self.per_example)
