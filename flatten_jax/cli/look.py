"""Commands that show models and what they see: `models`, `predict`, `visualize`, `curves`."""

import argparse
import difflib
import fnmatch
import inspect
from pathlib import Path
from typing import Any

from flatten_jax.cli.source import add_from_arguments, check_output, load_or_random

_PICTURES = "files, folders, or patterns in quotes, such as 'a/**/*.jpg'"


def add_models(commands: Any) -> None:
    command = commands.add_parser("models", help="all models by family: image size, and what accuracy was published")
    command.add_argument(
        "pattern",
        nargs="?",
        help="a shell pattern, such as 'flatten_pvt_*': these models only, and their parameters and multiply-adds "
        "too, for which each is traced in seconds; of a single model its levels as well",
    )
    command.add_argument("--family", help="the models of a file of flatten_jax/models only, such as swin; likewise")
    command.set_defaults(run=list_models)


def list_models(args: argparse.Namespace) -> None:
    from flatten_jax.models.registry import FAMILIES

    if args.family is not None and args.family not in FAMILIES:
        close = difflib.get_close_matches(args.family, FAMILIES, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"choose from {', '.join(sorted(FAMILIES))}"
        raise ValueError(f"--family {args.family} is no family of models; {hint}")
    families = {
        family: fnmatch.filter(module.MODELS, args.pattern or "*")
        for family, module in FAMILIES.items()
        if args.family in (None, family)
    }
    width = max((len(name) for names in families.values() for name in names), default=0)
    if not width:
        where = f" of the family {args.family}" if args.family else ""
        known = [name for family, module in FAMILIES.items() if args.family in (None, family) for name in module.MODELS]
        close = difflib.get_close_matches(args.pattern, known, n=1)
        hint = f"did you mean {close[0]!r}?" if close else "`flatten-jax models` lists all"
        raise ValueError(f"no model{where} matches {args.pattern!r}; {hint}")

    counted = args.pattern is not None or args.family is not None
    columns = f" {'parameters':>12} {'G':>7}" if counted else ""
    print(f"{'model':{width}} {'image':>7}{columns}  top-1 published")
    for family, names in families.items():
        if names:
            print(f"\n{family}: {inspect.getdoc(FAMILIES[family]).splitlines()[0]}")
        for name in names:
            print(_line(name, width, counted), flush=True)
    if counted and sum(map(len, families.values())) == 1:
        print(f"\n{_levels(*(name for names in families.values() for name in names))}")
    if linked := [name for names in families.values() for name in names if _weights(name)]:
        print(
            "\nWeights that others published: download one in a browser, then\n"
            f"flatten-jax predict --from {linked[0]}.pth PICTURES, or load_weights({linked[0] + '.pth'!r}, model)"
        )
        for name in linked:
            print(f"{name:{width}} {_weights(name)}")
    print("\ntop-1: of ImageNet-1k in percent, as others published it; none of it was measured here.")
    print(
        "G: 10^9 multiply-adds of matrix products and convolutions, and 5 per LayerNorm element (the paper's rule)."
        if counted
        else "Parameters and multiply-adds too: flatten-jax models --family swin, flatten-jax models 'flatten_swin_*'"
    )


def _weights(name: str) -> str | None:
    """The address of published weights."""
    from flatten_jax.models import PUBLISHED

    return PUBLISHED[name].weights if name in PUBLISHED else None


def _levels(name: str) -> str:
    from flatten_jax import models

    return models.summary(models.create_model(name))


def _line(name: str, width: int, counted: bool) -> str:
    from flatten_jax import models

    height, across = models.model_options(name)["image_size"]
    size, counts = str(height) if height == across else f"{height}x{across}", ""
    if counted:
        model = models.create_model(name)
        counts = f" {models.num_params(model):12,} {models.multiply_adds(model) / 1e9:7.3f}"
    said = models.PUBLISHED.get(name)
    sources = [] if said is None else [(said.paper, "paper"), (said.release, "release")]
    top1 = ", ".join(f"{accuracy} ({source})" for accuracy, source in sources if accuracy is not None) or "-"
    extras = [x for x in (said.note, "weights published: see below" if said.weights else "") if x] if said else []
    return f"{name:{width}} {size:>7}{counts}  {'; '.join([top1, *extras])}"


def add_predict(commands: Any) -> None:
    command = commands.add_parser("predict", help="the likeliest classes of pictures")
    command.add_argument("pictures", nargs="+", help=_PICTURES)
    add_from_arguments(command)
    command.add_argument("--top", type=int, default=5, help="how many classes (default 5)")
    command.add_argument("--batch-size", type=int, default=32, help="pictures computed at a time (default 32)")
    command.add_argument("--format", choices=("text", "csv", "json"), default="text")
    command.add_argument("--output", metavar="FILE", help="write there instead of printing")
    command.set_defaults(run=predict, takes_buckets=("source",))


def predict(args: argparse.Namespace) -> None:
    from flatten_jax import runtime
    from flatten_jax.trained.predict import Predictor, find_pictures, report

    check_output(args)
    runtime.device_per_core()
    runtime.keep_freed_memory()
    trained = load_or_random(args)
    runtime.cache_compilations()
    predictor = Predictor(trained.model, trained.variables, trained.class_names, **trained.preprocessing)
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
    command.set_defaults(run=visualize, takes_buckets=("source",))


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
        transform = eval_transform(trained.model.image_size, trained.resize_ratio, trained.resize)
        pictures = [transform(decode(Path(file).read_bytes(), file)) for file in find_pictures(args.pictures)]
        options = dict(block=args.block, head=args.head, queries=args.query or [CENTRE])
        options |= dict(mean=trained.mean, std=trained.std)
        figure = visualize(trained.model, trained.variables, pictures, args.figure, **options)
    figure.savefig(args.output, dpi=120)
    print(f"written: {args.output}")


def add_curves(commands: Any) -> None:
    command = commands.add_parser("curves", help="draw the training curves of one or more runs")
    command.add_argument("runs", nargs="+", help="folders of runs, which may still be under way")
    command.add_argument("--output", default="curves.png", metavar="FILE", help="to write (default curves.png)")
    command.add_argument("--overwrite", action="store_true", help="replace the output if it is there")
    command.set_defaults(run=curves, takes_buckets=("runs", "output"))


def curves(args: argparse.Namespace) -> None:
    check_output(args)
    from flatten_jax.analysis.curves import draw_curves

    draw_curves(args.runs, args.output)
    print(f"written: {args.output}")
