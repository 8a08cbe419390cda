"""The TPU kernel of softmax attention in windows, interpreted here, against the plain form; where it is. No chip."""

import functools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flatten_jax.attention import Site, softmax, window_kernel
from flatten_jax.hosts import WindowAttention
from flatten_jax.ops.platform import plain_forms, tpu_kernels
from flatten_jax.training.sharding import make_mesh, over_data

WINDOWS, HEADS, WIDTH = 32, 8, 32


@pytest.fixture
def interpreted(monkeypatch):
    """The TPU's branch on the CPU, its kernel by JAX's operations, two windows a turn."""
    pallas = window_kernel.pl
    monkeypatch.setattr(pallas, "pallas_call", functools.partial(pallas.pallas_call, interpret=True))
    monkeypatch.setattr(softmax, "platform_dependent", lambda *args, tpu, default: tpu(*args))
    monkeypatch.setattr(window_kernel, "_TOGETHER", 2)
    yield
    softmax._by_kernel.clear_cache()  # it knows nothing of the above


def arrays(dtype, tokens=49, kinds=2):
    shape = (WINDOWS, tokens, HEADS, WIDTH)
    q, k, v, weights = (jax.random.normal(jax.random.key(i), shape, dtype) for i in range(4))
    bias = 2 * jax.random.normal(jax.random.key(9), (kinds, HEADS, tokens, tokens))
    return (q, k, v) + ((bias,) if kinds else ()), weights


def with_gradients(attention, args, weights):
    out, pull = jax.vjp(attention, *args)
    return [x.astype(jnp.float32) for x in (out, *pull(weights))]


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
    off = [
        [float(jnp.linalg.norm(x - wanted) / jnp.linalg.norm(wanted)) for x, wanted in zip(found, exact, strict=True)]
        for found in (kernel, plain)
    ]
    assert all(x > 1e-3 for x in off[0][:4])  # the bias's gradient is in float32
    assert all(ours < 1.05 * theirs for ours, theirs in zip(*off, strict=True))


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
        ({"windows": 10}, False),
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


def test_a_shifted_window_layer_has_it_on_tpus_in_bfloat16_where_it_was_asked_for():
    """Both kernels, in the program for a TPU; elsewhere the plain form, of the same parameters."""
    mesh, site = make_mesh(jax.devices()[:1]), Site(grid=(14, 14))
    x = jax.random.normal(jax.random.key(0), (1, 196, 128), jnp.bfloat16)
    layer = WindowAttention(num_heads=4, window_size=7, shifted=True, attn_type="softmax", dtype=jnp.bfloat16)
    variables = layer.init(jax.random.key(1), x, site)

    def gradient(layer, platform, x=x):
        function = jax.jit(jax.grad(lambda v: layer.apply(v, x, site).astype(jnp.float32).sum()))
        return function.trace(variables).lower(lowering_platforms=(platform,)).as_text().count("tpu_custom_call")

    assert gradient(layer, "tpu") == 0
    without = layer.apply(variables, x, site)
    with tpu_kernels(mesh):
        assert gradient(layer, "tpu") == 2
        assert gradient(layer, "cpu") == 0
        assert gradient(layer.clone(dtype=jnp.float32), "tpu", x.astype(jnp.float32)) == 0
        with plain_forms():
            assert gradient(layer, "tpu") == 0
        here = layer.apply(variables, x, site)
    here, without = here.astype(jnp.float32), without.astype(jnp.float32)
    np.testing.assert_allclose(here, without, rtol=0, atol=2**-8 * float(jnp.abs(without).max()))
