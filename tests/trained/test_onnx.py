"""Models in their plain forms, which converters take, and as ONNX where jax2onnx is installed."""

import importlib.util
import re

import jax
import numpy as np
import pytest

from flatten_jax.cli.main import main
from flatten_jax.models import abstract_variables, create_model
from flatten_jax.ops.platform import plain_forms
from flatten_jax.trained.onnx import converted, export_onnx

from ..command import ROOT
from .test_stablehlo import SMALL


def small(family):
    name, options = SMALL[family]
    model = create_model(name, image_size=32, num_classes=5, **options)
    rng = np.random.default_rng(0)
    variables = jax.tree.map(
        lambda x: (0.2 * rng.standard_normal(x.shape)).astype(np.float32), abstract_variables(model)
    )
    images = rng.standard_normal((3, 32, 32, 3), np.float32)
    return model, variables, images, np.asarray(jax.jit(model.apply)(variables, images))


@pytest.mark.parametrize("family", SMALL)
def test_nothing_in_plain_forms_asks_for_the_platform(family):
    name, options = SMALL[family]
    model = create_model(name, image_size=32, num_classes=5, **options)
    call = model.apply, abstract_variables(model), jax.ShapeDtypeStruct((2, 32, 32, 3), np.float32)
    assert "platform_index" in str(jax.make_jaxpr(call[0])(*call[1:]))  # and nothing of this is found again
    with plain_forms():
        assert "platform_index" not in str(jax.make_jaxpr(call[0])(*call[1:]))


def test_plain_forms_give_the_same_logits():
    model, variables, images, logits = small("deit")
    with plain_forms():
        answer = jax.jit(converted(model, variables))(images)
    np.testing.assert_allclose(answer, logits, rtol=0, atol=1e-5 * np.abs(logits).max())


def test_operations_know_platforms_by_one_function():
    uses = {p.name for p in (ROOT / "flatten_jax").rglob("*.py") if "lax.platform_dependent" in p.read_text()}
    assert uses == {"platform.py"}


@pytest.mark.skipif(importlib.util.find_spec("jax2onnx") is not None, reason="jax2onnx is installed")
def test_without_jax2onnx_the_command_says_where_to_install_it(tmp_path):
    target = tmp_path / "x.onnx"
    command = ["export", "--onnx", "--model", "flatten_deit_t"]
    model = create_model("flatten_deit_t", depth=1, embed_dim=12, num_classes=5, image_size=32)
    with pytest.raises(ImportError, match=re.escape("pip install 'flatten_jax[onnx]'")):
        export_onnx(model, {}, target)
    with pytest.raises(ValueError, match=r"x\.bin must end in \.onnx"):
        export_onnx(model, {}, tmp_path / "x.bin")
    with pytest.raises(SystemExit, match=r"^error: there is no nothing\.pth"):
        main([*command, "nothing.pth", str(target)])
    target.write_text("mine")
    with pytest.raises(ValueError, match=r"x\.onnx exists already"):
        export_onnx(model, {}, target)
    assert target.read_text() == "mine"


@pytest.mark.skipif(importlib.util.find_spec("jax2onnx") is None, reason="an environment with jax2onnx")
@pytest.mark.parametrize("family", SMALL)
def test_onnxruntime_gives_the_same_logits_for_any_batch(family, tmp_path):
    import onnxruntime

    model, variables, images, logits = small(family)
    session = onnxruntime.InferenceSession(export_onnx(model, variables, tmp_path / "x.onnx"))
    for batch in (3, 1):
        (answer,) = session.run(None, {"images": images[:batch]})
        np.testing.assert_allclose(answer, logits[:batch], rtol=0, atol=1e-5 * np.abs(logits).max())
