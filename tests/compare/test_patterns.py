"""Patterns written out."""

import pytest

from flatten_jax.attention import pattern as of_blocks
from flatten_jax.compare.patterns import attn_type, parse, pattern


@pytest.mark.parametrize(
    ("text", "letters"),
    [
        ("evenly:0", "LLLLLLLLLLLL"),
        ("evenly:1", "LLLLLLLLLLLS"),
        ("evenly:2", "LLLLLSLLLLLS"),
        ("evenly:3", "LLLSLLLSLLLS"),
        ("evenly:12", "SSSSSSSSSSSS"),
        ("3:1", "LLLSLLLSLLLS"),
        ("6:1", "LLLLLLSLLLLL"),
        ("first:1", "SLLLLLLLLLLL"),
        ("last:3", "LLLLLLLLLSSS"),
        ("late-middle", "LLLLLLLSLLSL"),
        ("alternating", "LSLSLSLSLSLS"),
        ("LSLLLLLLLLLL", "LSLLLLLLLLLL"),
    ],
)
def test_of_twelve_blocks(text, letters):
    assert parse(text, depth=12) == letters


def test_uneven_depths_and_the_helper_itself():
    assert pattern("evenly", depth=12, keep=2) == "LLLLLSLLLLLS"
    assert pattern("evenly", depth=5, keep=2) == "LSLLS"
    assert pattern("alternating", depth=3) == "LSL"
    assert pattern("last", depth=3, keep=0) == "LLL"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("evenly", "needs a number of softmax blocks from 0 to 4, such as evenly:1"),
        ("first:5", "needs a number of softmax blocks from 0 to 4"),
        ("alternating:2", "takes no number"),
        ("LLS", "has 3 letters for 4 blocks"),
        ("middle", "'middle' is no pattern"),
        ("1:3", "'1:3' is no pattern"),
    ],
)
def test_mistakes_are_named(text, said):
    with pytest.raises(ValueError, match=said):
        parse(text, depth=4)


def test_letters_are_the_blocks_or_stages_of_the_library_s_own_patterns():
    assert attn_type("LLS", "rala") == "rala,rala,softmax"
    assert of_blocks(attn_type(parse("3:1", 4), "linear"), [1] * 4) == [
        (name,) for name in of_blocks("linear*3+softmax", [4])[0]
    ]
    depths = (2, 2, 6, 2)
    assert of_blocks(attn_type(parse("LLSS", 4), "focused"), depths) == of_blocks("LLSS", depths)
