"""Commands about data sets: `prepare` builds one, `check-data` looks at every picture of one."""

import argparse
import sys
from pathlib import Path
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
    from flatten_jax.counted import counted
    from flatten_jax.data import check, sources
    from flatten_jax.segmentation.sources import MaskSource

    if bool(args.folder) == bool(args.config) or (args.overrides and not args.config):
        raise ValueError("check-data needs a folder of pictures, or a config (--config configs/x.py)")
    if args.folder and (Path(args.folder) / "annotations").is_dir():
        raise ValueError(
            f"{args.folder} has masks in annotations/, and which ids are classes only a config says: check-data "
            f"--config configs/ade20k_semfpn_flatten_pvt_t.py --config.data.folder={args.folder} "
            "--config.model.num_classes=N"
        )
    if args.folder:
        found = {split: sources.open_source("folder", split, folder=args.folder) for split in ("train", "eval")}
    else:
        from flatten_jax.training import settings, setup

        config = settings.checked(read_config(args.config, args.overrides))
        found = {split: setup.open_source(config, split) for split in ("train", "eval")}
    failed = 0
    if isinstance(found["train"], MaskSource):
        _check_masks(found)
        return
    for split, source in found.items():
        faults = check.check_pictures(source, split if sys.stderr.isatty() else "")
        failed += len(faults)
        for fault in faults:
            print(fault, flush=True)
        pictures, classes = counted(len(source), "picture"), counted(len(source.class_names), "class")
        print(f"{split}: {pictures} of {classes}, {len(faults)} unreadable")
        if source.note:
            print(f"note: {source.note}")
    if failed:
        raise ValueError(f"{counted(failed, 'picture')} cannot be decoded; see above")


def _check_masks(found: dict[str, Any]) -> None:
    from flatten_jax.counted import counted
    from flatten_jax.segmentation.check import check_masks

    failed = 0
    for split, source in found.items():
        seen = check_masks(source, progress=split if sys.stderr.isatty() else "")
        failed += len(seen.faults)
        for fault in seen.faults:
            print(fault, flush=True)
        print(f"{split}: {seen.said()}; {len(seen.faults)} unusable")
    if failed:
        raise ValueError(f"{counted(failed, 'picture')} with masks cannot be used; see above")
