"""The command that shows every setting of a config: `config`."""

import argparse
import inspect
import re
import textwrap
from collections.abc import Iterator
from typing import Any

WIDTH = 120


def add_config(commands: Any) -> None:
    command = commands.add_parser(
        "config",
        help="every setting of a config: type, value, range, meaning",
        epilog="Further arguments override settings: --config.train.batch_size=256",
    )
    command.add_argument("config", help="configs/x.py, or the folder of a run, whose own config it is")
    command.add_argument("pattern", nargs="?", default="", help="of names to show, such as train or learning_rate")
    command.set_defaults(run=config, takes_overrides=True, takes_buckets=("config",))


def config(args: argparse.Namespace) -> None:
    from flatten_jax.cli.config_file import read_config

    lines = list(table(read_config(args.config, args.overrides), args.pattern))
    if not lines:
        raise ValueError(f"no setting of {args.config} has {args.pattern!r} in its name")
    print("\n".join(lines))
    print("\nOverride them by name: --config.train.batch_size=256. - leaves the default of the model.")


def table(config: Any, pattern: str = "") -> Iterator[str]:
    """A line or more for each setting: name, value, what it may be, what it is. Options of attentions come last."""
    from flatten_jax.training.settings import SETTINGS, flat

    own, of_attentions = model_docs(config.model.name)
    of_attentions = {key: said for key, said in of_attentions.items() if key not in own}
    about = {key: (setting.allowed, setting.meaning) for key, setting in SETTINGS.items()}
    about = {**of_attentions, **own, **about}
    places = {key: place for place, known in enumerate((own, of_attentions), 1) for key in known}
    for key, value in sorted(flat(config).items(), key=lambda item: places.get(item[0], 0)):
        if pattern in key:
            kind, meaning = about.get(key, ("", ""))
            head = f"{key} = {'-' if value is None else repr(value)}"
            yield from textwrap.wrap(f"{head:39}  {kind}: {meaning}", WIDTH, subsequent_indent=" " * 41)


def model_docs(name: str) -> tuple[dict[str, tuple[str, str]], dict[str, tuple[str, str]]]:
    """Of every option of a model, and of all attentions: {key: (type and default, what its class says of it)}."""
    import dataclasses

    from flatten_jax.attention import ATTENTIONS, attention_options
    from flatten_jax.models import model_options
    from flatten_jax.models.registry import MODELS

    family, defaults = MODELS[name].family, model_options(name)
    said, fields = _attributes(family), {field.name for field in dataclasses.fields(family)}
    own = {f"model.{o}": (_kind(defaults[o]), said.get(o, "of the architecture")) for o in fields & defaults.keys()}
    of_attentions: dict[str, tuple[str, str]] = {}
    for attention in sorted(ATTENTIONS):
        said = _attributes(ATTENTIONS[attention])
        for option, default in attention_options(attention).items():
            kind, before = of_attentions.get(f"model.{option}", (_kind(defaults.get(option, default)), ""))
            meaning = f"{attention}: {said[option]}" if option in said else attention
            of_attentions[f"model.{option}"] = (kind, f"{before}; {meaning}" if before else meaning)
    return own, of_attentions


def _kind(default: Any) -> str:
    nouns = {bool: "True or False", int: "a whole number", float: "a number", str: "text", tuple: "a tuple"}
    return f"{nouns.get(type(default), 'any')}, by default {default!r}"


def _attributes(of: type) -> dict[str, str]:
    """{name: first sentence} of the "Attributes:" of a class and of those that it is made from."""
    found: dict[str, str] = {}
    for cls in reversed(of.__mro__):
        _, heading, section = inspect.cleandoc(cls.__doc__ or "").partition("\nAttributes:")
        entries = textwrap.dedent(section.partition("\n")[2]) if heading else ""
        for entry in re.split(r"\n(?=\S)", entries):
            names, colon, meaning = " ".join(entry.split()).partition(": ")
            if colon:
                found |= dict.fromkeys(names.split(", "), re.split(r"(?<=\S)\.(?: |$)", meaning)[0])
    return found
