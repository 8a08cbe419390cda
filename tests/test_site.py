"""The site: every public name is in its reference, and it builds without a warning."""

import re
import subprocess
import sys

import flatten_jax

from .command import ROOT


def test_the_reference_has_every_public_name():
    named = re.findall(r"^::: flatten_jax\.(\w+)$", (ROOT / "docs/api.md").read_text(), re.MULTILINE)
    assert sorted(named) == sorted(set(flatten_jax.__all__) - {"__version__"})


def test_it_builds_without_a_warning(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "Focused" in (tmp_path / "site/api.html").read_text()
