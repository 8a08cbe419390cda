"""The notebooks: what they show in git is of their code, and they run, each in a kernel of its own."""

import json
import runpy
import sys
import time

import nbformat
import pytest
from nbclient import NotebookClient

from .command import CACHE, ROOT

FOLDER = ROOT / "notebooks"
FIGURES = {"attention": 5, "finetune": 1, "linearize": 2, "tour": 3}  # that each shows
# What they compute for longest, in fewer steps or blocks where nothing that they say depends on how many there are.
SHORTER = {
    "attention": {"config.model.depth = 3": "config.model.depth = 1"},
    "finetune": {
        "--config.train.epochs=10": "--config.train.epochs=3",
        'interrupt_at="step 60/"': 'interrupt_at="step 5/"',
        "log_every_steps=30": "log_every_steps=5",
    },
}
SECONDS = 600  # a minute or so on two idle cores, and here other tests run beside
LARGEST = 400_000  # bytes in git
TOOL = runpy.run_path(str(ROOT / "tools/notebooks.py"))


def test_none_is_left_out():
    assert sorted(FIGURES) == sorted(path.stem for path in FOLDER.glob("*.ipynb"))


@pytest.mark.parametrize("name", FIGURES)
def test_in_git_are_the_questions_with_their_answers(name):
    notebook = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    source = "\n".join(cell.source for cell in notebook.cells)
    assert (
        f"https://colab.research.google.com/github/flatten-jax/flatten_jax/blob/main/notebooks/{name}.ipynb" in source
    )
    assert "https://github.com/flatten-jax/flatten_jax" in code[0].source  # installs where it has to
    assert "from flatten_jax" in source

    again = f"python tools/notebooks.py notebooks/{name}.ipynb"
    assert notebook.metadata.get("executed") == TOOL["digest"](notebook), again
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert not any(cell.metadata for cell in code)
    outputs = [output for cell in code for output in cell.outputs]
    assert {output.output_type for output in outputs} <= {"stream", "display_data", "execute_result"}  # no error
    assert _figures(outputs) == FIGURES[name]
    assert (FOLDER / f"{name}.ipynb").stat().st_size < LARGEST


def _figures(outputs):
    return sum("image/png" in output.get("data", {}) for output in outputs)


@pytest.mark.slow
@pytest.mark.parametrize("name", FIGURES)
def test_runs_from_its_folder_without_an_error(name, tmp_path, monkeypatch):
    kernel = tmp_path / "jupyter" / "kernels" / "python3"  # this Python, whatever else a user calls python3
    kernel.mkdir(parents=True)
    argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    (kernel / "kernel.json").write_text(json.dumps({"argv": argv, "display_name": "Python 3", "language": "python"}))
    (tmp_path / "tmp").mkdir()
    environment = {"JUPYTER_PATH": tmp_path / "jupyter", "IPYTHONDIR": tmp_path / "ipython", "TMPDIR": tmp_path / "tmp"}
    # What the others compute takes longer than to compile it, so it is compiled well.
    for variable, value in (CACHE | environment | ({} if name in SHORTER else {"XLA_FLAGS": ""})).items():
        monkeypatch.setenv(variable, str(value))

    notebook = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    for written, shorter in SHORTER.get(name, {}).items():
        (cell,) = (cell for cell in notebook.cells if cell.cell_type == "code" and written in cell.source)
        cell.source = cell.source.replace(written, shorter)
    began = time.monotonic()
    NotebookClient(notebook, timeout=SECONDS, resources={"metadata": {"path": str(FOLDER)}}).execute()
    assert time.monotonic() - began < SECONDS
    assert _figures([output for cell in notebook.cells for output in cell.get("outputs", ())]) == FIGURES[name]
