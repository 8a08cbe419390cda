"""What a benchmark gives: rows with their spread, the machine they were measured on, a table and a JSON file."""

import datetime
import functools
import json
import platform
import subprocess
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import jax

from flatten_jax.bench.timing import Spread
from flatten_jax.runtime import cores


@dataclass(frozen=True)
class Result:
    """Measurements of one kind: rows with the same columns, and where they were made."""

    title: str
    rows: list[dict[str, Any]]
    made_on: dict[str, Any] = field(default_factory=lambda: hardware())


def hardware() -> dict[str, Any]:
    """The machine and the versions that a measurement depends on."""
    versions = {}
    for name in ("flatten_jax", "jax", "jaxlib", "flax"):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "unknown"
    device = jax.devices()[0]
    # Says the versions of CUDA or of libtpu.
    backend = {} if device.platform == "cpu" else {"backend": " ".join(device.client.platform_version.split())}
    return {
        "device": device.device_kind,
        "devices": jax.device_count(),
        "processor": _processor(),
        "cores": cores(),
        "python": platform.python_version(),
        **backend,
        **versions,
        "date": datetime.date.today().isoformat(),
    }


@functools.cache
def commit() -> str:
    """The commit that this code is of, with "+" where files were changed since; "unknown" outside of a checkout.

    As it is when first asked: what is committed while a program runs is not what it runs.
    """
    git = ("git", "-C", str(Path(__file__).parent))
    try:
        head = subprocess.run((*git, "rev-parse", "--short=12", "HEAD"), capture_output=True, text=True, check=True)
        changed = subprocess.run((*git, "diff", "--quiet", "HEAD", "--", ":/flatten_jax"), capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return head.stdout.strip() + "+" * bool(changed.returncode)


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")


def line(row: dict[str, Any]) -> str:
    """A row as it comes, while others are still measured."""
    return "  ".join(f"{name} {cell(value)}" for name, value in row.items())


def table(result: Result) -> str:
    """A Markdown table; spreads are written median (lowest-highest)."""
    columns = list(dict.fromkeys(name for row in result.rows for name in row))
    lines = [columns, ["---"] * len(columns)]
    lines += [[cell(row[name]) if name in row else "" for name in columns] for row in result.rows]
    body = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
    machine = ", ".join(f"{name} {value}" for name, value in result.made_on.items())
    return f"\n{result.title} ({machine})\n\n{body}"


def cell(value: Any) -> str:
    """A value in a table: two or three digits, spreads as median (lowest-highest)."""
    if isinstance(value, Spread):
        digits = max(0, 2 - len(str(int(value.median)))) + (value.median < 10)
        return f"{value:.{digits}f}"
    if isinstance(value, float):
        return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return str(value)


def write_json(path: Path, results: list[Result], overwrite: bool = False) -> None:
    """All results in one file; FileExistsError rather than replace one."""
    if path.exists() and not overwrite:
        raise FileExistsError(f"{path} exists already; it was not overwritten")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps([asdict(result) for result in results], indent=1) + "\n")


def read_json(path: Path) -> list[Result]:
    """What `write_json` wrote."""

    def restore(value: dict[str, Any]) -> Any:
        return Spread(**value) if value.keys() == {"median", "low", "high"} else value

    return [Result(**result) for result in json.loads(path.read_text(), object_hook=restore)]
