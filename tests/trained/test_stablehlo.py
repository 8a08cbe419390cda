"""Exported functions answer as the models do, at any batch size, without the package."""

import jax
import numpy as np
import pytest

from flatten_jax.cli.main import main
from flatten_jax.models import abstract_variables, create_model
from flatten_jax.models.registry import MODELS
from flatten_jax.trained.stablehlo import export_stablehlo

from ..runs import write_run
from ..toy import TOY, random_variables

SMALL = {
    "deit": ("flatten_deit_t", dict(depth=1, embed_dim=12)),
    "pvt": ("flatten_pvt_t", dict(depths=(1, 1, 1, 1), embed_dims=(8, 16, 20, 16), attn_type="LLSS")),
    "pvt_v2": ("flatten_pvt_v2_b0", dict(depths=(1, 1, 1, 1), embed_dims=(8, 16, 20, 16), attn_type="LLSS")),
    "swin": ("flatten_swin_t", dict(depths=(1, 1, 2, 1), embed_dim=12, window_size=2)),
    "cswin": ("flatten_cswin_t", dict(depths=(1, 1, 1, 1), embed_dim=16)),
}


def check(target, model, variables, batches):
    exported = jax.export.deserialize(bytearray(target.read_bytes()))
    assert exported.platforms == ("cpu", "cuda", "tpu")
    images = np.random.default_rng(1).standard_normal((3, *model.image_size, 3), np.float32)
    logits = np.asarray(jax.jit(model.apply)(variables, images))
    for batch in batches:
        answer = jax.jit(exported.call)(images[:batch])
        np.testing.assert_allclose(answer, logits[:batch], rtol=0, atol=1e-5 * np.abs(logits).max())


@pytest.mark.parametrize("family", SMALL)
def test_every_family_is_exported_for_any_batch_size(family, tmp_path):
    name, options = SMALL[family]
    model = create_model(name, image_size=32, num_classes=5, **options)
    rng = np.random.default_rng(0)
    variables = jax.tree.map(
        lambda x: (0.2 * rng.standard_normal(x.shape)).astype(np.float32), abstract_variables(model)
    )
    export_stablehlo(model, variables, tmp_path / "x.stablehlo")
    check(tmp_path / "x.stablehlo", model, variables, [3])


def test_running_statistics_and_constants_are_exported(tmp_path, monkeypatch):
    monkeypatch.setitem(MODELS, "toy", TOY)
    model = create_model("toy", num_classes=5)
    variables = random_variables(model)
    export_stablehlo(model, variables, tmp_path / "x.stablehlo")
    check(tmp_path / "x.stablehlo", model, variables, [3])


def test_a_run_is_exported_and_an_existing_file_kept(tmp_path, capsys):
    _, model, params = write_run(tmp_path / "run", ("ant", "bee"), {3: None})
    arguments = ["export", "--stablehlo", str(tmp_path / "run")]
    main([*arguments, str(tmp_path / "x.stablehlo")])
    assert "float32[b,16,16,3] -> float32[b,2], for any b" in capsys.readouterr().out
    check(tmp_path / "x.stablehlo", model, {"params": params[3]}, [3, 1])
    with pytest.raises(SystemExit, match=r"x\.stablehlo exists already"):
        main([*arguments, str(tmp_path / "x.stablehlo")])
    with pytest.raises(SystemExit, match=r"x\.bin must end in \.stablehlo"):
        main([*arguments, str(tmp_path / "x.bin")])
    assert [path.name for path in tmp_path.glob("*x*")] == ["x.stablehlo"]
