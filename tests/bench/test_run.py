"""`flatten-jax bench`: its kinds, its files, its command."""

from functools import partial
from time import sleep

import pytest

from flatten_jax.bench import attention, input_pipeline, models, report, run, timing
from flatten_jax.bench.timing import Spread
from flatten_jax.cli.main import main

TINY = dict(image_size=32, depth=2, embed_dim=16, num_heads=2, num_classes=4)
SETTINGS = run.Settings(
    models=("deit_t",), batch=(2,), train_batch=(64,), rounds=1, tokens=(196,), options=tuple(TINY.items())
)


@pytest.fixture(scope="module", autouse=True)
def quick():
    with pytest.MonkeyPatch.context() as patch:
        for module in (attention, timing):
            patch.setattr(module, "interleaved", partial(timing.interleaved, at_least=0.01))
        patch.setattr(input_pipeline, "measure", partial(input_pipeline.measure, examples=1))
        yield


@pytest.fixture(scope="module")
def measured(quick):
    """The results of all kinds, and the lines that were said."""
    said = []
    return list(run.run(list(run.KINDS), SETTINGS, said.append)), said


def test_rows_say_what_was_measured(measured):
    results, said = measured
    inference, training, sweep, summary, memory, pipeline, compiled = (result.rows for result in results)
    for [row], batch in (inference, 2), (training, 64):
        assert (row["model"], row["batch"], row["dtype"]) == ("deit_t", batch, "float32") and row["images/s"].low > 0
    assert {row["N"] for row in sweep} == {196} and len(summary) == 4 and len(pipeline) == 4
    [row] = memory
    assert row["training MiB"] > 2 * row["inference MiB"] > 0
    ways = ("", ", remat, nothing kept", ", remat, products kept", ", scan")
    assert len({row[f"training{way} MiB"] for way in ways}) == 4
    assert all(value > 0 for name, value in compiled[0].items() if name.endswith(" s"))
    assert len(said) == sum(len(result.rows) for result in results) - len(summary)
    assert said[0].startswith("inference: model deit_t  batch 2")


def test_models_stand_beside_their_softmax_twin(monkeypatch):
    took = {"flatten_deit_t": 0.02, "deit_t": 0.06}
    monkeypatch.setattr(models, "make", lambda _, name, *__, **___: lambda: sleep(took[name]))
    settings = run.Settings(models=tuple(took), batch=(3,))
    linear, softmax = next(run.run(["inference"], settings)).rows
    assert linear["images/s"].median == pytest.approx(3 / 0.02, rel=0.3)
    assert linear["x softmax twin"].median == pytest.approx(3, rel=0.3)
    assert "x softmax twin" not in softmax


def test_files_hold_what_was_measured_and_are_not_overwritten(measured, tmp_path):
    results, _ = measured
    data, picture = run.write(results, tmp_path / "new")
    assert report.read_json(data) == results
    assert picture.read_bytes().startswith(b"\x89PNG")
    before = data.read_bytes()
    with pytest.raises(FileExistsError, match=r"bench\.json exists already"):
        run.write(results[:1], tmp_path / "new")
    assert data.read_bytes() == before
    assert run.write(results[:1], tmp_path / "new", overwrite=True) == [data]
    assert report.read_json(data) == results[:1]


def test_table_has_a_cell_for_every_column():
    result = report.Result("speed", [{"a": Spread(12.34, 1, 20), "b": 12345.6}, {"c": "none"}], {"device": "x"})
    _, title, _, header, _, *rows = report.table(result).split("\n")
    assert title == "speed (device x)" and header == "| a | b | c |"
    assert rows == ["| 12 (1-20) | 12346 |  |", "|  |  | none |"]


def test_command_takes_every_kind_and_refuses_to_overwrite_first(tmp_path, monkeypatch, capsys):
    calls = []
    result = report.Result("speed", [{"model": "x"}])
    monkeypatch.setattr(run, "run", lambda kinds, settings, say: calls.append((kinds, settings)) or [result])
    main(["bench", "all", "--output", str(tmp_path), "--tokens", "196", "784", "--rounds", "3", "--image-size", "64"])
    main(["bench", *run.KINDS])
    assert calls == [
        (list(run.KINDS), run.Settings(tokens=[196, 784], rounds=3, options=(("image_size", (64, 64)),))),
        (list(run.KINDS), run.Settings()),
    ]
    assert f"written: {tmp_path / 'bench.json'}" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="exists already"):
        main(["bench", "training", "--output", str(tmp_path)])
    assert len(calls) == 2
    for wrong, said in (
        (["--rounds", "0"], "at least 1"),
        (["--models", "x"], "unknown model"),
        (["--tokens", "3"], "no sq"),
    ):
        with pytest.raises(SystemExit, match=said):
            main(["bench", "training", *wrong])
    assert len(calls) == 2
