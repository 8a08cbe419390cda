"""How long the TPU compiler's schedule of each instruction is: the bundles of its final code, dumped as it compiles.

A bundle is what a core issues in one cycle where nothing is waited for. The dump is that of libtpu 0.0.42.
"""

import math
import os
import re
import tempfile
from pathlib import Path

_BUNDLE = re.compile(r"^ *(?:0x[0-9a-f]+|0) +(?:[A-Z]{2})? *: *(>*) *\{")  # address, kind of region, loops around it
_BOUNDS = re.compile(r"iteration_bounds: \(([\d, ]+)\)")
_EXIT = re.compile(r", (\d+) /\* loop exit test \*/")
_FILE = re.compile(r"^\d+-(.+)-\d+-final_bundles\.txt$")


def dump_to() -> tempfile.TemporaryDirectory:
    """A new folder that libtpu will write to, gone with the object or the process.

    It has to be made before anything describes a TPU: libtpu reads LIBTPU_INIT_ARGS, which this adds to, but once.
    """
    folder = tempfile.TemporaryDirectory(prefix="bundles_")
    flags = f"--xla_jf_dump_to={folder.name} --xla_jf_dump_llo_text=true"
    flags += " --xla_jf_dump_llo_pass_label_regex=^(final_bundles|deduplication-map)"
    os.environ["LIBTPU_INIT_ARGS"] = f"{os.environ.get('LIBTPU_INIT_ARGS', '')} {flags}".strip()
    return folder


def collect(folder: Path) -> dict[str, int]:
    """Cycles of each instruction of the program compiled last, by its name; empties the folder for the next.

    Raises:
        ValueError: there are none.
    """
    cycles: dict[str, int] = {}
    for path in folder.glob("*-final_bundles.txt"):
        if name := _FILE.match(path.name):
            cycles[name[1]] = scheduled(path.read_text())
    for path in folder.glob("*deduplication-map.txt"):
        for same in re.split(r"^key:", path.read_text(), flags=re.MULTILINE):
            key, *names = re.findall(r"^ *([\w.-]+)$", same, re.MULTILINE) or [""]  # instructions with the code of one
            cycles |= {name: cycles[key] for name in names if key in cycles}
    if not cycles:
        raise ValueError(f"libtpu wrote no bundles to {folder}: a roof needs libtpu 0.0.42, or one that dumps alike")
    for path in folder.iterdir():
        path.unlink()
    return cycles


def scheduled(text: str) -> int:
    """Cycles of one instruction's code: bundles, those of its loop over blocks as often as there are blocks.

    Loops within that loop are counted once. Not counted is what is waited for: memory, or another core.
    """
    total, looped, bounds, turns = 0, 0, 0, 0
    for line in text.splitlines():
        if found := _BOUNDS.search(line):
            bounds = math.prod(int(side) for side in found[1].split(","))
        if found := _BUNDLE.match(line):
            total += 1
            looped += bool(found[1])
        if found := _EXIT.search(line):
            turns = int(found[1])
    return total - looped + looped * (bounds or turns or 1)
