"""Commands that show models and what they see: `models`, `predict`, `visualize`, `curves`."""

import argparse
from pathlib import Path
from typing import Any

from flatten_jax.cli.source import add_from_arguments, check_output, load_or_random

_PICTURES = "files, folders, or patterns in quotes, such as 'a/**/*.jpg'"


def add_models(commands: Any) -> None:
    command = commands.add_parser("models", help="all models: parameters, multiply-adds, published accuracy")
    command.add_argument("pattern", nargs="?", default="*", help="a shell pattern, such as 'flatten_pvt_*'")
    command.set_defaults(run=list_models)


def list_models(args: argparse.Namespace) -> None:
    import jax

    from flatten_jax import models

    names = models.list_models(args.pattern)
    if not names:
        raise ValueError(f"no model matches {args.pattern!r}; `flatten-jax models` lists all")
    print(f"{'model':22} {'image':>5} {'parameters':>12} {'G':>7}  top-1 published")
    for name in names:
        model = models.create_model(name)
        parameters = sum(leaf.size for leaf in jax.tree.leaves(models.abstract_variables(model)))
        said = models.PUBLISHED.get(name)
        sources = [] if said is None else [(said.paper, "paper"), (said.release, "release")]
        top1 = ", ".join(f"{accuracy} ({source})" for accuracy, source in sources if accuracy is not None) or "-"
        extras = [x for x in (said.note, "weights published: see below" if said.weights else "") if x] if said else []
        billions = models.multiply_adds(model) / 1e9
        print(
            f"{name:22} {model.image_size[0]:5} {parameters:12,} {billions:7.3f}  {'; '.join([top1, *extras])}",
            flush=True,
        )
    if linked := [name for name in names if name in models.PUBLISHED and models.PUBLISHED[name].weights]:
        print(
            f"\nPublished weights, of the FLatten release: download them in a browser, then\n"
            f"flatten-jax predict --from {linked[0]}.pth PICTURES, or load_weights({linked[0] + '.pth'!r}, model)"
        )
        for name in linked:
            print(f"{name:22} {models.PUBLISHED[name].weights}")
    print(
        "\nG: 10^9 multiply-adds of matrix products and convolutions, and 5 per LayerNorm element (the paper's rule).\n"
        "top-1: of ImageNet-1k in percent, as others published it; none of it was measured here."
    )


def add_predict(commands: Any) -> None:
    command = commands.add_parser("predict", help="the likeliest classes of pictures")
    command.add_argument("pictures", nargs="+", help=_PICTURES)
    add_from_arguments(command)
    command.add_argument("--top", type=int, default=5, help="how many classes (default 5)")
    command.add_argument("--batch-size", type=int, default=32, help="pictures computed at a time (default 32)")
    command.add_argument("--format", choices=("text", "csv", "json"), default="text")
    command.add_argument("--output", metavar="FILE", help="write there instead of printing")
    command.set_defaults(run=predict)


def predict(args: argparse.Namespace) -> None:
    from flatten_jax import runtime
    from flatten_jax.trained.predict import Predictor, find_pictures, report

    check_output(args)
    runtime.device_per_core()
    runtime.keep_freed_memory()
    trained = load_or_random(args)
    runtime.cache_compilations()
    predictor = Predictor(trained.model, trained.variables, trained.class_names, trained.resize_ratio)
    pictures = find_pictures(args.pictures)
    predictions = predictor(pictures, top=args.top, batch_size=args.batch_size)
    failed = report(predictions, len(pictures), args.format, args.output, overwrite=args.overwrite)
    if failed:
        raise ValueError(f"{failed} of {len(pictures)} pictures could not be read")


def add_visualize(commands: Any) -> None:
    command = commands.add_parser("visualize", help="draw what a model attends to in pictures")
    command.add_argument("pictures", nargs="*", help=_PICTURES)
    add_from_arguments(command)
    command.add_argument(
        "--figure",
        choices=("attention", "spectra", "depth", "focus"),
        default="attention",
        help="maps of the queries (default), singular values and ranks, entropy and distance by depth, or, without "
        "model and pictures, the focused map in two dimensions",
    )
    command.add_argument("--block", type=int, default=-1, help="from 0, or from -1 backwards (default: the last)")
    command.add_argument("--head", type=int, default=0, help="of the spectra")
    command.add_argument(
        "--query",
        type=float,
        nargs=2,
        action="append",
        metavar=("DOWN", "RIGHT"),
        help="a place, as shares of height and width (default 0.5 0.5); may be repeated",
    )
    command.add_argument("--output", required=True, metavar="FILE", help="a .png, .svg or .pdf file to write")
    command.set_defaults(run=visualize)


def visualize(args: argparse.Namespace) -> None:
    check_output(args)
    if args.figure == "focus":
        if args.pictures or args.source or args.model:
            raise ValueError("--figure focus shows the map itself: it takes neither pictures nor a model")
        from flatten_jax.analysis import figures

        figure = figures.focus(focusing_factors=(1, 2, 3, 4))
    else:
        from flatten_jax.analysis.visualize import CENTRE, visualize
        from flatten_jax.data.augment import decode, eval_transform
        from flatten_jax.trained.predict import find_pictures

        trained = load_or_random(args)
        transform = eval_transform(trained.model.image_size, trained.resize_ratio)
        pictures = [transform(decode(Path(file).read_bytes(), file)) for file in find_pictures(args.pictures)]
        options = dict(block=args.block, head=args.head, queries=args.query or [CENTRE])
        figure = visualize(trained.model, trained.variables, pictures, args.figure, **options)
    figure.savefig(args.output, dpi=120)
    print(f"written: {args.output}")


def add_curves(commands: Any) -> None:
    command = commands.add_parser("curves", help="draw the training curves of one or more runs")
    command.add_argument("runs", nargs="+", help="folders of runs, which may still be under way")
    command.add_argument("--output", default="curves.png", metavar="FILE", help="to write (default curves.png)")
    command.add_argument("--overwrite", action="store_true", help="replace the output if it is there")
    command.set_defaults(run=curves)


def curves(args: argparse.Namespace) -> None:
    check_output(args)
    from flatten_jax.analysis.curves import draw_curves

    draw_curves(args.runs, args.output)
    print(f"written: {args.output}")
