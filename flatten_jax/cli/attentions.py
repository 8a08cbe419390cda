"""The command that shows all attentions, from what they declare: `attentions`, in the terminal or for the docs."""

import argparse
import fnmatch
import textwrap
from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

CHANNELS, HEADS, SIDES = 384, 6, (14, 56)  # N = 196 and 3,136: the grids of DeiT and of a first stage at 224 px
WIDTH = 120
BEGIN, END = "<!-- flatten-jax attentions --markdown: begin -->", "<!-- flatten-jax attentions --markdown: end -->"
LEGEND = (
    f"parameters, G: of a layer with its projections, C = {CHANNELS}, h = {HEADS}, on N = 196 and N = 3,136 tokens. "
    "G: 10^9 multiply-adds of matrix products and convolutions, one image. tied to: parameters whose shape belongs to "
    "the image size, and what of it they belong to; others take any size, and all take rectangles. original: the code "
    "that was compared with; none of it is in here."
)


def add_attentions(commands: Any) -> None:
    command = commands.add_parser("attentions", help="all attentions: paper, formula, cost, what each can take")
    command.add_argument("pattern", nargs="?", default="*", help="a name, or a shell pattern such as 'in*'")
    command.add_argument("--markdown", action="store_true", help="the table at the end of docs/attentions.md")
    command.set_defaults(run=attentions)


def attentions(args: argparse.Namespace) -> None:
    import flatten_jax

    names = fnmatch.filter(flatten_jax.list_attentions(), args.pattern)
    if not names and not set("*?[") & set(args.pattern):
        flatten_jax.attention_info(args.pattern)  # which says what there is of a similar name
    if not names:
        raise ValueError(f"no attention matches {args.pattern!r}; `flatten-jax attentions` lists all")
    notes: list[str] = []
    for line in (markdown if args.markdown else terminal)(names, notes):
        print(line, flush=True)


class Cost(NamedTuple):
    """Of one layer with its projections.

    Attributes:
        parameters: how many are trained.
        multiply_adds: of matrix products and convolutions, for one image.
    """

    parameters: int
    multiply_adds: int


def layer_cost(name: str, num_heads: int, side: int) -> Cost:
    """The cost of an attention on side x side tokens of `CHANNELS`, read off its trace; nothing is computed.

    Raises:
        ValueError: the attention takes no such grid, or no such number of heads.
    """
    import jax

    import flatten_jax
    from flatten_jax.models.flops import products

    layer, grid = flatten_jax.LinearAttention(name, num_heads), (side, side)
    x = jax.ShapeDtypeStruct((1, side * side, CHANNELS), "float32")
    variables = jax.eval_shape(partial(layer.init, grid=grid), jax.random.key(0), x)
    traced = jax.make_jaxpr(partial(layer.apply, grid=grid))(variables, x)
    parameters = sum(leaf.size for leaf in jax.tree.leaves(variables.get("params", {})))
    return Cost(parameters, sum(count for _, count in products(traced.jaxpr)))


def costs(name: str) -> list[tuple[Cost | None, str]]:
    """The cost on each of `SIDES`, None where that is refused, and a note where something is.

    The number of heads is `HEADS`, or the nearest with which one of the sides is taken.
    """
    refusals: list[str] = []
    for heads in sorted((h for h in range(1, CHANNELS + 1) if CHANNELS % h == 0), key=lambda h: abs(h - HEADS)):
        said = f"{heads} heads; with {HEADS}: {refusals[0]}" if refusals else ""
        found: list[tuple[Cost | None, str]] = []
        for side in SIDES:
            try:
                found.append((layer_cost(name, heads, side), said))
            except ValueError as error:
                found.append((None, str(error)))
        if any(cost for cost, _ in found):
            return found
        refusals += [note for _, note in found]
    return [(None, note) for note in refusals[: len(SIDES)]]


def terminal(names: list[str], notes: list[str]) -> Iterator[str]:
    """Lines of at most `WIDTH` columns; notes are collected on the way and said at the end."""
    form = "{:16} {:>14} {:>7} {:>14} {:>7}  {:5}  {}"
    yield form.format("", "N = 196", "", "N = 3,136", "", "", "").rstrip()
    yield form.format("attention", "parameters", "G", "parameters", "G", "takes", "paper")
    for name in names:
        info, cells = _describe(name, notes)
        takes = " ".join(letter if yes else "-" for letter, yes in zip("crw", info["takes"].values(), strict=True))
        yield form.format(name, *cells, takes, textwrap.shorten(info["paper"], WIDTH - 73, placeholder=" ..."))
        yield from _wrapped(info["formula"], "    ")
        tied = f"; tied to: {info['tied']}" if info["tied"] else ""
        yield from _wrapped(f"original: {info['licence']}{tied}", "    ")
    yield ""
    yield from _wrapped("takes: c a class token, r reduced keys, w windows and stripes. " + LEGEND)
    for number, note in enumerate(notes, 1):
        yield from _wrapped(f"[{number}] {note}")


def markdown(names: list[str], notes: list[str]) -> Iterator[str]:
    """The same as a table of GitHub's Markdown, between two comments."""
    yield BEGIN
    yield (
        "| attention | paper | formula | takes | tied to | parameters, N = 196 | G | parameters, N = 3,136 | G "
        "| original |"
    )
    yield "|---|---|---|---|---|---|---|---|---|---|"
    for name in names:
        info, cells = _describe(name, notes)
        paper = f"[{info['paper']}](https://arxiv.org/abs/{info['arxiv']})" if info["arxiv"] else info["paper"]
        takes = ", ".join(what for what, yes in info["takes"].items() if yes) or "-"
        row = [f"`{name}`", paper, f"`{info['formula']}`", takes, info["tied"] or "-", *cells, info["licence"]]
        yield "| " + " | ".join(cell.replace("|", r"\|") for cell in row) + " |"
    yield ""
    yield from textwrap.wrap(LEGEND, WIDTH)
    for number, note in enumerate(notes, 1):
        yield ""
        yield from textwrap.wrap(f"[{number}] {note}", WIDTH)
    yield END


def _describe(name: str, notes: list[str]) -> tuple[dict[str, Any], list[str]]:
    """Words of an attention, and the cells of its costs, whose notes are added to `notes`."""
    import flatten_jax

    info, cells = flatten_jax.attention_info(name), []
    for cost, note in costs(name):
        if note and note not in notes:
            notes.append(note)
        mark = f" [{notes.index(note) + 1}]" if note else ""
        cells += (
            ["-" + mark, "-"] if cost is None else [f"{cost.parameters:,}{mark}", f"{cost.multiply_adds / 1e9:.3f}"]
        )
    words = {
        "paper": info.origin.paper,
        "arxiv": info.origin.arxiv,
        "formula": info.origin.formula,
        "takes": {"class token": info.class_token, "reduced keys": info.reduced_keys, "windows": info.windows},
        "tied": ", ".join(f"{parameter} ({what})" for parameter, what in info.tied_to.items()),
        "licence": f"{info.origin.code}, licence: {info.origin.licence}",
    }
    return words, cells


def _wrapped(text: str, indent: str = "") -> list[str]:
    return textwrap.wrap(text, WIDTH, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False)
