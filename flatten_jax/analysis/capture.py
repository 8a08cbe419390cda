"""What every attention of a model saw and gave in a forward pass, and its matrix."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from flatten_jax.analysis import jacobian
from flatten_jax.analysis.places import Places, places
from flatten_jax.attention import ATTENTIONS, Attention, Site, attention_options, make_attention
from flatten_jax.ops.depthwise import DepthwiseConv

# Options by which attentions leave out their local branch of the values, with the value that does.
BRANCHES = {"use_dwc": False}


@dataclasses.dataclass(frozen=True)
class Layer:
    """One call of an attention: B pictures in P windows each are its W = B P examples; without windows P = 1.

    In Swin's and CSwin's windows a query has no other keys than those of its window, so every matrix here is that of a
    window. A block of CSwin in two branches has two layers, vertical and horizontal stripes, each with half the heads.

    A matrix M is the derivative of a channel of the output with respect to the same channel of the values, with
    queries, keys and gates as they are: output[:, c] = M v[:, c] + offset, where `linear`. Where the output is not
    linear in the values (a norm after the product), M is the derivative at those that were seen. An attention without
    a stream "v" has no matrix, and only the `influence` of its tokens can be asked. Examples are looked at one by one.

    Attributes:
        name: path of its parameters, such as "blocks_3/attn" or "stage3_1/attns_0".
        block: number of its block, counted through the whole model from 0.
        module, variables: the attention by itself, and what it has.
        x: (W, N, C) tokens that it was called with.
        site: where it stands.
        streams: letter -> (W, N or M, ·), what its host projected for it.
        output: (W, N, C), what goes on to `proj`, with CSwin's LePE.
        places: where its queries and keys are on the picture.
        local: a convolution of v that its host adds, CSwin's LePE, with its variables; or None.
    """

    name: str
    block: int
    module: Attention
    variables: Mapping[str, Any]
    x: np.ndarray
    site: Site
    streams: Mapping[str, np.ndarray]
    output: np.ndarray
    places: Places
    local: tuple[nn.Module, Mapping[str, Any]] | None = None

    @property
    def kind(self) -> str:
        """The name of the attention."""
        return next(name for name, cls in ATTENTIONS.items() if cls is type(self.module))

    @property
    def num_heads(self) -> int:
        """h, each of width d = C / h."""
        return self.module.num_heads

    @property
    def has_values(self) -> bool:
        """Whether it has matrices; else it makes its values itself, and `influence` is that of its input's tokens."""
        return "v" in self.module.streams

    @property
    def has_branch(self) -> bool:
        """Whether a local branch of the values can be left out, its own or its host's."""
        return self.local is not None or any(
            getattr(self.module, option, off) != off for option, off in BRANCHES.items()
        )

    @cached_property
    def linear(self) -> bool:
        """Whether the output is linear in the values, plus a constant. It is tried: with other values the derivative
        has to be the same.
        """
        inputs = self._inputs(slice(0, 1))
        return jacobian.is_linear(self.module, self._convolution, inputs)

    def changed(self, **options: Any) -> "Layer":
        """The same call with other options of the attention, such as focusing_factor=1."""
        known = attention_options(self.kind)
        if unknown := sorted(options.keys() - known):
            raise ValueError(f"{self.kind} has no option {', '.join(unknown)}; it has {', '.join(known) or 'none'}")
        return self._with(module=self.module.clone(**options))

    def without_branch(self) -> "Layer":
        """The same call without a local branch of the values. One that no option leaves out stays (InLine's)."""
        options = {option: off for option, off in BRANCHES.items() if hasattr(self.module, option)}
        return self._with(module=self.module.clone(**options), local=None) if self.has_branch else self

    def fits(self, attn_type: str) -> bool:
        """Whether an attention has no parameters and takes some of these streams, equally wide."""
        other, inputs = make_attention(attn_type, self.num_heads), self._inputs(slice(0, 1))
        streams = [inputs.streams[letter] for letter in other.streams if letter in inputs.streams]
        if len(streams) < max(1, len(other.streams)) or len({stream.shape[2] for stream in streams}) > 1:
            return False
        return not jax.eval_shape(other.init, jax.random.key(0), inputs.x, inputs.site, *streams)

    def through(self, attn_type: str) -> "Layer":
        """The same queries, keys and values through another attention, without a local branch.

        Raises:
            ValueError: it does not fit.
        """
        if not self.fits(attn_type):
            raise ValueError(f"{attn_type} needs other streams than {self.name} has, or has parameters of its own")
        other = make_attention(attn_type, self.num_heads)
        return self._with(module=other, local=None)

    def attention(self, examples: slice = slice(None), tokens: Sequence[int] | None = None) -> np.ndarray:
        """The matrix of every window and head without the local branch, the mean over the head's channels.

        Args:
            examples: which of the W.
            tokens: the R queries whose rows are wanted; all N by default.

        Returns:
            (W, h, R, M).
        """
        of_head = np.repeat(np.eye(self.num_heads), self._width, axis=1)
        return self.without_branch()._rows(of_head / self._width, of_head, examples, tokens)

    def effective(
        self, example: int, head: int, channel: int | None = None, tokens: Sequence[int] | None = None
    ) -> np.ndarray:
        """M of one window, head and channel: output[:, c] = M v[:, c] + offset, with all branches and gates.

        Args:
            example: which of the W.
            channel: of the head's d; None: the mean over them, whose filters may cancel each other.
            tokens: the R queries whose rows are wanted; all N by default.

        Returns:
            (R, M).
        """
        channels = np.eye(self.output.shape[2])[self._channels(head, channel)]
        weights = channels.sum(axis=0, keepdims=True)
        return self._rows(weights / len(channels), weights, slice(example, example + 1), tokens)[0, 0]

    def offset(self, example: int, head: int, channel: int) -> np.ndarray:
        """(N,) what a channel of the output is where that channel of the values is 0."""
        out, inputs = self._channels(head, channel).start, self._inputs(slice(example, example + 1))
        v = inputs.streams["v"].copy()
        v[..., out % v.shape[2]] = 0
        inputs = inputs._replace(streams={**inputs.streams, "v": v})
        return np.asarray(jacobian.output(self.module, self._convolution, inputs))[0, :, out]

    def influence(self, token: int, example: int = 0) -> np.ndarray:
        """How much one query takes from each key.

        Returns:
            (h, M): the mean over a head's channels of the absolute entries of M; without values (1, N): the Frobenius
            norms over channels of the derivative of its output with respect to each token of the input.
        """
        examples = slice(example, example + 1)
        if not self.has_values:
            return self.token_influence(examples, [token])[0, :, 0]
        each = np.eye(self.output.shape[2])
        return np.abs(self._rows(each, each, examples, [token])[0, :, 0].reshape(self.num_heads, self._width, -1)).mean(
            1
        )

    def token_influence(self, examples: slice = slice(None), tokens: Sequence[int] | None = None) -> np.ndarray:
        """(W, 1, R, N): the Frobenius norms of the derivative of outputs with respect to tokens of the input.

        Args: those of `attention`.
        """
        inputs, tokens = self._inputs(examples), self._tokens(tokens)
        _check_size(len(inputs.x), 1, len(tokens), self.x.shape[1])
        return np.asarray(jacobian.token_rows(self.module, inputs, tokens))[:, None]

    def locate(self, query: tuple[int, int], picture: int = 0) -> tuple[int, int]:
        """(example, token) of the query at (row, column) of a picture's grid."""
        windows = len(self.places.queries)
        if not 0 <= picture < len(self.x) // windows:
            raise ValueError(f"{picture=}: {len(self.x) // windows} were captured")
        window, token = self.places.locate(query)
        return picture * windows + window, token

    @property
    def _width(self) -> int:
        return self.output.shape[2] // self.num_heads

    @property
    def _convolution(self) -> nn.Module | None:
        return None if self.local is None else self.local[0]

    def _channels(self, head: int, channel: int | None) -> slice:
        """Channels of the output."""
        if not 0 <= head < self.num_heads or not 0 <= (channel or 0) < self._width:
            raise ValueError(f"{head=}, {channel=} must be within {self.num_heads} heads of {self._width} channels")
        start = head * self._width + (channel or 0)
        return slice(start, start + (self._width if channel is None else 1))

    def _tokens(self, tokens: Sequence[int] | None) -> np.ndarray:
        return np.arange(self.x.shape[1]) if tokens is None else np.asarray(tokens)

    def _inputs(self, examples: slice) -> jacobian.Inputs:
        def of_examples(shared: jax.Array) -> jax.Array:
            return shared if len(shared) == 1 else shared[np.arange(len(self.x))[examples] % len(shared)]

        streams = {letter: stream[examples] for letter, stream in self.streams.items()}
        site = jax.tree.map(of_examples, self.site)
        return jacobian.Inputs(self.variables, self.x[examples], site, streams, self.local and self.local[1])

    def _rows(
        self, outputs: np.ndarray, values: np.ndarray, examples: slice, tokens: Sequence[int] | None
    ) -> np.ndarray:
        """(E, S, R, M) of `jacobian.rows`, for sets of channels of the output, and of v where v has as many."""
        if not self.has_values:
            raise ValueError(
                f"{self.kind} makes its values itself, so {self.name} has no matrix; `influence` shows what its output "
                "takes from each token"
            )
        inputs, tokens = self._inputs(examples), self._tokens(tokens)
        v = inputs.streams["v"]
        if values.shape[1] % v.shape[2]:
            raise ValueError(f"{self.name} has {values.shape[1]} channels of {v.shape[2]} values: no matrix says which")
        values = values.reshape(len(values), -1, v.shape[2]).sum(axis=1)  # values that heads share
        _check_size(len(v), len(values), len(tokens), v.shape[1])
        weights = outputs.astype(np.float32), values.astype(np.float32)
        return np.asarray(jacobian.rows(self.module, self._convolution, inputs, tokens, *weights))

    def _with(self, **replaced: Any) -> "Layer":
        layer = dataclasses.replace(self, **replaced)
        out = jacobian.output(layer.module, layer._convolution, layer._inputs(slice(None)))
        return dataclasses.replace(layer, output=np.asarray(out))


def _check_size(*shape: int) -> None:
    if np.prod(shape) > jacobian.LARGEST:
        raise ValueError(f"matrices of {' x '.join(map(str, shape))} are too many at once: ask some examples or tokens")


def capture(model: nn.Module, variables: Mapping[str, Any], images: jax.Array) -> list[Layer]:
    """All attentions of a forward pass, in order. The model is not changed, nor is what it computes.

    Args:
        model: from `create_model`. In half precision, or TF32 on a GPU, `output` is rounded and agrees with M v to
            that; matrices are in float32.
        variables: of the model.
        images: (B, height, width, 3), normalised. Everything is kept in memory: a few pictures, not a data set.
    """
    layers: list[Layer] = []
    around: list[tuple[nn.Module, Site]] = []  # modules that are called at a site, from the block inwards
    blocks: list[str] = []

    def look(call: Callable, args: tuple, kwargs: dict[str, Any], context: nn.module.InterceptorContext) -> Any:
        module = context.module
        stands = context.method_name == "__call__" and len(args) > 1 and isinstance(args[1], Site)
        if stands:
            around.append((module, args[1]))
        output = call(*args, **kwargs)
        if stands:
            around.pop()
        if stands and isinstance(module, Attention) and not any(isinstance(m, Attention) for m, _ in around):
            block = "/".join((around[0][0] if around else module).path)
            if block not in blocks:
                blocks.append(block)
            layers.append(_layer(module, args, output, len(blocks) - 1, around))
        elif isinstance(module, DepthwiseConv) and module.name == "get_v" and context.method_name == "__call__":
            layers[-1] = _with_local(layers[-1], module, output)  # CSwin's LePE, after its attention
        return output

    # Rematerialised and looped blocks are traced, and tracers have no values.
    with nn.intercept_methods(look):
        model.clone(remat=False, scan=False).apply(variables, images, train=False)
    return layers


def _layer(
    module: Attention, args: tuple, output: jax.Array, block: int, around: list[tuple[nn.Module, Site]]
) -> Layer:
    x, site, *streams = args
    attention, variables = module.unbind()
    return Layer(
        name="/".join(module.path),
        block=block,
        module=attention.clone(parent=None, name=None, dtype=None),
        variables=variables,
        x=_float32(x),
        site=jax.tree.map(_float32, site),
        streams={letter: _float32(stream) for letter, stream in zip(module.streams, streams, strict=True)},
        output=_float32(output),
        places=places(around or [(module, site)], site if "v" in module.streams else site.replace(key_grid=None)),
    )


def _with_local(layer: Layer, module: DepthwiseConv, output: jax.Array) -> Layer:
    convolution, variables = module.unbind()
    output = layer.output + _float32(output).reshape(layer.output.shape)
    return dataclasses.replace(
        layer, output=output, local=(convolution.clone(parent=None, name=None, dtype=None), variables)
    )


def _float32(x: jax.Array) -> np.ndarray:
    return np.asarray(x, np.float32)
