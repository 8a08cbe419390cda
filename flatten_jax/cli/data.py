"""Commands about data sets: `prepare` builds one, `check-data` looks at every picture of one."""

import argparse
import sys
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


def add_check_data(commands: Any) -> None:
    command = commands.add_parser(
        "check-data",
        help="decode every picture of a data set, and list those that cannot be",
        epilog="With --config, further arguments override it: --config.data.folder=PATH",
    )
    command.add_argument("folder", nargs="?", help="holds train/<class>/*.jpg, and val/ or test/ likewise")
    command.add_argument("--config", metavar="FILE", help="configs/x.py or a run's folder, whose data are meant")
    command.set_defaults(run=check_data, takes_overrides=True, takes_buckets=("config",))


def check_data(args: argparse.Namespace) -> None:
    from flatten_jax.cli.config_file import read_config
    from flatten_jax.data import check, sources

    if bool(args.folder) == bool(args.config) or (args.overrides and not args.config):
        raise ValueError("check-data needs a folder of pictures, or a config (--config configs/x.py)")
    if args.folder:
        found = {split: sources.open_source("folder", split, folder=args.folder) for split in ("train", "eval")}
    else:
        from flatten_jax.training import settings, setup

        config = settings.checked(read_config(args.config, args.overrides))
        found = {split: setup.open_source(config, split) for split in ("train", "eval")}
    failed = 0
    for split, source in found.items():
        faults = check.check_pictures(source, split if sys.stderr.isatty() else "")
        failed += len(faults)
        for fault in faults:
            print(fault, flush=True)
        print(f"{split}: {len(source):,} pictures of {len(source.class_names)} classes, {len(faults)} unreadable")
    if failed:
        raise ValueError(f"{failed} pictures cannot be decoded; see above")
