"""A call of an attention that was seen, and its matrices."""

import dataclasses
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import jax
import numpy as np

from flatten_jax.analysis import jacobian
from flatten_jax.analysis.places import Places
from flatten_jax.attention import ATTENTIONS, attention_options, make_attention

LARGEST = 2**27  # numbers in one answer, half a GiB
# Options by which attentions leave out their local branch of the values, with the value that does.
BRANCHES = {"use_dwc": False}


@dataclasses.dataclass(frozen=True)
class Layer:
    """One call of an attention: B pictures in P windows each are its W = B P examples; without windows P = 1.

    In Swin's and CSwin's windows a query has no other keys than those of its window, so every matrix here is that of a
    window. A block of CSwin in two branches has two layers, vertical and horizontal stripes, each with half the heads.

    A matrix M is the derivative of a channel of the output with respect to the same channel of the values, with
    queries, keys and gates as they are. `shows` says what that is:

    - "matrix": output[:, c] = M v[:, c] + offset, exactly.
    - "derivative": the output is not linear in the values (a norm after the product). M holds at the values that were
      seen.
    - "influence": the attention has no stream "v" and no matrix. In its place stand Frobenius norms over channels of
      the derivative of an output's token with respect to an input's token, as those of one head.

    Attributes:
        name: path of its parameters, such as "blocks_3/attn" or "stage3_1/attns_0".
        block: number of its block, counted through the whole model from 0.
        call: the attention and what it was called with. Of examples that depend on each other each is seen alone.
        output: (W, N, C), what goes on to `proj`, with CSwin's LePE.
        places: where its queries and keys are on the picture.
    """

    name: str
    block: int
    call: jacobian.Call
    output: np.ndarray
    places: Places

    @property
    def kind(self) -> str:
        """The name of the attention."""
        cls = type(self.call.attention)
        return next((name for name, known in ATTENTIONS.items() if known is cls), cls.__name__)

    @property
    def num_heads(self) -> int:
        """h, each of width d = C / h."""
        return self.call.attention.num_heads

    @property
    def streams(self) -> Mapping[str, np.ndarray]:
        """Letter -> (W, N or M, ·), what the host projected: "q", "k", "v", ..."""
        return self.call.streams

    @cached_property
    def shows(self) -> str:
        """What its rows are, see above. Found by trying: a matrix is the same with other values."""
        if "v" not in self.streams:
            return "influence"
        return "matrix" if jacobian.is_linear(self.call.examples(slice(0, 1))) else "derivative"

    @property
    def linear(self) -> bool:
        """Whether the matrix is exact."""
        return self.shows == "matrix"

    @property
    def has_branch(self) -> bool:
        """Whether a local branch of the values can be left out, its own or its host's."""
        options = (getattr(self.call.attention, name, off) != off for name, off in BRANCHES.items())
        return self.call.local is not None or any(options)

    def changed(self, **options: Any) -> "Layer":
        """The same call with other options of the attention, such as focusing_factor=1."""
        known = attention_options(self.kind)
        if unknown := sorted(options.keys() - known):
            raise ValueError(f"{self.kind} has no option {', '.join(unknown)}; it has {', '.join(known) or 'none'}")
        return self._called(self.call.replace(attention=self.call.attention.clone(**options)))

    def without_branch(self) -> "Layer":
        """The same call without local branches of the values. One that no option leaves out stays (InLine's)."""
        return self._called(self._without_branch()) if self.has_branch else self

    def through(self, attn_type: str) -> "Layer | None":
        """The same streams through another attention; None where it has parameters or needs streams of one width."""
        other = make_attention(attn_type, self.num_heads)
        call, needed = self.call.replace(attention=other, local=None), set(other.streams)
        if not needed or not needed <= set(self.streams) or len({self.streams[c].shape[2] for c in needed}) > 1:
            return None
        streams = (call.streams[letter] for letter in other.streams)
        parameters = jax.eval_shape(other.init, jax.random.key(0), call.x, call.site, *streams)
        return None if parameters else self._called(call)

    def attention(self, examples: slice = slice(None), tokens: Sequence[int] | None = None) -> np.ndarray:
        """The matrix of every window and head without the local branch, the mean over the head's channels.

        Args:
            examples: which of the W.
            tokens: the R queries whose rows are wanted; all N by default.

        Returns:
            (W, h, R, M); (W, 1, R, N) of "influence".
        """
        if "v" not in self.streams:
            call, tokens = self.call.examples(examples), self._tokens(tokens)
            _check_size(len(call.x), len(tokens), call.x.shape[1])
            return np.asarray(jacobian.token_rows(call, tokens))[:, None]
        of_head = np.repeat(np.eye(self.num_heads), self._width, axis=1)
        return self._rows(self._without_branch(), of_head / self._width, of_head, examples, tokens)

    def effective(
        self, example: int, head: int, channel: int | None = None, tokens: Sequence[int] | None = None
    ) -> np.ndarray:
        """M of one window, head and channel, with all branches and gates.

        Args:
            example: which of the W.
            channel: of the head's d; None: the mean over them, whose filters may cancel each other.
            tokens: the R queries whose rows are wanted; all N by default.

        Returns:
            (R, M).
        """
        channels = np.eye(self.output.shape[2])[self._channels(head, channel)]
        weights = channels.sum(axis=0, keepdims=True)
        return self._rows(self.call, weights / len(channels), weights, slice(example, example + 1), tokens)[0, 0]

    def offset(self, example: int, head: int, channel: int) -> np.ndarray:
        """(N,) what a channel of the output is where that channel of the values is 0."""
        call, out = self.call.examples(slice(example, example + 1)), self._channels(head, channel).start
        v = np.array(call.streams["v"])
        v[..., out % v.shape[2]] = 0
        return np.asarray(jacobian.output(call.with_values(v)))[0, :, out]

    def influence(self, token: int, example: int = 0) -> np.ndarray:
        """(h, M) how much one query takes from each key: the mean over a head's channels of absolute entries of M.

        (1, N) of an attention that shows "influence".
        """
        examples = slice(example, example + 1)
        if "v" not in self.streams:
            return self.attention(examples, [token])[0, :, 0]
        each = np.eye(self.output.shape[2])
        taken = np.abs(self._rows(self.call, each, each, examples, [token])[0, :, 0])
        return taken.reshape(self.num_heads, self._width, -1).mean(axis=1)

    def locate(self, query: tuple[int, int], picture: int = 0) -> tuple[int, int]:
        """(example, token) of the query at (row, column) of a picture's grid."""
        windows = len(self.places.queries)
        if not 0 <= picture < len(self.output) // windows:
            raise ValueError(f"{picture=}: {len(self.output) // windows} were captured")
        window, token = self.places.locate(query)
        return picture * windows + window, token

    @property
    def _width(self) -> int:
        return self.output.shape[2] // self.num_heads

    def _channels(self, head: int, channel: int | None) -> slice:
        """Channels of the output."""
        if not 0 <= head < self.num_heads or not 0 <= (channel or 0) < self._width:
            raise ValueError(f"{head=}, {channel=} must be within {self.num_heads} heads of {self._width} channels")
        start = head * self._width + (channel or 0)
        return slice(start, start + (self._width if channel is None else 1))

    def _tokens(self, tokens: Sequence[int] | None) -> np.ndarray:
        return np.arange(self.output.shape[1]) if tokens is None else np.asarray(tokens)

    def _rows(
        self,
        call: jacobian.Call,
        outputs: np.ndarray,
        values: np.ndarray,
        examples: slice,
        tokens: Sequence[int] | None,
    ) -> np.ndarray:
        """(E, S, R, M) of `jacobian.rows`; both weights are for the output's channels."""
        if "v" not in self.streams:
            raise ValueError(
                f"{self.kind} makes its values itself, so {self.name} has no matrix: ask its `influence` or `attention`"
            )
        call, tokens = call.examples(examples), self._tokens(tokens)
        _, keys, channels = call.streams["v"].shape
        if values.shape[1] % channels:
            raise ValueError(f"{self.name} has {values.shape[1]} channels of {channels} values: which is whose?")
        values = values.reshape(len(values), -1, channels).sum(axis=1)  # heads may share their values
        _check_size(len(call.x), len(values), len(tokens), keys)
        return np.asarray(jacobian.rows(call, tokens, np.float32(outputs), np.float32(values)))

    def _without_branch(self) -> jacobian.Call:
        options = {name: off for name, off in BRANCHES.items() if hasattr(self.call.attention, name)}
        return self.call.replace(attention=self.call.attention.clone(**options), local=None)

    def _called(self, call: jacobian.Call) -> "Layer":
        return dataclasses.replace(self, call=call, output=np.asarray(jacobian.output(call)))


def _check_size(*shape: int) -> None:
    if np.prod(shape) > LARGEST:
        raise ValueError(f"{' x '.join(map(str, shape))} numbers are too many at once: ask some examples or tokens")
