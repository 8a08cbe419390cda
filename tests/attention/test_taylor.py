"""Taylor attention against the attention that it is a part of."""

import jax
import numpy as np

import flatten_jax


def test_it_is_inline_without_its_convolution():
    x = np.random.RandomState(0).standard_normal((2, 13, 8)).astype(np.float32)
    told = dict(grid=(3, 4), prefix=1)
    inline, taylor = (flatten_jax.LinearAttention(name, 2) for name in ("inline", "taylor"))
    variables = inline.init(jax.random.key(0), x, **told)
    params = {**variables["params"], "residual_2": jax.tree.map(np.zeros_like, variables["params"]["residual_2"])}
    own = {name: params[name] for name in ("qkv", "proj")}
    expected = inline.apply({"params": params}, x, **told)
    np.testing.assert_allclose(taylor.apply({"params": own}, x, **told), expected, rtol=1e-5, atol=1e-7)
