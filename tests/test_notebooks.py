"""The notebooks, executed as they are, each in a kernel of its own."""

import json
import sys
import time

import nbformat
import pytest
from nbclient import NotebookClient

from .command import CACHE, ROOT

FOLDER = ROOT / "notebooks"
FIGURES = {"attention": 5, "finetune": 1, "linearize": 2, "tour": 3}  # that each shows
SECONDS = 600  # two minutes on two idle cores, and here other tests run beside


def test_none_is_left_out():
    assert sorted(FIGURES) == sorted(path.stem for path in FOLDER.glob("*.ipynb"))


@pytest.mark.parametrize("name", FIGURES)
def test_in_git_are_the_questions_not_the_answers(name):
    notebook = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert not any(cell.outputs or cell.execution_count or cell.metadata for cell in code)
    source = "\n".join(cell.source for cell in notebook.cells)
    assert (
        f"https://colab.research.google.com/github/flatten-jax/flatten_jax/blob/main/notebooks/{name}.ipynb" in source
    )
    assert "https://github.com/flatten-jax/flatten_jax" in code[0].source  # installs where it has to
    assert "from flatten_jax" in source


@pytest.mark.slow
@pytest.mark.parametrize("name", FIGURES)
def test_runs_from_its_folder_without_an_error(name, tmp_path, monkeypatch):
    kernel = tmp_path / "jupyter" / "kernels" / "python3"  # this Python, whatever else a user calls python3
    kernel.mkdir(parents=True)
    argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    (kernel / "kernel.json").write_text(json.dumps({"argv": argv, "display_name": "Python 3", "language": "python"}))
    (tmp_path / "tmp").mkdir()
    environment = {"JUPYTER_PATH": tmp_path / "jupyter", "IPYTHONDIR": tmp_path / "ipython", "TMPDIR": tmp_path / "tmp"}
    # What they compute takes longer than to compile it, so it is compiled well.
    for variable, value in (CACHE | environment | {"XLA_FLAGS": ""}).items():
        monkeypatch.setenv(variable, str(value))

    notebook = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    began = time.monotonic()
    NotebookClient(notebook, timeout=SECONDS, resources={"metadata": {"path": str(FOLDER)}}).execute()
    assert time.monotonic() - began < SECONDS
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == FIGURES[name]
