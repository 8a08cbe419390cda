"""The command that builds data sets: `prepare`."""

import argparse
from typing import Any


def add_prepare(commands: Any) -> None:
    command = commands.add_parser("prepare", help="build a TFDS data set as ArrayRecord, such as imagenet2012")
    command.add_argument("name", help="imagenet2012, digits, or another TFDS name")
    command.add_argument("--manual_dir", help="folder with the files that cannot be downloaded: ImageNet's two tars")
    command.add_argument("--data_dir", help="where to build (default: $TFDS_DATA_DIR or ~/tensorflow_datasets)")
    command.set_defaults(run=prepare)


def prepare(args: argparse.Namespace) -> None:
    from flatten_jax.data.prepare import prepare

    prepare(args.name, manual_dir=args.manual_dir, data_dir=args.data_dir)
