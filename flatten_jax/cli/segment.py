"""The command that shows the classes of pixels: `segment`."""

import argparse
import os
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flatten_jax.cli.source import add_from_arguments, load_or_random

_HEADS = ("upernet", "semfpn")
DEFAULT_CLASSES, DEFAULT_SIZE = 150, (512, 512)  # of a file of mmsegmentation


def add_segment(commands: Any) -> None:
    command = commands.add_parser(
        "segment", help="colour the classes of the pixels of pictures, by a segmenter that was trained here"
    )
    command.add_argument(
        "pictures", nargs="+", help="files, folders, or patterns in quotes, such as 'a/**/*.jpg'; of any size"
    )
    add_from_arguments(command)
    command.add_argument("--head", choices=_HEADS, help="of a file of mmsegmentation, with --model for its backbone")
    command.add_argument(
        "--output", default="segmented", metavar="FOLDER", help="NAME.png and NAME_ids.png go there (default segmented)"
    )
    command.add_argument("--mode", choices=("whole", "slide"), help="default: as the run was evaluated, else whole")
    command.set_defaults(run=segment, takes_buckets=("source",))


def segment(args: argparse.Namespace) -> None:
    import numpy as np
    from PIL import Image

    from flatten_jax import runtime
    from flatten_jax.data.augment import decode
    from flatten_jax.segmentation import show
    from flatten_jax.trained.predict import find_pictures

    pictures = find_pictures(args.pictures)
    targets = _targets(pictures, Path(args.output), args.overwrite)
    runtime.keep_freed_memory()
    trained = _load(args)
    runtime.cache_compilations()
    predict = _predictor(trained, args.mode)
    names = trained.class_names or tuple(map(str, range(trained.model.num_classes)))
    failed = 0
    for file, (shown, raw) in zip(pictures, targets, strict=True):
        try:
            picture = np.asarray(decode(Path(file).read_bytes(), file))
        except (OSError, ValueError) as error:
            print(f"{file}: {error}", file=sys.stderr)
            failed += 1
            continue
        ids = predict(picture)
        shown.parent.mkdir(parents=True, exist_ok=True)
        show.panel(picture, ids, names).save(shown)
        Image.fromarray(ids).save(raw)
        said = ", ".join(f"{names[i]} {100 * share:.0f} %" for i, share in show.shares(ids)[:5])
        print(f"{file}: {said}; written: {shown}, {raw.name}", flush=True)
    if failed:
        raise ValueError(f"{failed} of {len(pictures)} pictures could not be read")


def _targets(pictures: Sequence[str], folder: Path, overwrite: bool) -> list[tuple[Path, Path]]:
    """(coloured, ids) to write for each picture; ValueError if one is there, or is the picture itself."""
    common = os.path.commonpath([os.path.dirname(os.path.abspath(file)) for file in pictures])
    relative = [os.path.relpath(os.path.abspath(file), common).replace(os.sep, "_") for file in pictures]
    stems = Counter(os.path.splitext(name)[0] for name in relative)
    bare = [stem if stems[stem := os.path.splitext(name)[0]] == 1 else name for name in relative]
    targets = [(folder / f"{name}.png", folder / f"{name}_ids.png") for name in bare]
    paths = [path for pair in targets for path in pair]
    if len(set(paths)) < len(paths):
        twice = next(path for path, count in Counter(paths).items() if count > 1)
        raise ValueError(f"two pictures would be written to {twice}: give them one after the other")
    if eaten := {path.resolve() for path in paths} & {Path(file).resolve() for file in pictures}:
        raise ValueError(f"{min(eaten)} is a picture that was given: choose another --output")
    there = [str(path) for path in paths if path.exists()]
    if there and not overwrite:
        listed = ", ".join(there[:3]) + (", ..." if len(there) > 3 else "")
        raise ValueError(f"{listed} exist already: choose another --output, or --overwrite")
    return targets


def _load(args: argparse.Namespace) -> Any:
    """The segmenter of --from, or with --random one of --model that has learned nothing."""
    from flatten_jax.segmentation.model import Segmenter

    if not args.head:
        if args.random:
            raise ValueError("--random needs the head too: --head upernet, or semfpn")
        trained = load_or_random(args)
        if not isinstance(trained.model, Segmenter):
            raise ValueError(
                f"{args.source} is no segmenter, but a {type(trained.model).__name__} for whole pictures: "
                "`flatten-jax predict` shows its classes"
            )
        return trained
    return _of_head(args)


def _of_head(args: argparse.Namespace) -> Any:
    """A segmenter of --model and --head, with the weights of a file, or without."""
    from flatten_jax.cli.source import model_options
    from flatten_jax.models import init
    from flatten_jax.segmentation.create import create_segmenter
    from flatten_jax.trained.load import Trained, located
    from flatten_jax.weights.load import load_with_report

    if not args.model or args.random == bool(args.source):
        raise ValueError("--head needs the name of the backbone, --model, and weights, --from, or --random")
    options = {"num_classes": DEFAULT_CLASSES, "image_size": DEFAULT_SIZE, **model_options(args)}
    model = create_segmenter(args.model, args.head, **options)
    if args.random:
        trained = Trained(
            model, init(model), said=f"WARNING: {args.model} has RANDOM weights; its answers mean nothing"
        )
    else:
        variables, report = load_with_report(located(args.source), model, ema=args.ema, key=args.key)
        trained = Trained(model, variables, said=f"weights of {report}")
    print(trained.said, file=sys.stderr)
    return trained


def _predictor(trained: Any, mode: str | None) -> Any:
    from flatten_jax.segmentation.predict import PixelPredictor
    from flatten_jax.segmentation.transforms import EvalTransform

    size, told = tuple(trained.model.image_size), trained.segmentation or {}
    short = min(size)
    window = size if (mode or told.get("eval", "whole")) == "slide" else None
    kept = {key: told[key] for key in ("stride", "multiple") if key in told}
    if window and "stride" not in kept:
        kept["stride"] = max(1, 2 * short // 3)
    fill = tuple(round(255 * channel) for channel in trained.mean)
    transform = EvalTransform(tuple(told.get("resize", (short, 4 * short))), window, fill=fill, **kept)
    return PixelPredictor(trained.model, trained.variables, transform, trained.mean, trained.std)
