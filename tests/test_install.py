"""The base install: models, weights and predictions without the packages of the extra `train`."""

import os
import re
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions

import pytest

from flatten_jax import extras

from .command import CACHE, ROOT

OF_FLAX = {"optax", "orbax"}  # which requires them itself, of whatever version
# A process in which nothing of the extra can be imported.
WITHOUT = f"""
import sys

TRAIN = {set(extras.TRAIN)}

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in TRAIN - {OF_FLAX}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Missing())
"""
BASE = """
import jax, numpy as np, flatten_jax
from flatten_jax.cli.main import main

assert not TRAIN & set(sys.modules), "imported with the package"
assert "swin_t" in flatten_jax.list_models() and "rala" in flatten_jax.list_attentions()
options = dict(depth=1, embed_dim=12, num_classes=3, image_size=32)
model = flatten_jax.create_model("deit_t", **options)
shapes = jax.eval_shape(model.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 32, 32, 3), "float32"))
variables = jax.tree.map(lambda x: np.full(x.shape, 0.1, np.float32), shapes)
layer, x = flatten_jax.LinearAttention("linear", num_heads=2), np.ones((1, 4, 4, 8), np.float32)
assert layer.init_with_output(jax.random.key(0), x)[0].shape == x.shape
assert len(flatten_jax.from_torch(flatten_jax.to_torch(variables, model), model)["params"]) == len(variables["params"])
flatten_jax.save_weights("w.safetensors", variables, "deit_t", options)
main(["convert", "w.safetensors", "again.safetensors"])

from flatten_jax.trained.predict import Predictor

prediction, = Predictor.load("again.safetensors")([np.zeros((40, 50, 3), np.uint8)], top=1)
assert prediction.error is None and len(prediction.top) == 1
try:
    main(["--help"])
except SystemExit as ended:
    assert ended.code == 0
"""


def process(code, folder, *arguments):
    command = [sys.executable, "-c", WITHOUT + code, *arguments]
    environment = os.environ | CACHE | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120)


def test_the_extra_is_named_once_for_pip_and_once_for_python():
    extra = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]["train"]
    canonical = [re.split("[<>=]", entry)[0].lower().replace("_", "-") for entry in extra]
    packages = packages_distributions()
    assert sorted(canonical) == sorted(packages[name][0].lower().replace("_", "-") for name in extras.TRAIN)


def test_base_has_models_layers_weights_predictions_and_the_list_of_commands(tmp_path):
    done = process(BASE, tmp_path)
    assert done.returncode == 0, done.stderr
    assert "curves" in done.stdout and "prepare" in done.stdout


LINE = r"error: this needs \w+, which is not installed: pip install 'flatten_jax\[train\]'\n"
COMMAND = "from flatten_jax.cli.main import main; main(sys.argv[1:])"
MAIN = f"import runpy; sys.path.insert(0, {str(ROOT)!r}); sys.argv[0] = 'main.py'; " + (
    f"runpy.run_path({str(ROOT / 'main.py')!r}, run_name='__main__')"
)


@pytest.mark.parametrize(
    ("code", "arguments"),
    [
        (MAIN, [f"--config={ROOT}/configs/digits.py", "--workdir=run"]),
        (COMMAND, ["curves", "run"]),
        (COMMAND, ["prepare", "digits"]),
    ],
    ids=["main.py", "curves", "prepare"],
)
def test_what_needs_the_extra_says_so_in_one_line(code, arguments, tmp_path):
    done = process(code, tmp_path, *arguments)
    assert done.returncode == 1
    assert re.fullmatch(LINE, done.stderr), done.stderr
    assert not list(tmp_path.iterdir())
