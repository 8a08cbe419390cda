"""The one table of attentions, by name, and the patterns in which a model's blocks choose from it."""

import dataclasses
import difflib
import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp

from flatten_jax.attention.agent import Agent
from flatten_jax.attention.care import Care
from flatten_jax.attention.circulant import Circulant
from flatten_jax.attention.contract import Attention, Origin
from flatten_jax.attention.cosformer import CosFormer
from flatten_jax.attention.cvt import CvT
from flatten_jax.attention.efficient import Efficient
from flatten_jax.attention.flow import Flow
from flatten_jax.attention.focused import Focused
from flatten_jax.attention.gla import GLA
from flatten_jax.attention.gnconv import GnConv
from flatten_jax.attention.hedgehog import Hedgehog
from flatten_jax.attention.hydra import Hydra
from flatten_jax.attention.hyena import Hyena
from flatten_jax.attention.inline import InLine
from flatten_jax.attention.kernel_rpe import KernelRPE
from flatten_jax.attention.l2vit import L2ViT
from flatten_jax.attention.linear import Linear
from flatten_jax.attention.linear_angular import LinearAngular
from flatten_jax.attention.linformer import Linformer
from flatten_jax.attention.litemla import LiteMLA
from flatten_jax.attention.mhla import MHLA
from flatten_jax.attention.mlla import MLLA, MLLACore
from flatten_jax.attention.ms2d import MS2D
from flatten_jax.attention.nystrom import Nystrom
from flatten_jax.attention.performer import Performer
from flatten_jax.attention.polaformer import PolaFormer
from flatten_jax.attention.rala import MALA, RALA, RALASoftmax
from flatten_jax.attention.skipat import SkipAt
from flatten_jax.attention.soft import SOFT, SOFTPlusPlus
from flatten_jax.attention.softmax import Softmax
from flatten_jax.attention.sret import SReT
from flatten_jax.attention.svt import SVT
from flatten_jax.attention.taylor import Taylor
from flatten_jax.attention.taylorshift import TaylorShift
from flatten_jax.attention.transnormer import TransNormer, TransNormerDiag, TransNormerV2
from flatten_jax.attention.ttt import T5, TTT
from flatten_jax.attention.vicinity import Vicinity
from flatten_jax.attention.xca import XCA
from flatten_jax.ops.initializers import TORCH_CONV, ConvInit

ATTENTIONS: dict[str, type[Attention]] = {
    "agent": Agent,
    "care": Care,
    "circulant": Circulant,
    "cosformer": CosFormer,
    "cvt": CvT,
    "efficient": Efficient,
    "flow": Flow,
    "focused": Focused,
    "gla": GLA,
    "gnconv": GnConv,
    "hedgehog": Hedgehog,
    "hydra": Hydra,
    "hyena": Hyena,
    "inline": InLine,
    "kernel_rpe": KernelRPE,
    "l2vit": L2ViT,
    "linear": Linear,
    "linear_angular": LinearAngular,
    "linformer": Linformer,
    "litemla": LiteMLA,
    "mala": MALA,
    "mhla": MHLA,
    "mlla": MLLA,
    "mlla_core": MLLACore,
    "ms2d": MS2D,
    "nystrom": Nystrom,
    "performer": Performer,
    "polaformer": PolaFormer,
    "rala": RALA,
    "rala_softmax": RALASoftmax,
    "skipat": SkipAt,
    "soft": SOFT,
    "softmax": Softmax,
    "softpp": SOFTPlusPlus,
    "sret": SReT,
    "svt": SVT,
    "t5": T5,
    "taylor": Taylor,
    "taylorshift": TaylorShift,
    "transnormer": TransNormer,
    "transnormer_diag": TransNormerDiag,
    "transnormer_v2": TransNormerV2,
    "ttt": TTT,
    "vicinity": Vicinity,
    "xca": XCA,
}
LETTERS = {"L": "focused", "S": "softmax"}  # those of the FLatten release

_GIVEN_BY_HOST = {"num_heads", "dtype", "conv_init", "parent", "name"}


def attention_class(name: str) -> type[Attention]:
    """The class of a name; ValueError if there is none."""
    if name not in ATTENTIONS:
        close = difflib.get_close_matches(name, ATTENTIONS, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"choose from {', '.join(ATTENTIONS)}"
        raise ValueError(f"attn_type={name!r} is not a known attention; {hint}")
    return ATTENTIONS[name]


def list_attentions() -> list[str]:
    """Names of all attentions, for `attn_type` of `create_model` and for `LinearAttention`."""
    return sorted(ATTENTIONS)


@dataclasses.dataclass(frozen=True)
class AttentionInfo:
    """What one wants to know of an attention before choosing it.

    Attributes:
        name: for `attn_type`.
        origin: paper, code, licence of the code, and the formula in a line.
        options: option -> default.
        class_token: whether it takes one.
        reduced_keys: whether it takes fewer keys than queries.
        windows: whether it works inside windows and stripes.
        scores: whether it forms scores (B, h, N, M), so that its cost grows with N M.
        tied_to: parameter -> what of the grid its shape belongs to, such as "tokens of the keys".
        doc: what it computes, and where it deviates.
    """

    name: str
    origin: Origin
    options: Mapping[str, Any]
    class_token: bool
    reduced_keys: bool
    windows: bool
    scores: bool
    tied_to: Mapping[str, str]
    doc: str


def attention_info(name: str) -> AttentionInfo:
    """The paper, formula, options and limits of an attention.

    Raises:
        ValueError: unknown name (the nearest is named).
    """
    cls = attention_class(name)
    return AttentionInfo(
        name=name,
        origin=cls.origin,
        options=attention_options(name),
        class_token=cls.takes_prefix,
        reduced_keys=cls.takes_reduced,
        windows=cls.takes_windows,
        scores=cls.takes_bias,
        tied_to={
            parameter: "one grid" if sized.along == "fixed" else f"{sized.along} of the {sized.of}"
            for parameter, sized in cls.sized.items()
        },
        doc=inspect.getdoc(cls) or "",
    )


def takes_bias(name: str) -> bool:
    """Whether an attention forms scores, see `Attention`."""
    return attention_class(name).takes_bias


def attention_options(name: str) -> dict[str, Any]:
    """Options (name -> default) of an attention, such as {"focusing_factor": 3, ...} of "focused"."""
    return {f.name: f.default for f in dataclasses.fields(attention_class(name)) if f.name not in _GIVEN_BY_HOST}


def make_attention(
    name: str,
    num_heads: int,
    dtype: jnp.dtype | None = None,
    options: Mapping[str, Any] | None = None,
    conv_init: ConvInit = TORCH_CONV,
) -> Attention:
    """An attention by name.

    Args:
        options: it takes those that are its own, so that stages with other attentions can share them.
    """
    own = {key: options[key] for key in attention_options(name) if key in (options or {})}
    return attention_class(name)(num_heads=num_heads, dtype=dtype, conv_init=conv_init, **own)


def of_stage(options: Mapping[str, Any], stage: int) -> dict[str, Any]:
    """Options of one stage: a tuple has an entry for each."""
    return {key: value[stage] if isinstance(value, tuple) else value for key, value in options.items()}


def pattern(attn_type: str, depths: Sequence[int]) -> list[tuple[str, ...]]:
    """The attention of every block, stage by stage.

    Args:
        attn_type: "inline" is in all blocks, "rala,rala,softmax,softmax" has an entry for each stage. Within a stage
            "focused*4+softmax" has four blocks of the first and then the other, "l2vit/softmax" the two in turn. A
            capital first letter means the release's letters: "LLSS", and "LLMS4" for 4 linear blocks before the
            softmax ones in the stage marked M.
        depths: the number of blocks of each stage.

    Raises:
        ValueError: an unknown name (the nearest is named), or entries that do not fit the stages.
    """
    if attn_type[:1].isupper():
        return _letters(attn_type, depths)
    entries = [entry.strip() for entry in attn_type.split(",")]
    entries = entries * len(depths) if len(entries) == 1 else entries
    if len(entries) != len(depths):
        raise ValueError(
            f"{attn_type=} names {len(entries)} attentions for {len(depths)} stages: write one for all, or one for each"
        )
    return [_stage(entry, depth) for entry, depth in zip(entries, depths, strict=True)]


def _stage(entry: str, depth: int) -> tuple[str, ...]:
    if "/" in entry and ("+" in entry or "*" in entry):
        raise ValueError(f"attn_type entry {entry!r} mixes '/' with '+' or '*': write it out with '+' and '*'")
    if "/" in entry:
        cycle = [name.strip() for name in entry.split("/")]
        names = [cycle[i % len(cycle)] for i in range(depth)]
        written = cycle
    else:
        parts = [[word.strip() for word in part.split("*")] for part in entry.split("+")]
        for part in parts:
            if len(part) > 2 or (len(part) == 2 and not part[1].isdecimal()):
                raise ValueError(f"attn_type entry {entry!r} needs a number of blocks after '*', as in 'focused*4'")
        # The last part without a number takes what is left; a stage may be shallower than its pattern.
        names = [part[0] for part in parts for _ in range(int(part[1]) if len(part) == 2 else depth)][:depth]
        written = [part[0] for part in parts]
        if len(names) < depth:
            raise ValueError(f"attn_type entry {entry!r} says {len(names)} blocks for a stage of {depth}")
    for name in written:
        attention_class(name)
    return tuple(names)


def _letters(attn_type: str, depths: Sequence[int]) -> list[tuple[str, ...]]:
    letters, count = attn_type[: len(depths)], attn_type[len(depths) :]
    if len(letters) < len(depths) or ("M" in letters) != count.isdecimal() or (count and not count.isdecimal()):
        raise ValueError(
            f"{attn_type=} needs {len(depths)} letters, one for each stage, and only after an M among them "
            'the number of its linear blocks, as in "LLMS4"'
        )
    names = {**LETTERS, "M": f"focused*{count or 0}+softmax"}
    unknown = [letter for letter in letters if letter not in names]
    if unknown:
        raise ValueError(f"attn_type={unknown[0]!r} is not a known attention; choose from {', '.join(ATTENTIONS)}")
    return [_stage(names[letter], depth) for letter, depth in zip(letters, depths, strict=True)]
