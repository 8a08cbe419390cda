"""What the goldens of Agent attention, all of square grids, do not tell."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flatten_jax import LinearAttention


def test_rows_and_columns_of_a_rectangular_grid_are_told_apart():
    """Transposing the picture and all that belongs to rows and columns transposes the answer."""
    x = jax.random.normal(jax.random.key(0), (1, 3, 5, 8))
    layer = LinearAttention("agent", 2, agent_num=4)
    params = layer.init(jax.random.key(1), x)["params"]
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda p: jnp.float32(rng.standard_normal(p.shape)), params)
    order = np.array([0, 2, 1, 3])  # of agents, row by row
    turned = {
        **params,
        "an_bias": params["an_bias"][:, order].swapaxes(2, 3),
        "na_bias": params["na_bias"][:, order].swapaxes(2, 3),
        "ah_bias": params["aw_bias"][:, :, order].swapaxes(3, 4),
        "aw_bias": params["ah_bias"][:, :, order].swapaxes(3, 4),
        "ha_bias": params["wa_bias"][..., order].swapaxes(2, 3),
        "wa_bias": params["ha_bias"][..., order].swapaxes(2, 3),
        "dwc": {**params["dwc"], "kernel": params["dwc"]["kernel"].swapaxes(0, 1)},
    }
    upright, lying = (layer.apply({"params": p}, a) for p, a in ((params, x), (turned, x.swapaxes(1, 2))))
    np.testing.assert_allclose(lying.swapaxes(1, 2), upright, atol=1e-4)


@pytest.mark.parametrize("agent_num", [0, 8])
def test_a_number_of_agents_that_is_no_square_is_refused(agent_num):
    with pytest.raises(ValueError, match=f"agent_num={agent_num} must be a square"):
        layer = LinearAttention("agent", 2, agent_num=agent_num)
        jax.eval_shape(lambda: layer.init(jax.random.key(0), jnp.zeros((1, 4, 4, 8))))
