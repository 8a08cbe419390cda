"""`flatten-jax models`. Tests of `predict`, `visualize` and `curves` are beside those of what they call."""

import itertools

import pytest

from flatten_jax.cli.main import main
from flatten_jax.models.registry import FAMILIES


def test_models_are_listed_by_family_and_none_is_traced(capsys, monkeypatch):
    monkeypatch.delattr("flatten_jax.models.create_model")
    main(["models"])
    lines = capsys.readouterr().out.splitlines()
    heads = [i for i, line in enumerate(lines) if line.partition(": ")[0] in FAMILIES]
    assert [lines[i].split(":")[0] for i in heads] == list(FAMILIES)
    last = next(i for i, line in enumerate(lines) if line.startswith("Weights that others published"))
    for start, end in itertools.pairwise([*heads, last]):
        family = lines[start].split(":")[0]
        assert [line.split()[0] for line in lines[start + 1 : end - 1]] == list(FAMILIES[family].MODELS)
    of_model = [line.split() for line in lines if line.startswith("agent_swin_s_288")]
    assert of_model[0] == ["agent_swin_s_288", "288", "84.1", "(paper);", "weights", "published:", "see", "below"]
    assert of_model[1][1].startswith("https://")


@pytest.mark.parametrize("arguments", [["flatten_deit_t"], ["*n_deit_t", "--family", "deit"]])
def test_models_prints_the_published_sizes(arguments, capsys):
    main(["models", *arguments])
    lines = capsys.readouterr().out.splitlines()
    line = next(line for line in lines if line.startswith("flatten_deit_t"))
    assert line.split()[1:6] == ["224", "6,190,888", "1.144", "74.1", "(paper)"]
    levels = lines.index(next(line for line in lines if line.startswith("level ")))
    assert lines[levels + 4].split() == ["blocks.11", "14", "x", "14", "x", "192", lines[levels + 4].split()[-1]]
    assert [line.split()[-1] for line in lines[levels + 5 : levels + 7]] == ["193,384", "6,190,888"]


def test_unknown_pattern_is_one_line():
    with pytest.raises(SystemExit, match="no model matches 'resnet"):
        main(["models", "resnet*"])
    with pytest.raises(SystemExit, match="no model matches 'flaten_swin_t'; did you mean 'flatten_swin_t'"):
        main(["models", "flaten_swin_t"])
    with pytest.raises(SystemExit, match=r"no model of the family pvt matches 'swin_\*'"):
        main(["models", "swin_*", "--family", "pvt"])
    with pytest.raises(SystemExit, match="--family swim is no family of models; did you mean 'swin'"):
        main(["models", "--family", "swim"])
