"""Is a checkpoint what was saved? A checksum for every leaf, and one line for what is damaged or does not fit.

Orbax commits a step atomically, but restores flipped bits and casts dtypes without a word.
"""

import json
import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tensorstore
from etils import epath

Manifest = dict[str, dict[str, Any]]  # leaf -> its dtype, shape and checksum

MAX_LISTED = 20
# What Orbax and we write into every step; a step without one of these was never whole.
_JSON_FILES = ("_CHECKPOINT_METADATA", "state/_METADATA", "position/metadata", "manifest/metadata")


class DamagedCheckpointError(ValueError):
    """Files of a checkpoint are missing, unreadable, or not what was saved."""


def named_leaves(tree: Any) -> dict[str, Any]:
    """{"params.blocks_0.norm1.scale": leaf}, the names under which Orbax stores them."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}


def make_manifest(tree: Any) -> Manifest:
    """dtype, shape and checksum of every leaf, computed where the arrays are. All processes have to call it."""
    leaves = named_leaves(tree)
    checksums = jax.device_get({name: _on_device(leaf) for name, leaf in leaves.items()})
    return {name: {**_kind(leaf), "checksum": int(checksums[name])} for name, leaf in leaves.items()}


def checksum(x: Any, xp: Any = np) -> Any:
    """uint32 sum over all elements of a hash of their bits and place (the finaliser of MurmurHash3).

    It is the same for every sharding, needs no gathering, and differs for certain where one element differs, otherwise
    with probability 1 - 2^-32.

    Args:
        x: an array of up to 32 bits an element.
        xp: numpy, or jax.numpy for arrays on devices.
    """
    x = x.reshape(x.shape or (1,))
    h = x.view(f"uint{8 * x.dtype.itemsize}").astype(xp.uint32)
    stride = 0x9E3779B9
    for axis in reversed(range(x.ndim)):
        place = xp.arange(x.shape[axis], dtype=xp.uint32) * xp.uint32(stride)
        h = h + xp.expand_dims(place, tuple(a for a in range(x.ndim) if a != axis))
        stride = stride * x.shape[axis] % 2**32
    h = (h ^ (h >> 16)) * xp.uint32(0x85EBCA6B)
    h = (h ^ (h >> 13)) * xp.uint32(0xC2B2AE35)
    return (h ^ (h >> 16)).sum(dtype=xp.uint32)


_on_device = jax.jit(lambda x: checksum(x, jnp))


def check_restored(tree: Any, manifest: Manifest, where: str) -> None:
    """DamagedCheckpointError where arrays that were read are not those that were saved."""
    now = make_manifest(tree)
    wrong = [name for name in now if now[name]["checksum"] != manifest[name]["checksum"]]
    if wrong:
        raise DamagedCheckpointError(f"{where}: checksum mismatch of {_listed(wrong)}")


def differences(manifest: Manifest, target: Any) -> list[str]:
    """What a checkpoint and the state to restore disagree on, a line for each leaf: names, shapes, dtypes."""
    wanted = {name: _kind(leaf) for name, leaf in named_leaves(target).items()}
    lines = [f"{name} is in the checkpoint, not in this run" for name in manifest if name not in wanted]
    lines += [f"{name} is in this run, not in the checkpoint" for name in wanted if name not in manifest]
    for name in wanted.keys() & manifest.keys():
        for key, ours in wanted[name].items():
            if manifest[name][key] != ours:
                lines.append(f"{name}: {key} {manifest[name][key]} in the checkpoint, {ours} in this run")
    return sorted(lines)


def check_committed(folder: epath.Path) -> None:
    """DamagedCheckpointError where a step's folder lacks what a committed step has: empty, half-copied, garbage."""
    for name in (*_JSON_FILES, *(["metrics/metrics"] if (folder / "metrics").exists() else [])):
        try:
            json.loads((folder / name).read_text())
        except FileNotFoundError:
            raise DamagedCheckpointError(f"step {folder.name} is incomplete: {folder / name} is missing") from None
        except (ValueError, OSError) as error:
            raise DamagedCheckpointError(f"step {folder.name}: {folder / name} is garbage ({error})") from None


def check_step(folder: epath.Path) -> None:
    """Read a whole step, a leaf at a time, on this process alone; DamagedCheckpointError names leaf and file."""
    check_committed(folder)
    manifest = read_manifest(folder)
    stored = json.loads((folder / "state" / "_METADATA").read_text()).get("tree_metadata", {})
    names = {".".join(key["key"] for key in entry["key_metadata"]) for entry in stored.values()}
    if missing := [name for name in manifest if name not in names]:
        raise DamagedCheckpointError(
            f"step {folder.name}: {folder}/state/_METADATA is garbage (it lacks {_listed(missing)})"
        )
    for name in manifest:
        read_leaf(folder, name, manifest)


def read_manifest(folder: epath.Path) -> Manifest:
    return json.loads((folder / "manifest" / "metadata").read_text())["leaves"]


def read_leaf(folder: epath.Path, name: str, manifest: Mapping[str, Mapping[str, Any]]) -> np.ndarray:
    """An array of a step, compared with its checksum."""
    base = str(folder / "state") if "://" in str(folder) else f"file://{folder}/state"
    spec = {"driver": "auto", "kvstore": {"driver": "ocdbt", "base": base, "path": f"{name}/"}}
    try:
        array = np.asarray(tensorstore.open(spec, read=True, open=True).result().read().result())
    except Exception as error:  # TensorStore raises ValueError for most; whatever it is, this step is unusable
        files = re.findall(r'local file "([^"]+)"', str(error)) or [f"{folder}/state"]
        raise DamagedCheckpointError(
            f"step {folder.name}, leaf {name}: {max(files, key=len)} cannot be read ({last_cause(error)})"
        ) from None
    if int(checksum(array)) != manifest[name]["checksum"]:
        raise DamagedCheckpointError(
            f"step {folder.name}, leaf {name}: checksum mismatch, the arrays in {folder}/state are not what was saved"
        )
    return array


def _kind(leaf: Any) -> dict[str, Any]:
    return {"dtype": str(leaf.dtype), "shape": list(leaf.shape)}


def last_cause(error: Exception) -> str:
    """The end of TensorStore's chain of causes, without its specification: "No space left on device", say."""
    return str(error).splitlines()[0].split(" [")[0].rsplit('": ', 1)[-1]


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - MAX_LISTED} more" if len(names) > MAX_LISTED else ""
    return ", ".join(names[:MAX_LISTED]) + more
