"""What is held of every TPU kernel: derivatives beside the plain form's, and in which programs it is."""

import jax
import jax.numpy as jnp
import numpy as np

from flatten_jax.ops import platform
from flatten_jax.ops.platform import plain_forms, tpu_kernels
from flatten_jax.training.sharding import make_mesh


def with_gradients(attention, args, weights):
    """The result and the gradients of all arguments, for one of the result's gradient, in float32."""
    out, pull = jax.vjp(attention, *args)
    return [x.astype(jnp.float32) for x in (out, *pull(weights))]


def interpret(monkeypatch, kernel, **facts):
    """The TPU's branch on the CPU, its kernel by JAX's operations; facts of the kernel's module are changed."""
    call = kernel.pl.pallas_call
    monkeypatch.setattr(kernel.pl, "pallas_call", lambda *args, **options: call(*args, **options, interpret=True))
    monkeypatch.setattr(platform, "platform_dependent", lambda *args, tpu, default: tpu(*args))
    for name, value in facts.items():
        monkeypatch.setattr(kernel, name, value)


def assert_as_near_as_the_plain_form(kernel, plain, exact, rounded):
    """The first `rounded` in bfloat16, and all of them as near to what is exact as the plain form's."""
    off = [
        [float(jnp.linalg.norm(x - wanted) / jnp.linalg.norm(wanted)) for x, wanted in zip(found, exact, strict=True)]
        for found in (kernel, plain)
    ]
    assert all(x > 1e-3 for x in off[0][:rounded])
    assert all(ours < 1.05 * theirs for ours, theirs in zip(*off, strict=True))


def assert_on_tpus_alone(layer, x, site):
    """Both kernels, in bfloat16, in the program for a TPU; elsewhere the plain form, of the same parameters."""
    variables = layer.init(jax.random.key(1), x, site)

    def loss(variables, layer=layer, x=x):
        return layer.apply(variables, x, site).astype(jnp.float32).sum()

    def kernels(platform, *args):
        function = jax.jit(jax.grad(lambda v: loss(v, *args)))
        return function.trace(variables).lower(lowering_platforms=(platform,)).as_text().count("tpu_custom_call")

    assert kernels("tpu") == 0
    without = jax.value_and_grad(loss)(variables)
    with tpu_kernels(make_mesh(jax.devices()[:1])):
        assert kernels("tpu") == 2
        assert kernels("cpu") == 0
        assert kernels("tpu", layer.clone(dtype=jnp.float32), x.astype(jnp.float32)) == 0
        with plain_forms():
            assert kernels("tpu") == 0
        here = jax.value_and_grad(loss)(variables)
    for ours, wanted in zip(jax.tree.leaves(here), jax.tree.leaves(without), strict=True):
        step = 2**-7 * float(jnp.abs(wanted).max())  # of bfloat16; seen: one, in one element of a gradient
        np.testing.assert_allclose(ours, wanted, rtol=0, atol=step)
