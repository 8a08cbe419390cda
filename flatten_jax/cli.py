"""The console command `flatten-jax`: a thin layer over functions of the package."""

import argparse
import sys

from flatten_jax.data import prepare


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="flatten-jax", description="Focused linear attention vision transformers.")
    commands = parser.add_subparsers(dest="command", required=True)

    command = commands.add_parser("prepare", help="build a TFDS data set as ArrayRecord, such as imagenet2012")
    command.add_argument("name", help="imagenet2012, digits, or another TFDS name")
    command.add_argument("--manual_dir", help="folder with the files that cannot be downloaded: ImageNet's two tars")
    command.add_argument("--data_dir", help="where to build (default: $TFDS_DATA_DIR or ~/tensorflow_datasets)")
    command.set_defaults(run=_prepare)

    args = parser.parse_args(argv)
    try:
        args.run(args)
    except (ValueError, OSError, ImportError) as error:
        sys.exit(f"error: {error}")


def _prepare(args: argparse.Namespace) -> None:
    prepare.prepare(args.name, manual_dir=args.manual_dir, data_dir=args.data_dir)


if __name__ == "__main__":
    main()
