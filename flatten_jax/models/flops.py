"""Multiply-adds of a model, counted as the paper counts."""

import math
from collections.abc import Iterator
from typing import Any

import flax.linen as nn
import jax

from flatten_jax.models.backbone import Backbone
from flatten_jax.ops.norm import LayerNorm

_LAYER_NORM = 5  # per element: what fvcore, which the paper used, counts for a LayerNorm


def multiply_adds(model: Backbone) -> int:
    """Multiply-adds of one image at the model's `image_size`, in evaluation.

    The rule is the paper's (fvcore's): 1 for each multiply-add of a matrix product or a convolution, 5 for each element
    of a LayerNorm, nothing for the rest (softmax, GELU, the focused map, biases). XLA's own cost analysis counts 2 for
    a multiply-add and all elementwise work, so its figures are more than twice these. Read off the traced forward pass,
    so it holds for every option; nothing is computed.
    """
    norms = 0

    def count_norm(call: Any, args: tuple, kwargs: dict, context: nn.module.InterceptorContext) -> Any:
        nonlocal norms
        if isinstance(context.module, LayerNorm) and context.method_name == "__call__":
            norms += _LAYER_NORM * args[0].size
        return call(*args, **kwargs)

    def forward(images: jax.Array) -> jax.Array:
        with nn.intercept_methods(count_norm):
            return model.init_with_output(jax.random.key(0), images)[0]

    images = jax.ShapeDtypeStruct((1, *model.image_size, 3), "float32")
    return sum(count for _, count in products(jax.make_jaxpr(forward)(images).jaxpr)) + norms


def products(jaxpr: jax.extend.core.Jaxpr) -> Iterator[tuple[jax.extend.core.JaxprEqn, int]]:
    """Matrix products and convolutions of a traced function, with their multiply-adds, all turns of a loop together.

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
        elif params.get("name") == "_resize":
            continue  # an interpolation, which JAX writes as a matrix product
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
