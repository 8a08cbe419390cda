"""Performer's projection: how it is drawn, and that it is state."""

import jax
import numpy as np
import pytest

import flatten_jax
from flatten_jax.attention.performer import orthogonal_rows


@pytest.mark.parametrize("ortho_scaling", [0, 1])
def test_rows_are_orthogonal_in_blocks_of_the_head_width(ortho_scaling):
    rows = np.asarray(orthogonal_rows(jax.random.key(0), (10, 4), ortho_scaling))
    lengths = np.linalg.norm(rows, axis=1)
    for block in np.split(rows / lengths[:, None], [4, 8]):
        np.testing.assert_allclose(block @ block.T, np.eye(len(block)), atol=1e-5)
    assert np.allclose(lengths, 2, rtol=1e-5) == bool(ortho_scaling)


def test_the_projection_is_a_constant_and_no_parameter():
    layer = flatten_jax.LinearAttention("performer", 2, {"nb_features": 5})
    shapes = jax.eval_shape(lambda: layer.init(jax.random.key(0), np.ones((1, 4, 8), np.float32), grid=(2, 2)))
    assert shapes["constants"]["projection_matrix"].shape == (5, 4)
    assert set(shapes["params"]) == {"qkv", "proj"}
