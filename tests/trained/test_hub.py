"""Shared folders: written, loaded again, verified; the Hugging Face Hub, which is a stand-in here."""

import dataclasses
import json
import sys
from types import SimpleNamespace

import huggingface_hub
import jax
import numpy as np
import pytest

from flatten_jax.attention import attention_options, make_attention
from flatten_jax.cli.main import main
from flatten_jax.models import abstract_variables, create_model
from flatten_jax.models.images import normalize
from flatten_jax.models.registry import MODELS
from flatten_jax.trained import hub
from flatten_jax.trained.load import load_trained
from flatten_jax.trained.predict import Predictor
from flatten_jax.training import checkpoint
from flatten_jax.weights.load import load_weights

from ..runs import write_run
from ..toy import TOY, random_variables

TINY = dict(image_size=16, patch_size=4, embed_dim=8, depth=1, num_heads=2, num_classes=3)
EVALUATION = {"eval/acc1": 87.5, "eval/acc5": 100.0, "eval/loss": 0.25, "eval/count": 40}
SMALL_SWIN = dict(image_size=64, depths=(2, 2, 2, 2), embed_dim=12, num_heads=(1, 2, 2, 2), window_size=2)
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(scope="module")
def model():
    return create_model("flatten_deit_t", focusing_factor=4, **TINY)


@pytest.fixture(scope="module")
def variables(model):
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda x: rng.standard_normal(x.shape, np.float32), abstract_variables(model))


@pytest.fixture
def shared(tmp_path, model, variables):
    """A shared folder, named as the Hub's cache names copies of that commit."""
    classes = ("ant", "bee", "cicada")
    return hub.save_pretrained(
        tmp_path / COMMIT, model, variables, class_names=classes, evaluation=EVALUATION, dataset="insects"
    )


def card(folder):
    return huggingface_hub.ModelCard((folder / "README.md").read_text())


def test_a_shared_model_comes_back_with_all_that_is_known_of_it(shared, model, variables):
    loaded, found = hub.from_pretrained(shared)
    assert hub.describe_model(loaded) == hub.describe_model(model)
    jax.tree.map(np.testing.assert_array_equal, found, variables)
    trained = load_trained(shared)
    assert trained.class_names == ("ant", "bee", "cicada")
    assert (trained.evaluation, trained.dataset) == (EVALUATION, "insects")
    assert json.loads((shared / "config.json").read_text())["model"] == "flatten_deit_t"
    assert hub.from_pretrained(shared, dtype="bfloat16")[0] == loaded.clone(dtype=np.dtype("bfloat16"))


def test_how_pictures_are_prepared_is_shared(shared, tmp_path, model, variables):
    half = dict(resize_ratio=1.5, resize="short", mean=(0.5,) * 3, std=(0.25,) * 3)
    trained = load_trained(hub.save_pretrained(tmp_path / "half", model, variables, **half))
    assert trained.preprocessing == half
    assert (
        "resized to cover 24 x 24 pixels (height x width, bicubic, their aspect stays)"
        in (tmp_path / "half" / "README.md").read_text()
    )
    predictor = Predictor(trained.model, trained.variables, **trained.preprocessing)
    assert (predictor.transform.resize, predictor.transform.mode) == ((24, 24), "short")
    picture = np.full((30, 20, 3), 128, np.uint8)
    logits = model.apply(variables, normalize(np.full((1, 16, 16, 3), 128, np.uint8), half["mean"], half["std"]))
    expected = np.asarray(jax.nn.softmax(logits[0])).tolist()
    (answer,) = predictor([picture], top=3)
    assert [g.probability for g in answer.top] == pytest.approx(sorted(expected, reverse=True), 1e-4)
    # A folder of before there were such options.
    config = json.loads((shared / "config.json").read_text())
    for key in ("resize", "mean", "std"):
        del config[key]
    (shared / "config.json").write_text(json.dumps(config))
    assert (
        load_trained(shared).preprocessing
        == load_trained(hub.save_pretrained(tmp_path / "o", model, variables)).preprocessing
    )


def test_the_card_tells_the_evaluation_to_the_hub(shared, tmp_path, model, variables):
    data = card(shared).data
    assert (data.library_name, data.model_name) == ("flatten_jax", "flatten_deit_t")
    found = {(r.metric_type, r.metric_name): r.metric_value for r in data.eval_results}
    assert found[("accuracy", "top-1 accuracy (%)")] == 87.5
    assert found[("loss", "cross-entropy")] == 0.25
    assert {r.dataset_name for r in data.eval_results} == {"insects"}
    assert "| insects | 40 | 87.50 | 100.00 | 0.2500 |" in card(shared).text
    unevaluated = card(hub.save_pretrained(tmp_path / "other", model, variables, licence="mit"))
    assert "## Evaluation\n\nNot run." in unevaluated.text
    assert (unevaluated.data.eval_results, unevaluated.data.license) == (None, "mit")


def test_what_is_there_is_not_overwritten(shared, model, variables, tmp_path):
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "README.md").write_text("precious")
    with pytest.raises(ValueError, match=r"notes holds README\.md already: .* overwrite=True"):
        hub.save_pretrained(tmp_path / "notes", model, variables)
    assert (tmp_path / "notes" / "README.md").read_text() == "precious"
    hub.save_pretrained(shared, model, variables, overwrite=True)
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    with pytest.raises(ValueError, match="is a run's folder: share it into another"):
        hub.save_pretrained(tmp_path / "run", model, variables, overwrite=True)
    with pytest.raises(FileNotFoundError, match=r"no checkpoint in .*run: give a run's folder"):
        hub.from_pretrained(tmp_path / "run")
    with pytest.raises(ValueError, match="2 class_names were given for a model of 3 classes"):
        hub.save_pretrained(tmp_path / "new", model, variables, class_names=("a", "b"))


def test_running_statistics_and_constants_are_shared(tmp_path, monkeypatch):
    monkeypatch.setitem(MODELS, "toy", TOY)
    model = create_model("toy", num_classes=3)
    variables = random_variables(model)
    folder = hub.save_pretrained(tmp_path / "shared", model, variables)
    loaded, found = hub.from_pretrained(folder)
    assert found.keys() == {"params", "batch_stats", "constants"}
    jax.tree.map(np.testing.assert_array_equal, found, variables)
    assert loaded == model
    parameters = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    assert f"- {parameters} parameters" in card(folder).text
    [prediction] = Predictor.load(folder)([np.full((20, 20, 3), 90, np.uint8)])
    image = normalize(np.full((1, 16, 16, 3), 90, np.uint8))
    best = jax.nn.softmax(model.apply(variables, image)).max()
    assert prediction.top[0].probability == pytest.approx(float(best), rel=1e-5)


def test_weights_of_another_hash_are_refused(shared):
    said = json.loads((shared / "config.json").read_text())["sha256"]
    hub.from_pretrained(shared, sha256=said)
    with pytest.raises(ValueError, match=f"has SHA-256 {said}, sha256= says {'0' * 64}"):
        hub.from_pretrained(shared, sha256="0" * 64)
    content = bytearray((shared / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (shared / "model.safetensors").write_bytes(content)
    for load in (hub.from_pretrained, load_trained):
        with pytest.raises(ValueError, match=f"config.json says {said}: the file is damaged or was exchanged"):
            load(shared)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("deit_t", {"image_size": 32, "depth": 1, "class_token": False}),
        ("flatten_pvt_s", {"image_size": (32, 64), "use_dwc": False, "depths": (1, 1, 1, 1)}),
        ("flatten_pvt_v2_b0", {"image_size": 32, "depths": (1, 1, 1, 1)}),
        ("flatten_swin_b_384", {"image_size": 64, "depths": (1, 1, 1, 1), "attn_type": "LLSS"}),
        ("flatten_cswin_t", {"image_size": 32, "depths": (1, 1, 1, 1), "features_only": True}),
        ("flatten_pvt_t", {"image_size": 32, "depths": (1, 1, 1, 1), "attn_type": "linear,inline,softmax,focused"}),
        ("flatten_deit_t", {"image_size": 32, "depth": 2, "attn_type": "inline,linear"}),
    ],
)
def test_models_of_every_family_are_described_by_their_names_and_options(name, options):
    model = create_model(name, **options)
    found, settings = hub.describe_model(model)
    again = create_model(found, **json.loads(json.dumps(settings)))
    own = {f.name for f in dataclasses.fields(model)} - {"attn_options", "parent", "name"}
    assert {k: getattr(again, k) for k in own} == {k: getattr(model, k) for k in own}
    assert attentions_of(again) == attentions_of(model)


def attentions_of(model):
    """Every block's attention and its options, as `make_attention` fills them in."""
    return [
        make_attention(name, 1, options=model.options_of(i, j))
        for i, names in enumerate(model.attentions())
        for j, name in enumerate(names)
    ]


def test_every_option_of_every_attention_is_written_out_and_none_taken_for_anothers():
    """`feature_map` is an option of two attentions, with other defaults."""
    model = create_model("flatten_swin_t", attn_type="linear,focused,inline,softmax", use_dwc=False, **SMALL_SWIN)
    _, settings = hub.describe_model(model)
    assert settings["feature_map"] == ("elu1", None, "identity", None)
    of_focused = {**attention_options("focused"), "use_dwc": False}
    assert {k: settings[k] for k in of_focused} == of_focused
    in_turn = create_model("flatten_swin_t", attn_type="linear/inline", **SMALL_SWIN)
    assert "feature_map" not in hub.describe_model(in_turn)[1], "no value is right for all blocks of a stage"
    by_block = create_model("flatten_deit_t", attn_type="linear*2+inline", depth=3, image_size=32)
    assert hub.describe_model(by_block)[1]["feature_map"] == ("elu1", "elu1", "identity")


def test_weights_that_say_a_stages_default_fit_a_model_that_leaves_it(tmp_path):
    options = {**TINY, "depth": 2, "attn_type": "linear,inline"}
    model = create_model("flatten_deit_t", **options)
    variables = random_variables(model)
    folder = hub.save_pretrained(tmp_path / "shared", model, variables)
    jax.tree.map(np.testing.assert_array_equal, load_weights(folder / "model.safetensors", model), variables)
    with pytest.raises(ValueError, match=r"feature_map=.*elu1.*identity.*the model has .*relu"):
        load_weights(
            folder / "model.safetensors", create_model("flatten_deit_t", feature_map=("elu1", "relu"), **options)
        )


def test_the_hub_is_asked_for_the_revision_and_checked(shared, model, variables, monkeypatch):
    asked = []

    def snapshot_download(repo_id, *, revision, allow_patterns, **_):
        asked.append((repo_id, revision, allow_patterns))
        return str(shared)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    files = ["model.safetensors", "config.json", "README.md"]
    for revision in ("v1", COMMIT, None):
        loaded, found = hub.from_pretrained("someone/insects", revision)
        assert asked[-1] == ("someone/insects", revision, files)
    assert hub.describe_model(loaded) == hub.describe_model(model)
    jax.tree.map(np.testing.assert_array_equal, found, variables)
    assert load_trained("hf://someone/insects@v2").class_names == ("ant", "bee", "cicada")
    assert asked[-1] == ("someone/insects", "v2", files)
    with pytest.raises(ValueError, match=f"was asked for at commit {'f' * 40}, and came as {COMMIT}"):
        hub.from_pretrained("someone/insects", "f" * 40)
    with pytest.raises(ValueError, match="a local folder, which has no revision='v1'"):
        hub.from_pretrained(shared, "v1")
    with pytest.raises(FileNotFoundError, match=r"not the name of a repository \(owner/name\)"):
        hub.from_pretrained("/nothing/here")


def test_what_the_hub_says_is_passed_on(monkeypatch):
    def snapshot_download(*args, **kwargs):
        raise ConnectionError("no route")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    with pytest.raises(OSError, match=r"someone/x is no folder, and the Hugging Face Hub did not give it.*no route"):
        hub.from_pretrained("someone/x")


def test_pushing_makes_the_repository_and_uploads_the_folder(shared, monkeypatch):
    calls = []

    class Api:
        def __init__(self, **_):
            pass

        def __getattr__(self, name):
            def call(*args, **kwargs):
                calls.append((name, args, kwargs))
                return SimpleNamespace(commit_url="https://hub/commit")

            return call

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    assert hub.push_to_hub(shared, "someone/insects", revision="v2", private=True) == "https://hub/commit"
    assert calls[0] == ("create_repo", ("someone/insects",), {"private": True, "exist_ok": True})
    assert calls[1] == ("create_branch", ("someone/insects",), {"branch": "v2", "exist_ok": True})
    upload = calls[2][2]
    assert (upload["repo_id"], upload["folder_path"], upload["revision"]) == ("someone/insects", str(shared), "v2")
    (shared / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(ValueError, match="damaged"):
        hub.push_to_hub(shared, "someone/insects")
    assert len(calls) == 3


def test_without_the_extra_folders_work_and_the_hub_says_what_is_missing(shared, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    hub.from_pretrained(shared)
    message = r"pip install 'flatten_jax\[hub\]'"
    with pytest.raises(ImportError, match=f"no folder someone/insects.*{message}"):
        hub.from_pretrained("someone/insects")
    with pytest.raises(ImportError, match=message):
        hub.push_to_hub(shared, "someone/insects")


def test_the_best_checkpoint_of_a_run_is_shared_with_its_own_evaluation(tmp_path, capsys):
    _, _, params = write_run(tmp_path / "run", ("ant", "bee"), {3: 90.0, 5: 70.0})
    for source, step, accuracy in (("run", 3, 90.0), ("run/checkpoints/5", 5, 70.0)):
        main(["share", str(tmp_path / source), str(tmp_path / f"shared{step}")])
        trained = load_trained(tmp_path / f"shared{step}")
        jax.tree.map(np.testing.assert_array_equal, trained.variables["params"], params[step])
        assert trained.evaluation["eval/acc1"] == accuracy
        assert (trained.class_names, trained.dataset) == (("ant", "bee"), "synthetic")
        assert trained.origin == {"source": f"step {step} of the run run"}
    assert "written: " in capsys.readouterr().out
    assert load_trained(tmp_path / "run", image_size=(32, 32)).evaluation is None, "it was made at another size"


def test_a_runs_folder_is_taken_wherever_a_shared_one_is(tmp_path, monkeypatch, shared, model, variables):
    _, _, params = write_run(tmp_path / "run", ("ant", "bee", "cicada"), {3: 60.0, 7: 50.0})
    for source in (tmp_path / "run", tmp_path / "run/checkpoints/7"):
        found, weights = hub.from_pretrained(source)
        jax.tree.map(np.testing.assert_array_equal, weights["params"], params[7])
        jax.tree.map(np.testing.assert_array_equal, load_weights(source, found)["params"], params[7])
    older = hub.from_pretrained(tmp_path / "run/checkpoints/3", num_classes=5, new_head=True)[1]["params"]
    assert older["head"]["kernel"].shape == (16, 5)
    np.testing.assert_array_equal(older["pos_embed"], params[3]["pos_embed"])
    monkeypatch.setenv("HOME", str(tmp_path))
    jax.tree.map(np.testing.assert_array_equal, hub.from_pretrained("~/run")[1]["params"], params[7])
    with pytest.raises(ValueError, match="is not a shared folder, whose weights have a sha256="):
        hub.from_pretrained(tmp_path / "run", sha256="0")
    with pytest.raises(ValueError, match=r"ema=True is for files; of .*run the moving average is taken anyway"):
        load_weights(tmp_path / "run", found, ema=True)
    with pytest.raises(FileNotFoundError, match="there is no nowhere: give a run's folder, a shared folder, a file"):
        load_weights("nowhere", found)


def test_fine_tuning_starts_from_whatever_holds_weights(shared, model, variables, tmp_path, monkeypatch):
    """`init_from` and --checkpoint of main.py: the home, a shared folder, the Hub, a file."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(hub, "download", lambda repo_id, revision: {"me/it": shared}[repo_id])
    for source in (f"~/{COMMIT}", shared, shared / hub.WEIGHTS, "hf://me/it@main"):
        found, said = checkpoint.load_weights(source, model)
        jax.tree.map(np.testing.assert_array_equal, found, variables)
        assert said.startswith(f"weights of {shared / hub.WEIGHTS} -> DeiT")
    damaged = bytearray((shared / hub.WEIGHTS).read_bytes())
    damaged[-1] ^= 1
    (shared / hub.WEIGHTS).write_bytes(bytes(damaged))
    with pytest.raises(ValueError, match="the file is damaged or was exchanged"):
        checkpoint.load_weights(shared, model)
