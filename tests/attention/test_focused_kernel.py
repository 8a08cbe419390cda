"""The TPU kernel of focused attention, interpreted here, against the plain form; and where it is taken. No chip."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flatten_jax.attention import Site, focused, focused_kernel
from flatten_jax.hosts.plain import QKVAttention
from flatten_jax.ops.platform import tpu_kernels
from flatten_jax.training.sharding import make_mesh, over_data

from .kernels import assert_as_near_as_the_plain_form, assert_on_tpus_alone, interpret, with_gradients


@pytest.fixture
def interpreted(monkeypatch):
    """For however few tokens."""
    interpret(monkeypatch, focused_kernel, _LEAST_TOKENS=1)
    yield
    focused._by_kernel.clear_cache()  # it knows nothing of the above


def arrays(dtype, examples=8, tokens=49, keys=36, channels=64):
    shapes = [(examples, n, channels) for n in (tokens, keys, keys, tokens)]
    q, k, v, weights = (jax.random.normal(jax.random.key(i), shape, dtype) for i, shape in enumerate(shapes))
    return (q, k, v, jax.random.normal(jax.random.key(9), (1, 1, channels))), weights


@pytest.mark.parametrize(("heads", "p"), [(1, 3), (4, 2)])
def test_result_and_gradients_are_those_of_the_plain_form_on_eight_devices(interpreted, monkeypatch, heads, p):
    monkeypatch.setattr(focused_kernel, "takes", lambda *_: True)  # float32 too, to see more than rounding
    mesh = make_mesh()
    args, weights = arrays(jnp.float32)
    split = tuple(jax.device_put(x, over_data(mesh)) for x in args[:3])
    with tpu_kernels(mesh):
        kernel = jax.jit(lambda *args: focused.focused_attention(*args, heads, p))
        found = with_gradients(kernel, (*split, args[3]), weights)
    plain = with_gradients(lambda *args: focused._plain(*args, heads, p), args, weights)
    for ours, wanted in zip(found, plain, strict=True):
        np.testing.assert_allclose(ours, wanted, rtol=0, atol=1e-6 * float(jnp.abs(wanted).max()))


def test_in_bfloat16_it_is_as_near_to_float32_as_the_plain_form(interpreted):
    args, weights = arrays(jnp.bfloat16)
    wide = [tuple(x.astype(jnp.float32) for x in args), weights.astype(jnp.float32)]
    exact = with_gradients(lambda *args: focused._plain(*args, 2, 3), *wide)
    plain = with_gradients(lambda *args: focused._plain(*args, 2, 3), args, weights)
    with tpu_kernels(make_mesh()):
        kernel = with_gradients(lambda *args: focused.focused_attention(*args, 2, 3), args, weights)
    assert_as_near_as_the_plain_form(kernel, plain, exact, rounded=5)


TAKEN = dict(tokens=784, keys=784, channels=64, heads=2, p=3, dtype=jnp.bfloat16, examples=8, chip="TPU v5 lite")


@pytest.mark.parametrize(
    ("changed", "taken"),
    [
        ({}, True),
        ({"tokens": 3136, "keys": 3136, "channels": 96, "heads": 3}, True),
        ({"tokens": 3136, "keys": 3136, "channels": 96, "heads": 3, "chip": "TPU v4"}, False),
        ({"tokens": 3136, "keys": 3136, "channels": 64, "heads": 1, "chip": "TPU v4"}, True),
        ({"keys": 49}, False),
        ({"heads": 8}, False),
        ({"p": 2.5}, False),
        ({"p": 1}, False),
        ({"dtype": jnp.float32}, False),
        ({"examples": 6}, False),
        ({"tokens": 200_000, "keys": 200_000}, False),
    ],
)
def test_takes(changed, taken):
    case = TAKEN | changed
    q, k = (
        jax.ShapeDtypeStruct((case["examples"], case[n], case["channels"]), case["dtype"]) for n in ("tokens", "keys")
    )
    mesh = SimpleNamespace(size=4, devices=np.array([SimpleNamespace(device_kind=case["chip"])]))
    assert focused_kernel.takes(q, k, k, case["heads"], case["p"], mesh) == taken


def test_a_layer_has_it_where_it_was_asked_for():
    x = jax.random.normal(jax.random.key(0), (1, 784, 32), jnp.bfloat16)
    assert_on_tpus_alone(QKVAttention(num_heads=2, dtype=jnp.bfloat16), x, Site(grid=(28, 28)))
