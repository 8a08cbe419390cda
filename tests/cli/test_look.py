"""`flatten-jax models`. Tests of `predict`, `visualize` and `curves` are beside those of what they call."""

import pytest

from flatten_jax.cli.main import main


def test_models_prints_the_published_sizes(capsys):
    main(["models", "flatten_deit_t"])
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("flatten_deit_t"))
    assert line.split()[1:6] == ["224", "6,190,888", "1.144", "74.1", "(paper)"]


def test_unknown_pattern_is_one_line():
    with pytest.raises(SystemExit, match="no model matches 'resnet"):
        main(["models", "resnet*"])
