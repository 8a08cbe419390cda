"""The TPU kernel of softmax attention in windows, interpreted here, against the plain form; where it is. No chip."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flatten_jax.attention import Site, softmax, window_kernel
from flatten_jax.hosts import WindowAttention
from flatten_jax.ops.platform import tpu_kernels
from flatten_jax.training.sharding import make_mesh, over_data

from .kernels import assert_as_near_as_the_plain_form, assert_on_tpus_alone, interpret, with_gradients

WINDOWS, HEADS, WIDTH = 32, 8, 32


@pytest.fixture
def interpreted(monkeypatch):
    """Two windows a turn."""
    interpret(monkeypatch, window_kernel, _TOGETHER=2)
    yield
    softmax._by_kernel.clear_cache()  # it knows nothing of the above


def arrays(dtype, tokens=49, kinds=2):
    shape = (WINDOWS, tokens, HEADS, WIDTH)
    q, k, v, weights = (jax.random.normal(jax.random.key(i), shape, dtype) for i in range(4))
    bias = 2 * jax.random.normal(jax.random.key(9), (kinds, HEADS, tokens, tokens))
    return (q, k, v) + ((bias,) if kinds else ()), weights


@pytest.mark.parametrize(("tokens", "kinds"), [(49, 2), (33, 1), (64, 0)])
def test_result_and_gradients_are_those_of_the_plain_form_on_eight_devices(interpreted, monkeypatch, tokens, kinds):
    """Of the bias too, which differs from window to window of an image, is the same in all, or is not there."""
    monkeypatch.setattr(window_kernel, "takes", lambda *_: True)  # float32 too, to see more than rounding
    mesh = make_mesh()
    args, weights = arrays(jnp.float32, tokens, kinds)
    split = tuple(jax.device_put(x, over_data(mesh)) for x in args[:3])
    with tpu_kernels(mesh):
        found = with_gradients(jax.jit(softmax.softmax_attention), (*split, *args[3:]), weights)
    plain = with_gradients(softmax._plain, args, weights)
    assert len(found) == len(plain) == 4 + (kinds > 0)
    for ours, wanted in zip(found, plain, strict=True):
        np.testing.assert_allclose(ours, wanted, rtol=0, atol=1e-6 * float(jnp.abs(wanted).max()))


def test_in_bfloat16_it_is_as_near_to_float32_as_the_plain_form(interpreted):
    args, weights = arrays(jnp.bfloat16)
    exact = with_gradients(softmax._plain, [x.astype(jnp.float32) for x in args], weights.astype(jnp.float32))
    plain = with_gradients(softmax._plain, args, weights)
    with tpu_kernels(make_mesh()):
        kernel = with_gradients(softmax.softmax_attention, args, weights)
    assert_as_near_as_the_plain_form(kernel, plain, exact, rounded=4)  # the bias's gradient is in float32


TAKEN = dict(tokens=49, heads=12, width=32, windows=512, kinds=4, dtype=jnp.bfloat16)


@pytest.mark.parametrize(
    ("changed", "taken"),
    [
        ({}, True),
        ({"kinds": 0}, True),
        ({"kinds": 1, "windows": 128, "heads": 24}, True),
        ({"width": 64}, True),
        ({"tokens": 65}, False),
        ({"tokens": 32}, False),
        ({"heads": 3}, False),
        ({"width": 24}, False),
        ({"dtype": jnp.float32}, False),
        ({"windows": 8}, False),
        ({"kinds": 16}, True),
        ({"kinds": 64}, False),
    ],
)
def test_takes(changed, taken):
    case = TAKEN | changed
    shape = case["windows"], case["tokens"], case["heads"], case["width"]
    q = jax.ShapeDtypeStruct(shape, case["dtype"])
    bias = jax.ShapeDtypeStruct((case["kinds"], shape[2], shape[1], shape[1]), jnp.float32) if case["kinds"] else None
    mesh = SimpleNamespace(size=4)
    assert window_kernel.takes(q, q, q, bias, mesh) == taken
    of_keys = jax.ShapeDtypeStruct((shape[0], 36, *shape[2:]), case["dtype"])
    assert not window_kernel.takes(q, of_keys, of_keys, None, mesh)


def test_a_shifted_window_layer_has_it_where_it_was_asked_for():
    x = jax.random.normal(jax.random.key(0), (1, 196, 128), jnp.bfloat16)
    layer = WindowAttention(num_heads=4, window_size=7, shifted=True, attn_type="softmax", dtype=jnp.bfloat16)
    assert_on_tpus_alone(layer, x, Site(grid=(14, 14)))
