"""Attention matrices written out by their equations in NumPy and float64: what differentiation is held to."""

import jax.numpy as jnp
import numpy as np

from flatten_jax.attention import focused_map
from flatten_jax.attention.focused import EPSILON, stretch_tokens


def softmax_matrix(q, k, bias=None):
    """softmax(q k^T / sqrt(d) + bias) of q (W, N, h, d), k (W, M, h, d), bias (P, 1 or h, N, M) -> (W, h, N, M)."""
    scores = np.einsum("wnhd,wmhd->whnm", *_float64(q, k), optimize=True) / np.sqrt(q.shape[-1])
    if bias is not None:
        scores += np.tile(_float64(bias)[0], (len(scores) // len(bias), 1, 1, 1))
    scores = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return scores / scores.sum(axis=-1, keepdims=True)


def linear_matrix(q, k):
    """Row-normalised q k^T of non-negative features q (W, N, h, d), k (W, M, h, d) -> (W, h, N, M)."""
    scores = np.einsum("wnhd,wmhd->whnm", *_float64(q, k), optimize=True) / k.shape[1]
    return scores / (scores.sum(axis=-1, keepdims=True) + EPSILON)


def depthwise_matrix(kernel, grid):
    """The depthwise convolution with a kernel (k, k, C) on a grid of N tokens: a matrix for each channel, (C, N, N)."""
    (height, width), size, margin = grid, kernel.shape[0], kernel.shape[0] // 2
    tokens = np.arange(height * width)
    matrix = np.zeros((kernel.shape[2], len(tokens), len(tokens)))
    for i, j in np.ndindex(size, size):
        row, column = tokens // width + i - margin, tokens % width + j - margin
        inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
        matrix[:, np.flatnonzero(inside), (row * width + column)[inside]] = kernel[i, j, :, None]
    return matrix


def stretch_matrix(tokens, keys):
    """(tokens, keys) the interpolation by which PVT stretches reduced values before the depthwise branch."""
    return np.asarray(stretch_tokens(jnp.eye(keys)[None], tokens)[0], np.float64)


def attention(layer):
    """(W, h, N, M) of a captured layer of softmax or focused attention, without branches."""
    call, params = layer.call, layer.call.variables.get("params", {})
    q, k = call.streams["q"], call.streams["k"]
    if layer.kind == "softmax":
        return softmax_matrix(_heads(q, layer), _heads(k, layer), call.site.bias)
    k = k + np.asarray(params["positional_encoding"])
    power, scale = call.attention.focusing_factor, params["scale"]
    return linear_matrix(*(_heads(focused_map(x, power, scale), layer) for x in (q, k)))


def branch(layer):
    """(C, N, M) the convolutions of a captured layer: the depthwise branch, and CSwin's LePE."""
    call, (_, keys, channels) = layer.call, layer.streams["v"].shape
    convolutions = [call.variables["params"]["dwc"]] if getattr(call.attention, "use_dwc", False) else []
    convolutions += [call.local_variables["params"]] if call.local is not None else []
    matrix = np.zeros((channels, layer.output.shape[1], keys))
    for convolution in convolutions:
        kernel = np.asarray(convolution["kernel"])[:, :, 0]
        kernel = np.tile(kernel, channels // kernel.shape[2])  # `dwc` has d channels, which the heads share
        dense = depthwise_matrix(kernel, call.site.grid)
        matrix += dense if dense.shape[2] == keys else dense @ stretch_matrix(dense.shape[2], keys)
    return matrix


def _heads(x, layer):
    return np.asarray(x).reshape(*x.shape[:2], layer.num_heads, -1)


def _float64(*arrays):
    return [np.asarray(x, np.float64) for x in arrays]
