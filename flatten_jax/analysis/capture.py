"""What every attention of a model saw and gave in a forward pass, taken by intercepting their calls."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from flatten_jax.analysis.jacobian import Call
from flatten_jax.analysis.layer import Layer
from flatten_jax.analysis.places import places
from flatten_jax.attention import Attention, Site
from flatten_jax.ops.depthwise import DepthwiseConv


def capture(model: nn.Module, variables: Mapping[str, Any], images: jax.Array) -> list[Layer]:
    """All attentions of a forward pass, in order. The model is not changed, nor is what it computes.

    Args:
        model: from `create_model`. In half precision, or TF32 on a GPU, `output` is rounded and agrees with M v to
            that; matrices are in float32.
        variables: of the model.
        images: (B, height, width, 3), normalised. Everything is kept in memory: a few pictures, not a data set.
    """
    layers: list[Layer] = []
    around: list[tuple[nn.Module, Site]] = []  # what is being called at a site, from the block inwards
    blocks: list[str] = []

    def look(call: Callable, args: tuple, kwargs: dict[str, Any], context: nn.module.InterceptorContext) -> Any:
        module = context.module
        if context.method_name != "__call__":
            return call(*args, **kwargs)
        if len(args) > 1 and isinstance(args[1], Site):
            around.append((module, args[1]))
            output = call(*args, **kwargs)
            around.pop()
            if isinstance(module, Attention) and not any(isinstance(outer, Attention) for outer, _ in around):
                path = "/".join((around[0][0] if around else module).path)
                if path not in blocks:
                    blocks.append(path)
                layers.append(_layer(module, args, output, len(blocks) - 1, around))
            return output
        output = call(*args, **kwargs)
        if isinstance(module, DepthwiseConv) and module.name == "get_v":  # CSwin's LePE, added to the attention before
            layers[-1] = _with_local(layers[-1], module, output)
        return output

    # Rematerialised and looped blocks are traced, and tracers have no values.
    with nn.intercept_methods(look):
        model.clone(remat=False, scan=False).apply(variables, images, train=False)
    return layers


def _layer(
    module: Attention, args: tuple, output: jax.Array, block: int, around: list[tuple[nn.Module, Site]]
) -> Layer:
    x, site, *streams = args
    streams = dict(zip(module.streams, map(_float32, streams), strict=True))
    call = Call(*_alone(module), _float32(x), jax.tree.map(_float32, site), streams)
    keys = site if "v" in streams else site.replace(key_grid=None)
    where = places(around or [(module, site)], keys)
    return Layer("/".join(module.path), block, call, _float32(output), where)


def _with_local(layer: Layer, module: DepthwiseConv, output: jax.Array) -> Layer:
    local, variables = _alone(module)
    output = layer.output + _float32(output).reshape(layer.output.shape)
    return dataclasses.replace(layer, call=layer.call.replace(local=local, local_variables=variables), output=output)


def _alone(module: nn.Module) -> tuple[nn.Module, Mapping[str, Any]]:
    """A module outside its model, computing in float32, and its variables."""
    alone, variables = module.unbind()
    return alone.clone(parent=None, name=None, dtype=None), variables


def _float32(x: jax.Array) -> np.ndarray:
    return np.asarray(x, np.float32)
