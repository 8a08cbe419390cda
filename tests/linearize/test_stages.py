"""The command from end to end on a model of a few parameters, what it refuses, and how it goes on."""

import json
import shutil

import numpy as np
import pytest

from flatten_jax.cli.config_file import read_config
from flatten_jax.cli.main import main
from flatten_jax.linearize import stages
from flatten_jax.models import create_model
from flatten_jax.trained.load import load_trained
from flatten_jax.training import settings

from ..command import ROOT, assert_same_bits, metrics, run
from ..distill.small import write_teacher
from ..runs import write_run


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "teacher"
    return folder, *write_teacher(folder, depth=3)


def convert(teacher, workdir, *arguments, attention="linear"):
    """`flatten-jax linearize` with five steps in an epoch of the teacher's data."""
    short = ("train.epochs=1", "linearize.align_epochs=1", "checkpoint.every_epochs=0.4", "log_every_steps=1")
    given = ["--from", str(teacher), "--attention", attention, "--workdir", str(workdir), *arguments]
    main(["linearize", *given, *(f"--config.{o}" for o in (*short, "augment.mixup=0.8", "model.drop_path=0.5"))])


@pytest.fixture(scope="module")
def converted(teacher, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "converted"
    convert(teacher[0], folder, "--keep", "2", "--search", "1")
    return folder


def results(folder):
    return json.loads((folder / "linearize.json").read_text())


def test_every_stage_is_a_run_whose_numbers_are_in_the_file(teacher, converted, capsys):
    found = results(converted)
    assert list(found) == ["teacher", "swap", "align", "search", "train"]
    for stage in ("align", "train"):
        last = metrics(converted / stage)[-1]
        assert (
            (last["step"], last["eval/acc1"]) == (found[stage]["steps"], found[stage]["acc1"]) == (5, last["eval/acc1"])
        )
        assert found[stage]["count"] == 40
        assert load_trained(converted / stage).evaluation["eval/loss"] == found[stage]["loss"]
    of_teacher = load_trained(teacher[0])
    assert found["teacher"]["attention"] == of_teacher.model.attn_type == "softmax"
    assert found["swap"]["attention"] == "linear*2+softmax" and found["swap"]["keep"] == [2]
    assert len(found["swap"]["copied"]) == len(found["swap"]["copied"] + found["swap"]["new"]) > 30
    assert [row["attention"] for row in found["align"]["blocks"]] == ["linear", "linear", "softmax"]
    for stage in ("swap", "align"):
        assert found[stage]["blocks"][2]["error"] == 0
    errors = [[row["error"] for row in found[stage]["blocks"][:2]] for stage in ("swap", "align")]
    assert sum(errors[1]) < sum(errors[0])


def test_the_search_restores_the_block_that_brings_most(converted):
    found = results(converted)["search"]
    (tried,) = found["rounds"]
    assert [one["block"] for one in tried] == [0, 1]
    best = max(tried, key=lambda one: (one["acc1"], -one["loss"]))
    assert found["keep"] == sorted([2, best["block"]])
    assert (found["acc1"], found["loss"]) == pytest.approx((best["acc1"], best["loss"]), rel=1e-5)
    trained = load_trained(converted / "train").model
    assert [name == "softmax" for name in trained.attentions()[0]] == [n in found["keep"] for n in range(3)]
    assert create_model("deit_t", depth=3, attn_type=trained.attn_type).attentions() == trained.attentions()


def test_a_second_start_does_nothing_again_and_another_conversion_is_refused(teacher, converted, capsys):
    before = (converted / "linearize.json").read_bytes()
    convert(teacher[0], converted, "--keep", "2", "--search", "1")
    said = capsys.readouterr().out
    assert said.count("holds a finished run of 5 steps") == 2 and "compiled in" not in said
    assert (converted / "linearize.json").read_bytes() == before
    with pytest.raises(SystemExit, match=r"(?s)holds a run of another config:.*linearize\.keep: 2 there, 1 now"):
        convert(teacher[0], converted, "--keep", "1", "--search", "1")


def test_killed_in_the_middle_it_goes_on_to_the_same_bits(teacher, converted, tmp_path):
    folder = shutil.copytree(converted, tmp_path / "killed")
    for gone in ("train", "search", "align/checkpoints/5", "linearize.json"):
        path = folder / gone
        path.unlink() if path.is_file() else shutil.rmtree(path)
    assert (folder / "align/checkpoints/4").exists()
    convert(teacher[0], folder, "--keep", "2", "--search", "1")
    for stage in ("align", "train"):
        assert_same_bits(folder / stage, converted / stage)
    assert results(folder) == results(converted)


def test_with_other_weights_of_the_teacher_it_does_not_go_on(teacher, converted, tmp_path):
    other = shutil.copytree(teacher[0], tmp_path / "teacher")
    convert_again = ("--keep", "2", "--search", "1")
    folder = shutil.copytree(converted, tmp_path / "converted")
    convert(other, folder, *convert_again)  # the same weights elsewhere are the same teacher
    shutil.rmtree(other)
    write_run(other, ("a", "b", "c", "d"), {2: 50.0}, attn_type="softmax", depth=3)
    with pytest.raises(SystemExit, match=r"(?s)another config:.*distill\.fingerprint: \w{16} there, \w{16} now"):
        convert(other, folder, *convert_again)


@pytest.mark.parametrize(
    ("attention", "more", "said"),
    [
        ("linaer", (), "did you mean 'linear'"),
        ("linear", ("--keep", "3"), r"linearize.keep=3 is not a block of DeiT, which has 0 \.\.\. 2"),
        ("linear", ("--keep", "last"), "linearize.keep='last' must be numbers of blocks with commas, such as 7,11"),
        ("linear", ("--copy", "some"), "linearize.copy='some' must be one of all, mlp, attention, none"),
        ("linear", ("--stages", "align,tune"), "linearize.stages='align,tune' must be of align, features, train"),
        ("linear", ("--search", "-1"), "linearize.search=-1 must be a whole number, at least 0"),
        ("focused", ("--config.distill.match=map",), "the student's focused forms no attention map.*match=output"),
        ("linear", ("--config.distill.match=map",), "distill.kind='align' with distill.learns='auto' has nothing to"),
        ("linear", ("--config.model.depth=4",), "blocks of each stage: .3. of the teacher, .4. of the student"),
        ("linear", ("--config.model.feature_map=tanh",), "feature_map='tanh' must be one of elu1, relu"),
        ("linear", ("--config.linearize.attention=x", "--config.init_from=y"), "init_from='y' has no effect on a conv"),
    ],
)
def test_what_it_does_not_take_is_one_line(teacher, tmp_path, attention, more, said):
    with pytest.raises(SystemExit, match=rf"(?s)^error: .*{said}"):
        convert(teacher[0], tmp_path / "w", *more, attention=attention)
    assert not (tmp_path / "w" / "train").exists()


def test_weights_that_do_not_say_their_data_need_a_config(teacher, tmp_path):
    share = tmp_path / "shared"
    main(["share", str(teacher[0]), str(share)])
    with pytest.raises(
        SystemExit, match=r"is no run, whose data could be taken: add --config configs/linearize\.py, with"
    ):
        convert(share, tmp_path / "w")


def test_a_class_token_that_an_attention_has_no_place_for(tmp_path):
    write_teacher(tmp_path / "teacher", depth=1, name="deit_t", class_token=True)
    with pytest.raises(SystemExit, match=r"Focused takes no class token, pool the tokens \(class_token=False\)"):
        convert(tmp_path / "teacher", tmp_path / "w", attention="focused")
    convert(
        tmp_path / "teacher", tmp_path / "w", "--stages", "", "--config.model.class_token=False", attention="focused"
    )
    found = results(tmp_path / "w")
    assert list(found) == ["teacher", "swap"] and found["swap"]["left_out"] == ["cls_token"]


def test_another_image_size_is_resampled_and_said(teacher, tmp_path, capsys):
    convert(teacher[0], tmp_path, "--stages", "", "--config.model.image_size=32", "--copy", "none")
    assert "pos_embed (1, 16, 16) -> (1, 64, 16)" in capsys.readouterr().out
    assert load_trained(tmp_path / "swap").model.image_size == (32, 32)


def test_a_config_says_the_same_through_main(teacher, monkeypatch):
    monkeypatch.chdir(ROOT)
    overrides = ("distill.teacher=" + str(teacher[0]), "linearize.attention=linear", "linearize.keep=0")
    small = ("embed_dim=16", "depth=3", "num_heads=2", "patch_size=4", "image_size=16")
    given = [f"--config.{o}" for o in (*overrides, *(f"model.{o}" for o in small))]
    config = read_config("configs/linearize.py:flatten_deit_t", given)
    conversion = stages.resolve(config)
    assert conversion.config.model.attn_type == "softmax*1+linear"
    assert (conversion.config.model.num_classes, conversion.config.model.depth) == (4, 3)
    align, train = (stages.stage_config(conversion.config, stage, "x") for stage in ("align", "train"))
    assert (align.distill.kind, align.train.epochs, align.optimizer.weight_decay) == ("align", 1.0, 0.0)
    assert (train.distill.weight, train.distill.new_factor, train.train.epochs) == (50.0, 20.0, 30.0)
    assert {train.linearize.attention, align.linearize.attention} == {""}
    assert train.distill.fingerprint == conversion.config.distill.fingerprint != ""
    for config in (align, train, conversion.config):
        settings.checked(config)
    with pytest.raises(ValueError, match=r"widths: \[16\] of the teacher, \[192\] of model.name='flatten_deit_t'"):
        stages.resolve(read_config("configs/linearize.py:flatten_deit_t", given[:3]))
    with pytest.raises(ValueError, match="--workdir=gs://b/w: a bucket is not read or written here"):
        stages.run(config, "gs://b/w")


@pytest.mark.slow
def test_main_converts_and_goes_on_by_the_folder_alone(teacher, tmp_path):
    small = ("embed_dim=16", "depth=3", "num_heads=2", "patch_size=4", "image_size=16")
    arguments = ["--config=configs/linearize.py:flatten_deit_t,smoke", f"--config.distill.teacher={teacher[0]}"]
    arguments += ["--config.linearize.attention=hedgehog", *(f"--config.model.{o}" for o in small)]
    arguments += ["--config.data.name=folder", f"--config.data.folder={pictures(tmp_path / 'p')}"]
    arguments += ["--config.train.batch_size=8", "--config.linearize.stages=align", "--config.distill.match=map"]
    status, output = run(*arguments, "--workdir", tmp_path / "w")
    assert status == 0 and "written:" in output, output
    status, output = run("--workdir", tmp_path / "w")
    assert status == 0 and "holds a finished run" in output, output
    status, output = run("--workdir", tmp_path / "w", "--mode=check")
    assert status == 1 and "converts a model in stages" in output
    status, output = run("--workdir", tmp_path / "w" / "align", "--mode=eval")
    assert status == 0 and "top-1" in output


def pictures(folder):
    from PIL import Image

    for i in range(40):
        path = folder / "train" / "abcd"[i % 4] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (16, 16, 3), np.uint8)).save(path)
    return folder
