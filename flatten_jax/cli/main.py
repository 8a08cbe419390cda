"""The console command `flatten-jax`: its parser, and the list of its commands."""

import argparse
import sys

from flatten_jax.cli import attentions, compare, config, data, look, measure, weights

COMMANDS = (
    look.add_models,
    attentions.add_attentions,
    weights.add_convert,
    weights.add_export,
    look.add_predict,
    weights.add_share,
    config.add_config,
    data.add_check_data,
    measure.add_plan,
    look.add_visualize,
    look.add_curves,
    measure.add_bench,
    compare.add_compare,
    data.add_prepare,
)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="flatten-jax", description="Focused linear attention vision transformers.")
    parser.set_defaults(takes_overrides=False)
    commands = parser.add_subparsers(dest="command", required=True)
    for add in COMMANDS:
        add(commands)
    args, args.overrides = parser.parse_known_args(argv)
    if args.overrides and not args.takes_overrides:
        parser.error(f"unrecognized arguments: {' '.join(args.overrides)}")
    try:
        _refuse_buckets(args)
        args.run(args)
    except (ValueError, OSError, ImportError) as error:
        sys.exit(f"error: {error}")


def _refuse_buckets(args: argparse.Namespace) -> None:
    """No path among the arguments is the address of a bucket; of overrides the config knows."""
    from flatten_jax.training.settings import refuse_bucket

    for name, value in vars(args).items():
        for entry in value if isinstance(value, list) and name != "overrides" else [value]:
            refuse_bucket(name, entry if isinstance(entry, str) else "")


if __name__ == "__main__":
    main()
