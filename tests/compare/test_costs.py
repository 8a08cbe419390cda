"""Costs: all in the same rounds, what is there is kept, what is slow is left out."""

import json

import pytest

from flatten_jax.bench import attention as bench
from flatten_jax.bench.timing import Spread
from flatten_jax.compare import costs

BLOCK = costs.Block(16, 2, "float32", (36,))


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    folder, said = tmp_path_factory.mktemp("costs"), []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(costs, "AT_LEAST", {"cpu": 0.001})
        patch.setattr(costs.jax.config, "update", lambda *_: None)
        costs.measure(folder, ["skipat"], [BLOCK], rounds=2, say=said.append)
        first = costs.read(folder)
        patch.setattr(bench, "contest", None)  # what is there is not measured again
        costs.measure(folder, ["skipat"], [BLOCK], rounds=2, say=said.append)
    return folder, first, said


def test_every_attention_takes_turns_in_every_group(measured):
    folder, groups, said = measured
    assert costs.read(folder) == groups and len(groups) == len(said) == 2
    assert [(g["N"], g["direction"]) for g in groups] == [(n, d) for n in (36,) for d in bench.DIRECTIONS]
    for group in groups:
        rows = {row["attention"]: row for row in group["rows"]}
        assert rows.keys() >= {"linear", "softmax", bench.PLAIN}
        assert rows["skipat"] == {"attention": "skipat", "ms": rows["skipat"]["ms"]}
        assert rows["skipat"]["ms"].startswith("has no meaning alone")
        assert rows["linear"]["time / linear"] == Spread(1, 1, 1)
        assert rows["softmax"]["time / linear"].low > 0 and rows["softmax"]["compile s"] > 0
        assert rows["linear"]["parameters"] == 4 * 16 * 16 + 4 * 16
        n = group["N"]
        assert rows[bench.PLAIN]["multiply-adds"] == n * 4 * 16**2 + 2 * n**2 * 16
        assert group["rounds"] == 2 and group["commit"]


def test_other_attentions_or_machines_are_not_mixed(measured):
    with pytest.raises(ValueError, match="holds timings of other attentions: take another --out"):
        costs.measure(measured[0], ["inline"], [BLOCK])
    with pytest.raises(ValueError, match="holds timings of other batch: take another --out"):
        costs.measure(measured[0], ["skipat"], [BLOCK._replace(together=72)])


def test_what_would_take_too_long_is_left_out(measured):
    _, groups, _ = measured
    about = {"channels": 16, "heads": 2, "dtype": "float32", "N": 6400, "direction": "forward", "batch": 1}
    work = costs.curve(groups, "softmax", "multiply-adds", "forward", BLOCK)
    took = costs.curve(groups, "softmax", "ms", "forward", BLOCK)[36] / 1e3
    sizes = {"softmax": {"multiply-adds": 100 * work[36]}}
    assert costs._too_slow(groups, about, sizes, 101 * took, "softmax") == ""
    said = costs._too_slow(groups, about, sizes, 99 * took, "softmax")
    assert said == f"left out: about {100 * took:.2g} s a call"
    assert costs._too_slow(groups, about | {"batch": 2}, sizes, 101 * took, "softmax")  # twice the work
    assert costs._too_slow([], about, sizes, 0.0, "softmax") == ""  # nothing is known


def test_crossing_is_found_between_what_was_measured():
    softmax = {100: 1.0, 10000: 10000.0}  # as N^2
    assert costs.crossing({100: 10.0, 10000: 1000.0}, softmax) == pytest.approx(1000)  # as N
    assert costs.crossing({100: 0.5, 10000: 50.0}, softmax) == 100
    assert costs.crossing({100: 2.0, 10000: 20000.0}, softmax) is None
    assert costs.crossing({100: 2.0}, {10000: 1.0}) is None


def test_grid_has_squares():
    assert costs.grid(tokens=[64, 36]) == tuple(block._replace(tokens=(36, 64)) for block in costs.GRID)
    assert costs.grid(dtype="bfloat16") == (costs.MAIN._replace(dtype="bfloat16"),)
    (block,) = costs.grid(dtype="float32", together=1000)
    assert [block.images(n) for n in block.tokens] == [5, 1, 1, 1]
    with pytest.raises(ValueError, match="50 tokens are no square grid"):
        costs.grid(tokens=[50])


def test_what_a_compiler_says_is_kept_attention_by_attention(tmp_path, monkeypatch):
    monkeypatch.setattr(costs, "MAIN", BLOCK)
    said = []
    costs.compile_elsewhere(tmp_path, [], "cpu:1", 80, said.append, tokens=36)
    content = json.loads((tmp_path / "compiled_cpu_1.json").read_text())
    rows = {row["attention"]: row for row in content["rows"]}
    assert rows.keys() == {"linear", "softmax", bench.PLAIN, "softmax, jax.nn (XLA)"} and len(said) == 4
    assert rows["softmax"]["bytes"] > 4 * 36 * 16 and rows["softmax"]["flops"] > 2 * 36 * 4 * 16**2
    assert rows["softmax"]["fusions"] > 0
    assert content["images"] == 2
    assert rows["linear"]["bytes"] >= 2 * 2 * 36 * 16 * 2  # tokens and result of both, two bytes each
    costs.compile_elsewhere(tmp_path, [], "cpu:1", 80, said.append, tokens=36)
    assert len(said) == 4
    with pytest.raises(ValueError, match="has rows of 2 images, not 1: take another --out"):
        costs.compile_elsewhere(tmp_path, [], "cpu:1", 1, said.append, tokens=36)
    with pytest.raises(ValueError, match="write cpu:N"):
        costs.compile_elsewhere(tmp_path, [], "cpu:x")
