"""Training curves from records, whole and broken."""

import json
import logging

import pytest
from PIL import Image

from flatten_jax.analysis.curves import draw_curves, read_metrics, training_curves
from flatten_jax.training import loop

RECORDS = [
    {"step": 2, "train/loss": 2.0, "train/grad_norm": 3.0, "train/learning_rate": 0.1},
    {"step": 4, "train/loss": 1.0, "train/grad_norm": 1.0, "train/learning_rate": 0.2},
    {"step": 4, "eval/loss": 1.5, "eval/acc1": 70.0, "eval/count": 8},
]


def write(folder, records, tail=""):
    folder.mkdir()
    (folder / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records) + tail)
    return folder


def test_half_a_line_at_the_end_is_left_out_and_elsewhere_it_is_an_error(tmp_path):
    assert read_metrics(write(tmp_path / "killed", RECORDS, '{"step": 6, "tr')) == RECORDS
    with pytest.raises(ValueError, match=r"metrics\.jsonl, line 4 is not JSON: 'garbage'"):
        read_metrics(write(tmp_path / "broken", RECORDS, "garbage\n{}\n"))
    with pytest.raises(ValueError, match="holds no records yet"):
        read_metrics(write(tmp_path / "new", []))
    with pytest.raises(FileNotFoundError, match="give the folder of a run"):
        read_metrics(tmp_path)


def test_each_run_is_a_line_where_it_has_the_number():
    loss, top1, rate, _ = training_curves({"a": RECORDS, "b": RECORDS[:2]}).axes
    assert {line.get_label(): line.get_xydata().tolist() for line in loss.lines} == {
        "a, training": [[2, 2], [4, 1]],
        "a, evaluation": [[4, 1.5]],
        "b, training": [[2, 2], [4, 1]],
    }
    assert [line.get_label() for line in top1.lines] == ["a"]
    a, b = rate.lines
    assert a.get_color() != b.get_color() and a.get_linestyle() != b.get_linestyle()


def test_runs_of_the_same_name_are_told_apart(tmp_path):
    for parent in ("x", "y"):
        (tmp_path / parent).mkdir()
        write(tmp_path / parent / "run", RECORDS)
    draw_curves([tmp_path / "x" / "run", tmp_path / "y" / "run"], tmp_path / "curves.png")
    with Image.open(tmp_path / "curves.png") as picture:
        assert picture.format == "PNG" and picture.width >= 1000


def test_a_picture_that_cannot_be_drawn_costs_no_run(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        loop._draw_curves(tmp_path)
    assert "curves.png cannot be drawn, the run itself is complete" in caplog.text
    write(tmp_path / "run", RECORDS)
    loop._draw_curves(tmp_path / "run")
    assert (tmp_path / "run" / "curves.png").stat().st_size > 10_000
