"""The console command `flatten-jax`: its parser, and the list of its commands."""

import argparse
import sys

from flatten_jax import extras
from flatten_jax.cli import attentions, compare, config, data, linearize, look, lra, measure, segment, weights

COMMANDS = (
    look.add_models,
    attentions.add_attentions,
    weights.add_convert,
    weights.add_export,
    look.add_predict,
    segment.add_segment,
    weights.add_share,
    linearize.add_linearize,
    config.add_config,
    data.add_check_data,
    measure.add_plan,
    look.add_visualize,
    look.add_curves,
    measure.add_bench,
    compare.add_compare,
    data.add_prepare,
    lra.add_lra,
)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="flatten-jax", description="Focused linear attention vision transformers.")
    parser.set_defaults(takes_overrides=False, takes_buckets=())
    commands = parser.add_subparsers(dest="command", required=True)
    for add in COMMANDS:
        add(commands)
    args, args.overrides = parser.parse_known_args(argv)
    if args.overrides and not args.takes_overrides:
        parser.error(f"unrecognized arguments: {' '.join(args.overrides)}")
    try:
        _check_addresses(args)
        args.run(args)
    except (ValueError, OSError, ImportError) as error:
        sys.exit(f"error: {extras.said(error)}")


def _check_addresses(args: argparse.Namespace) -> None:
    """An argument that is an address is of a bucket that answers, in a command that takes it; overrides come later."""
    from flatten_jax import paths

    for name, value in vars(args).items():
        for entry in value if isinstance(value, list) and name != "overrides" else [value]:
            if not isinstance(entry, str) or "://" not in entry or entry.startswith("hf://"):
                continue
            if name in args.takes_buckets:
                paths.check(name, entry)
            else:
                paths.local(entry, name)


if __name__ == "__main__":
    main()
