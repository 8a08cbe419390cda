"""`flatten-jax attentions`, and the page of docs that is made with it."""

import re
from pathlib import Path

import pytest

import flatten_jax
from flatten_jax.attention.linear import Linear
from flatten_jax.attention.table import ATTENTIONS
from flatten_jax.cli.attentions import BEGIN, END, Cost, layer_cost
from flatten_jax.cli.main import main

PAGE = Path(__file__).parents[2] / "docs" / "attentions.md"


def cells(line):
    return [cell.strip().replace(r"\|", "|") for cell in re.split(r"(?<!\\)\|", line.strip().strip("|"))]


def test_the_page_of_docs_names_every_attention():
    table = PAGE.read_text().partition(BEGIN)[2].partition(END)[0]
    named = [cells(line)[0].strip("`") for line in table.splitlines() if line.startswith("| `")]
    assert named == flatten_jax.list_attentions(), "make the table again: docs/attentions.md, step 2"


def test_costs_are_those_of_the_layer_written_out():
    """Four projections with biases; q k^T and the product with v, or k^T v, q (k^T v) and the normaliser."""
    n, c = 14 * 14, 384
    projections = Cost(4 * c * c + 4 * c, 4 * n * c * c)
    assert layer_cost("softmax", 6, 14) == projections._replace(multiply_adds=projections.multiply_adds + 2 * n * n * c)
    assert layer_cost("linear", 6, 14) == projections._replace(
        multiply_adds=projections.multiply_adds + 2 * n * c * c // 6 + n * c
    )


def test_terminal_table_is_readable_at_120_columns(capsys):
    main(["attentions", "fo*"])
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 120
    assert "tied to: positional_encoding (tokens of the keys)" in out
    assert [line.split()[0] for line in out.splitlines() if "et al." in line] == ["focused"]


class Picky(Linear):
    """Takes multiples of four heads, and small grids."""

    def check(self, x, site):
        super().check(x, site)
        if self.num_heads % 4:
            raise ValueError(f"num_heads={self.num_heads} must be a multiple of 4")
        if site.grid[0] > 20:
            raise ValueError(f"grid={site.grid} is too large")


def test_what_is_refused_is_said_in_a_footnote(monkeypatch, capsys):
    monkeypatch.setitem(ATTENTIONS, "picky", Picky)
    main(["attentions", "picky", "--markdown"])
    lines = capsys.readouterr().out.splitlines()
    assert cells(next(line for line in lines if "`picky`" in line))[5:9] == ["591,360 [1]", "0.130", "- [2]", "-"]
    assert "[1] 4 heads; with 6: num_heads=6 must be a multiple of 4" in lines
    assert "[2] grid=(56, 56) is too large" in lines


def test_unknown_attention_is_one_line_with_the_nearest():
    with pytest.raises(SystemExit, match="'inlin' is not a known attention; did you mean 'inline'"):
        main(["attentions", "inlin"])
    with pytest.raises(SystemExit, match=r"no attention matches 'no\*'"):
        main(["attentions", "no*"])
