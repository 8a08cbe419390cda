"""Weights and images that another framework can make too, from names and shapes alone: see goldens/README.md."""

import json
import zlib
from pathlib import Path

import numpy as np

GOLDENS = Path(__file__).parent / "goldens"


def load(name):
    """A golden's entries, JSON decoded."""
    with np.load(GOLDENS / f"{name}.npz") as file:
        golden = dict(file)
    return {k: json.loads(str(v)) if k in ("keys", "options", "gain", "add") else v for k, v in golden.items()}


def state_dict(keys, gain=(), add=()):
    """PyTorch's state dict, [[name, shape], ...] filled by the rule of the goldens.

    `gain` and `add` hold [suffix, number]: an entry whose name ends with the suffix is that many times as large, or
    larger by that.
    """

    def told(name, numbers, otherwise):
        return np.float32(next((number for suffix, number in numbers if name.endswith(suffix)), otherwise))

    return {name: told(name, gain, 1) * _weight(name, tuple(shape)) + told(name, add, 0) for name, shape in keys}


def images(batch, height, width):
    """(batch, height, width, 3), already normalised."""
    random = np.random.RandomState(20231001).standard_normal((batch, 3, height, width))
    return random.astype(np.float32).transpose(0, 2, 3, 1)


def _weight(name, shape):
    random = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape).astype(np.float32)
    leaf = name.split(".")[-1]
    if name.endswith("piece_attn.conv.weight"):  # MHLA's mixing of blocks, of which the sum normalises
        return (np.abs(random) / np.prod(shape[1:])).astype(np.float32)
    if leaf in ("relative_position_bias_table", "positional_encoding", "scale"):
        return random * np.float32(0.5)
    if leaf.startswith("pos_embed") or leaf in ("cls_token", "absolute_pos_embed"):
        return random * np.float32(0.2)
    if leaf in ("bias", "running_mean"):
        return random * np.float32(0.1)
    if leaf == "running_var":
        return 1 + np.float32(0.1) * np.abs(random)
    if leaf == "weight" and len(shape) == 1:
        return 1 + np.float32(0.1) * random
    return (random / np.sqrt(max(1, np.prod(shape[1:])))).astype(np.float32)
