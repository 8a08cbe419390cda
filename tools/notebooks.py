"""Runs the notebooks and keeps what they show in them: python tools/notebooks.py [notebooks/tour.ipynb ...]

Needs pip install -e '.[test]'. Pictures are kept in 256 colours, so that a notebook stays below 400 kB.
"""

import base64
import hashlib
import io
import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from PIL import Image

FOLDER = Path(__file__).parents[1] / "notebooks"
SECONDS = 1200  # of one cell, on a machine that does other things too


def digest(notebook: nbformat.NotebookNode) -> str:
    """A hash of all code, by which outputs that are older than it are told."""
    code = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    return hashlib.sha256("\n\0".join(code).encode()).hexdigest()[:16]


def execute(path: Path) -> nbformat.NotebookNode:
    """The notebook with its outputs, run in its own folder."""
    notebook = nbformat.read(path, as_version=4)
    resources = {"metadata": {"path": str(path.parent)}}
    options = dict(timeout=SECONDS, record_timing=False, coalesce_streams=True, resources=resources)
    NotebookClient(notebook, **options).execute()
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
        "executed": digest(notebook),
    }
    for cell in notebook.cells:
        for output in cell.get("outputs", ()):
            if "image/png" in output.get("data", {}):
                output.data["image/png"] = _smaller(output.data["image/png"])
    return notebook


def _smaller(png: str) -> str:
    image, file = Image.open(io.BytesIO(base64.b64decode(png))), io.BytesIO()
    image.convert("RGB").quantize(256).save(file, "PNG", optimize=True)
    return base64.b64encode(file.getvalue()).decode()


if __name__ == "__main__":
    for path in map(Path, sys.argv[1:] or sorted(FOLDER.glob("*.ipynb"))):
        nbformat.write(execute(path), path)
        print(f"written: {path}, {path.stat().st_size / 1000:.0f} kB")
