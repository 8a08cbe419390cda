"""Multiply-adds of a model, counted as the paper counts."""

import math
from collections.abc import Callable, Iterator
from typing import Any

import flax.linen as nn
import jax

from flatten_jax.models.create import abstract_variables
from flatten_jax.models.images import dummy_images
from flatten_jax.ops.derivative import forward_mode
from flatten_jax.ops.platform import plain_forms


def _depthwise(equation: jax.extend.core.JaxprEqn) -> int:
    _, kernel = (x.aval.shape for x in equation.invars)
    return equation.outvars[0].aval.size * kernel[-3] * kernel[-2]


def _fft(equation: jax.extend.core.JaxprEqn) -> int:
    lengths = equation.params["fft_lengths"]
    points = max(x.aval.size for x in (*equation.invars, *equation.outvars))
    return round(2.5 * points * math.log2(math.prod(lengths)))


# What JAX writes otherwise than it is counted: compiled functions by their names, and primitives. Interpolation and
# pooling are products here, and count nothing; a Fourier transform of n points counts 2.5 n log2 n; a LayerNorm 5 for
# each element, as with fvcore, which the paper used.
_FUNCTIONS: dict[str, Callable[[jax.extend.core.JaxprEqn], int]] = {
    "_resize": lambda _: 0,
    "_pool": lambda _: 0,
    "layer_norm": lambda equation: 5 * equation.outvars[0].aval.size,
    "dynamic_depthwise": _depthwise,
    "depthwise_strip": _depthwise,
}
_PRIMITIVES: dict[str, Callable[[jax.extend.core.JaxprEqn], int]] = {
    "fft": _fft,
    "lu": lambda equation: equation.invars[0].aval.size * equation.invars[0].aval.shape[-1] // 3,
    "triangular_solve": lambda equation: equation.invars[1].aval.size * equation.invars[0].aval.shape[-1] // 2,
}


def multiply_adds(model: nn.Module) -> int:
    """Multiply-adds of one image at the model's `image_size`, in evaluation; of a model or a segmenter.

    The rule is the paper's (fvcore's): 1 for each multiply-add of a matrix product or a convolution, 5 for each element
    of a LayerNorm, nothing for the rest (softmax, GELU, the focused map, biases). XLA's own cost analysis counts 2 for
    a multiply-add and all elementwise work, so its figures are more than twice these. Read off the traced forward pass,
    so it holds for every option; nothing is computed.
    """
    images, looped = jax.eval_shape(lambda: dummy_images(model)), model.looped()
    with plain_forms(), forward_mode():
        traced = jax.make_jaxpr(looped.apply)(abstract_variables(model), images)
    return sum(count for _, count in products(traced.jaxpr))


def products(jaxpr: jax.extend.core.Jaxpr) -> Iterator[tuple[jax.extend.core.JaxprEqn, int]]:
    """Products, convolutions and the like of a traced function, with their multiply-adds, a loop's turns together.

    Where platforms differ it is the plain form that is counted.
    """
    for equation in jaxpr.eqns:
        name, params = equation.primitive.name, equation.params
        if name == "dot_general":
            (contracted, _), _ = params["dimension_numbers"]
            shape = equation.invars[0].aval.shape
            yield equation, equation.outvars[0].aval.size * math.prod(shape[i] for i in contracted)
        elif name == "conv_general_dilated":
            kernel = equation.invars[1].aval
            features = kernel.shape[params["dimension_numbers"].rhs_spec[0]]
            yield equation, equation.outvars[0].aval.size * kernel.size // features
        elif name in _PRIMITIVES:
            yield equation, _PRIMITIVES[name](equation)
        elif params.get("name") in _FUNCTIONS:
            yield equation, _FUNCTIONS[params["name"]](equation)
        elif name == "cond":
            yield from products(params["branches"][-1].jaxpr)  # a branch for each platform, the last is the plain form
        elif name == "scan":
            yield from ((inner, params["length"] * count) for inner, count in products(params["jaxpr"].jaxpr))
        else:
            for inner in _inner(params):
                yield from products(inner)


def _inner(params: dict[str, Any]) -> Iterator[jax.extend.core.Jaxpr]:
    for value in params.values():
        if hasattr(value, "eqns"):
            yield value
        elif hasattr(value, "jaxpr"):
            yield value.jaxpr
