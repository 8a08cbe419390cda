"""Names of PyTorch entries as people have them: wrapped, in a larger model, or timm's and OpenMMLab's present ones."""

import re
from collections import Counter
from collections.abc import Callable, Container, Iterable, Mapping
from typing import NamedTuple

import numpy as np

# What DistributedDataParallel puts before names, and torch.compile, activation checkpointing and FSDP into them.
_WRAPPERS = re.compile(r"(?:^|(?<=\.))(?:_orig_mod|_checkpoint_wrapped_module|_fsdp_wrapped_module)\.")
_PARALLEL = re.compile(r"^(?:module\.)+")
_DEPTH = 3  # of the part of a model that is looked for
_FEW = 4  # entries that make no model
_INSIDE = "backbone."
# An entry that only the original has -> whose it is.
_ALSO_IN_TIMM = {
    "layers.0.downsample.norm.weight": "Microsoft's Swin and the FLatten release",
    "block1.0.mlp.dwconv.dwconv.weight": "the official PVTv2 and the FLatten release",
}

Arrays = Mapping[str, np.ndarray]


def unwrapped(label: str, arrays: Arrays) -> tuple[dict[str, np.ndarray], list[str]]:
    """(entries without what wrappers put before and into their names, lines for a report).

    Raises:
        ValueError: names that are then the same.
    """
    named = {name: _PARALLEL.sub("", _WRAPPERS.sub("", name)) for name in arrays}
    if len(set(named.values())) < len(named):
        twice = next(name for name, count in Counter(named.values()).items() if count > 1)
        raise ValueError(
            f"{label} holds the same names with and without the prefix 'module.' or '_orig_mod.', such as {twice!r}"
        )
    gone = {word for name in arrays for word in _WRAPPERS.findall(name)}
    gone |= {word for name in arrays for word in _PARALLEL.findall(_WRAPPERS.sub("", name))}
    said = [f"names are taken without {', '.join(map(repr, sorted(gone)))}"] if gone else []
    return {new: arrays[old] for old, new in named.items()}, said


def fitting(label: str, arrays: Arrays, wanted: Container[str]) -> tuple[dict[str, np.ndarray], list[str], list[str]]:
    """The part of some weights that has the most names of a model, under the model's names.

    Args:
        label: how an error begins.
        arrays: of a whole model, or of a larger one that it is the backbone of.
        wanted: the names of the model.

    Returns:
        (name -> array, lines for a report of what changes nothing, lines of what was left out).

    Raises:
        ValueError: two parts fit equally well.
    """
    parts = {prefix: renamed(part) for prefix, part in _parts(arrays).items()}
    votes = {prefix: sum(name in wanted for name in part.arrays) for prefix, part in parts.items()}
    most = max(votes.values())
    best = [prefix for prefix, count in votes.items() if count == most]
    if "" in best:
        best = [""]
    if len(best) > 1:
        raise ValueError(f"{label} holds this model under {' and under '.join(best)}: choose one with key= (--key)")
    (prefix,) = best
    said = [f"names are taken without {prefix!r}"] if prefix else []
    return parts[prefix].arrays, said + parts[prefix].said, _others(arrays, prefix)


def likely(arrays: Arrays) -> tuple[dict[str, np.ndarray], list[str], list[str]]:
    """As `fitting`, where no model is known: without what all names share, else the part that is a `backbone`."""
    prefix = _shared(arrays)
    if f"{prefix}backbone." in _parts(arrays):
        prefix = f"{prefix}backbone."
    part = renamed({name[len(prefix) :]: array for name, array in arrays.items() if name.startswith(prefix)})
    said = [f"names are taken without {prefix!r}"] if prefix else []
    return part.arrays, said + part.said, _others(arrays, prefix)


def not_timms(names: Container[str]) -> str:
    """A note for exported weights whose original is in timm too, under other names; "" for others."""
    for name, original in _ALSO_IN_TIMM.items():
        if name in names:
            return f"the names are those of {original}, not timm's, whose class does not load them"
    return ""


class Renamed(NamedTuple):
    """Entries under names of ours, and lines for a report."""

    arrays: dict[str, np.ndarray]
    said: list[str]


def renamed(arrays: Arrays) -> Renamed:
    """Entries that have the present names of another library, under those of the originals; others as they are."""
    for names in _LIBRARIES:
        if names.of(arrays):
            new = {names.name(name): names.array(name, array) for name, array in arrays.items()}
            return Renamed(new, [f"names are {names.whose}"])
    inside = {name.removeprefix(_INSIDE): array for name, array in arrays.items() if name.startswith(_INSIDE)}
    if inside and (part := renamed(inside)).said:  # of a segmenter
        others = {name: array for name, array in arrays.items() if not name.startswith(_INSIDE)}
        return Renamed(others | {f"{_INSIDE}{name}": array for name, array in part.arrays.items()}, part.said)
    return Renamed(dict(arrays), [])


class _Names(NamedTuple):
    """How a library calls the entries of a model.

    Attributes:
        whose: for a report.
        of: whether entries have these names.
        rules: (pattern, replacement), one after the other; a function gets the numbers of the match.
        array: (their name, array) -> the array as the original has it.
    """

    whose: str
    of: Callable[[Arrays], bool]
    rules: tuple[tuple[str, str | Callable[..., str]], ...]
    array: Callable[[str, np.ndarray], np.ndarray] = lambda name, array: array

    def name(self, name: str) -> str:
        for pattern, new in self.rules:
            name = re.sub(pattern, new if isinstance(new, str) else lambda m, f=new: f(int(m[1])), name)
        return name


def _has(*names: str) -> Callable[[Arrays], bool]:
    return lambda arrays: all(name in arrays for name in names)


def _is_timm_swin(arrays: Arrays) -> bool:
    """There a stage begins with the merging of patches: from the stage before, whose width is half of its own."""
    of_merging, of_block = (arrays.get(f"layers.1.{n}.weight") for n in ("downsample.norm", "blocks.0.norm1"))
    return of_merging is not None and of_block is not None and of_merging.shape[0] == 2 * of_block.shape[0]


def _of_merging(name: str, array: np.ndarray) -> np.ndarray:
    """OpenMMLab merges by nn.Unfold: channels first, then right, then down; the original goes down first."""
    if ".downsample.reduction." not in name and ".downsample.norm." not in name:
        return array
    split = array.reshape(*array.shape[:-1], array.shape[-1] // 4, 2, 2)
    return np.ascontiguousarray(np.moveaxis(split, (-3, -2, -1), (-1, -2, -3))).reshape(array.shape)


_LIBRARIES = (
    _Names(
        "timm's of Swin",
        _is_timm_swin,
        ((r"^layers\.(\d+)\.downsample\.", lambda i: f"layers.{i - 1}.downsample."), (r"^head\.fc\.", "head.")),
    ),
    _Names(
        "timm's of PVTv2",
        _has("stages.0.blocks.0.mlp.dwconv.weight", "patch_embed.proj.weight"),
        (
            (r"^patch_embed\.", "patch_embed1."),
            (r"^stages\.(\d+)\.downsample\.", lambda i: f"patch_embed{i + 1}."),
            (r"^stages\.(\d+)\.norm\.", lambda i: f"norm{i + 1}."),
            (r"^stages\.(\d+)\.blocks\.", lambda i: f"block{i + 1}."),
            (r"\.mlp\.dwconv\.", ".mlp.dwconv.dwconv."),
        ),
    ),
    _Names(
        "OpenMMLab's of Swin",
        _has("stages.0.blocks.0.attn.w_msa.qkv.weight"),
        (
            (r"^stages\.", "layers."),
            (r"^patch_embed\.projection\.", "patch_embed.proj."),
            (r"\.attn\.w_msa\.", ".attn."),
            (r"\.ffn\.layers\.0\.0\.", ".mlp.fc1."),
            (r"\.ffn\.layers\.1\.", ".mlp.fc2."),
        ),
        _of_merging,
    ),
)


def _parts(arrays: Arrays) -> dict[str, dict[str, np.ndarray]]:
    """The entries below each module that is no item of a list, and that may be a model: prefix -> entries, "" all."""
    counts: Counter[str] = Counter()
    for name in arrays:
        modules = name.split(".")[:-1][:_DEPTH]
        for depth, module in enumerate(modules, 1):
            if module.isdecimal():
                break
            counts[".".join(modules[:depth]) + "."] += 1
    prefixes = ["", *(prefix for prefix, count in counts.items() if count >= _FEW)]
    return {p: {n[len(p) :]: array for n, array in arrays.items() if n.startswith(p)} for p in prefixes}


def _shared(names: Iterable[str]) -> str:
    """The modules that all names begin with, items of lists excluded."""
    first, *others = (name.split(".")[:-1] for name in names)
    shared = []
    for depth, module in enumerate(first):
        if module.isdecimal() or any(other[depth : depth + 1] != [module] for other in others):
            break
        shared.append(f"{module}.")
    return "".join(shared)


def _others(arrays: Arrays, prefix: str) -> list[str]:
    left = Counter(name.partition(".")[0] for name in arrays if not name.startswith(prefix))
    if not left:
        return []
    listed = ", ".join(f"{module}{f' ({count})' if count > 1 else ''}" for module, count in left.items())
    return [f"only what is under {prefix!r} was taken; left out: {listed}"]
