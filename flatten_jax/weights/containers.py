"""Where the weights are in what a file holds: containers that people save them in, and what lies beside the tensors."""

import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from flatten_jax.weights.pickle_values import NumpyArray, Opaque, Tensor

# Keys of weights and of their moving averages, the first that is there counts. DINO's teacher is its student's average.
PLAIN = ("model", "state_dict", "model_state_dict", "module", "weights", "params", "net", "network", "student")
AVERAGED = ("model_ema", "state_dict_ema", "ema_state_dict", "ema_model", "ema", "params_ema", "teacher")
_OF_TRAINING = ("optim", "lr_sched", "sched", "scaler", "rng", "random")  # how names of what is no model begin
_DEPTH = 3


class Weights(NamedTuple):
    """The tensors of a state dict, and what is to be said.

    Attributes:
        key: where they were, such as "model" or "state_dict.model"; "" for the top level.
        entries: name -> tensor, whatever the kind that was given.
        left: what lay beside them and is no tensor, for people.
        notes: lines for a report.
    """

    key: str
    entries: dict[str, Any]
    left: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def remarks(self) -> list[str]:
        """`left` as a line for a report, if there is any."""
        more = ", ..." if len(self.left) > 8 else ""
        return [f"no tensors, left out: {', '.join(self.left[:8])}{more}"] if self.left else []


def weights_in(label: str, content: Any, *, ema: bool = False, key: str | None = None) -> Weights:
    """The state dict in `content`: at the key that is asked for, at one that is known, at the top, or the only one.

    Args:
        label: how messages begin, such as the file's name.
        content: dicts, lists of pairs, and tensors of any library.
        ema: take the moving average.
        key: dict keys joined by ".", the last parts of which may be a beginning of names: "state_dict.backbone".

    Raises:
        ValueError: no weights, or several; it lists what is there, with sizes.
    """
    top = _as_mapping(content)
    if top is None:
        raise ValueError(
            f"{label} holds {kind_of(content)}, not a state dict: save that, torch.save(model.state_dict(), path)"
        )
    if key:
        if ema:
            raise ValueError(f"{key=} (--key) and ema=True (--ema) both choose the weights of {label}: give one")
        found = _at(top, key)
        if not found:
            raise ValueError(f"{label} has no weights under {key!r}; it holds {_listing(top)}")
        return _weights(label, key, found)

    plain, averaged = ({k: at for k in keys if k in top and (at := _inside(k, top[k]))} for keys in (PLAIN, AVERAGED))
    has_own = any(map(is_numbers, top.values()))
    if ema and not averaged:
        entries = ", ".join(map(str, list(top)[:8]))
        raise ValueError(
            f"{label} holds no moving average ({', '.join(AVERAGED)}), only {entries}: leave ema (--ema) out"
        )
    if not ema and averaged and not plain and not has_own:
        raise ValueError(
            f"{label} holds only a moving average, {next(iter(averaged))!r}: ask for it with ema=True (--ema)"
        )
    if found := averaged if ema else plain:
        (took, at), *others = found.items()
        notes = [f"the file holds {' and '.join(map(repr, found))}: took {took!r}; key= (--key) takes another"]
        notes = notes if others else []
        if plain and averaged:
            left, other = (
                (next(iter(plain)), "without ema (--ema)") if ema else (next(iter(averaged)), "ema=True (--ema)")
            )
            notes.append(f"the file holds weights and their moving average: took {took!r}; {other} takes {left!r}")
        return _weights(label, *at, tuple(notes))
    if has_own:
        return _weights(label, "", top)
    sets = [(path, entries) for path, entries in _sets(top) if not path.startswith(_OF_TRAINING)]
    if len(sets) != 1:
        many = "several sets of weights" if sets else "no weights"
        way = ": choose one with key= (--key)" if sets else ""
        raise ValueError(f"{label} holds {many}: {_listing(top)}{way}")
    return _weights(label, *sets[0])


def is_numbers(value: Any) -> bool:
    """Whether a value is a tensor, of a file, of NumPy, of JAX or of PyTorch."""
    if isinstance(value, NumpyArray):
        return value.dtype is not None
    return isinstance(value, Tensor) or (hasattr(value, "shape") and hasattr(value, "dtype"))


def kind_of(value: Any) -> str:
    """What a value is, for people: "an int", "a list"."""
    name = value.name if isinstance(value, Opaque) else type(value).__name__.lstrip("_")
    name = "None" if value is None else name if "." in name else name.lower()
    return name if value is None else f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


def is_tree(tree: Mapping[Any, Any]) -> bool:
    """Whether this is a Flax model's: dicts in dicts, of names without points, down to arrays such as a `kernel`."""
    return (
        _is_branch(tree)
        and ("params" in tree or _has_kernel(tree))
        and any(isinstance(v, Mapping) for v in tree.values())
    )


def _has_kernel(tree: Mapping[Any, Any]) -> bool:
    return "kernel" in tree or any(_has_kernel(value) for value in tree.values() if isinstance(value, Mapping))


def _is_branch(tree: Mapping[Any, Any]) -> bool:
    return all(
        isinstance(name, str) and "." not in name and (_is_branch(v) if isinstance(v, Mapping) else is_numbers(v))
        for name, v in tree.items()
    )


def _weights(label: str, key: str, entries: Mapping[Any, Any], notes: tuple[str, ...] = ()) -> Weights:
    tensors = {str(name): value for name, value in entries.items() if is_numbers(value)}
    if not tensors:
        raise ValueError(f"{label} holds no tensors{f' under {key!r}' if key else ''}: {_listing(entries)}")
    left = tuple(f"{name} ({kind_of(value)})" for name, value in entries.items() if not is_numbers(value))
    return Weights(key, tensors, left, notes)


def _as_mapping(value: Any) -> Mapping[Any, Any] | None:
    """A dict as it is; a list of (name, tensor) as one."""
    if isinstance(value, Mapping):
        return value
    pairs = (
        isinstance(value, list | tuple)
        and value
        and all(isinstance(pair, list | tuple) and len(pair) == 2 and isinstance(pair[0], str) for pair in value)
    )
    return dict(value) if pairs and any(is_numbers(v) for _, v in value) else None


def _inside(path: str, value: Any, depth: int = _DEPTH) -> tuple[str, Mapping[Any, Any]] | None:
    """(path, entries) of the weights in the value of a known key, which may be containers again."""
    entries = _as_mapping(value)
    if entries is None or depth == 0:
        return None
    if any(map(is_numbers, entries.values())):
        return path, entries
    for known in (*PLAIN, *AVERAGED):
        if known in entries and (found := _inside(f"{path}.{known}", entries[known], depth - 1)):
            return found
    sets = [
        (p, e) for p, e in _sets(entries, path, depth - 1) if not p.removeprefix(f"{path}.").startswith(_OF_TRAINING)
    ]
    return sets[0] if len(sets) == 1 else None


def _at(entries: Mapping[Any, Any], key: str) -> Mapping[Any, Any]:
    """What lies at `key`: a dict, or the entries whose names begin with it, without that."""
    if key in entries and (found := _as_mapping(entries[key])) is not None:
        inner = _inside("", found)
        return inner[1] if inner else found
    for name, value in entries.items():
        inner = _as_mapping(value) if isinstance(name, str) and key.startswith(f"{name}.") else None
        if inner and (found := _at(inner, key.removeprefix(f"{name}."))):
            return found
    start = key.rstrip(".") + "."
    return {n.removeprefix(start): v for n, v in entries.items() if isinstance(n, str) and n.startswith(start)}


def _sets(entries: Mapping[Any, Any], path: str = "", depth: int = _DEPTH) -> Iterator[tuple[str, Mapping[Any, Any]]]:
    """(path, entries) of all dicts in `entries` that hold tensors; not those within such ones."""
    for name, value in entries.items():
        inner, here = _as_mapping(value), f"{path}.{name}" if path else str(name)
        if inner is None or not isinstance(name, str) or depth == 0:
            continue
        if any(map(is_numbers, inner.values())):
            yield here, inner
        else:
            yield from _sets(inner, here, depth - 1)


def _listing(entries: Mapping[Any, Any], most: int = 12) -> str:
    """What is there, for people: dicts with the numbers of their tensors, and the kinds of the rest."""
    sets = dict(_sets(entries))
    said = [f"{path} ({_size(inner)})" for path, inner in sets.items()]
    if own := {name: value for name, value in entries.items() if is_numbers(value)}:
        said.insert(0, f"names such as {next(iter(own))} ({_size(own)})")
    tops = {path.partition(".")[0] for path in sets}
    said += [f"{k} ({kind_of(v)})" for k, v in entries.items() if not is_numbers(v) and str(k) not in tops]
    return ", ".join(said[:most]) + (", ..." if len(said) > most else "") or "nothing"


def _size(entries: Mapping[Any, Any]) -> str:
    shapes = [value.shape for value in entries.values() if is_numbers(value)]
    return f"{len(shapes):,} tensors, {sum(map(math.prod, shapes)):,} numbers"
