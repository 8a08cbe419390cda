"""What commands share: where weights come from, of which model they are, and whether a file may be written."""

import argparse
import sys
from typing import Any

from flatten_jax import paths

SOURCE = (
    "a run's folder, one of its checkpoints/<step>, a folder of `share`, a file of weights, or on the Hugging Face Hub "
    "hf://OWNER/NAME[@REVISION]; runs, folders and files may be in a bucket, gs://BUCKET/..."
)


def add_model_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument("--model", help="name of the model (default: what the file says, or guessed from shapes)")
    command.add_argument("--num-classes", type=int, help="where it is not the model's own")
    command.add_argument("--image-size", type=int, nargs="+", metavar="PIXELS", help="side, or height and width")
    command.add_argument("--ema", action="store_true", help="take the moving average that the file holds")
    command.add_argument(
        "--key", help="where in the file the weights are, such as teacher or state_dict.backbone (default: looked for)"
    )
    command.add_argument("--overwrite", action="store_true", help="replace the target if it is there")


def add_from_arguments(command: argparse.ArgumentParser) -> None:
    """--from with the arguments of the model, and --random instead of it."""
    command.add_argument("--from", dest="source", help=SOURCE)
    add_model_arguments(command)
    command.add_argument("--random", action="store_true", help="random weights for --model, to try without any")


def model_options(args: argparse.Namespace) -> dict[str, Any]:
    """Options of `create_model`, of --num-classes and --image-size."""
    options: dict[str, Any] = {} if args.num_classes is None else {"num_classes": args.num_classes}
    return {**options, **image_size(args)}


def image_size(args: argparse.Namespace) -> dict[str, Any]:
    """{"image_size": (height, width)} of --image-size, if that is given."""
    if not args.image_size:
        return {}
    if len(args.image_size) > 2:
        raise ValueError(f"--image-size {args.image_size} must be one side, or height and width")
    return {"image_size": tuple(args.image_size * 2)[:2]}


def load_trained(args: argparse.Namespace, best: bool = False) -> Any:
    """The model and weights of --from, see `flatten_jax.trained.load`."""
    from flatten_jax.trained import load

    return load.load_trained(args.source, args.model, ema=args.ema, key=args.key, best=best, **model_options(args))


def load_or_random(args: argparse.Namespace) -> Any:
    """The model and weights of --from, or random ones for --model; says which."""
    from flatten_jax.trained.load import random_weights

    if args.random == bool(args.source) or (args.random and not args.model):
        raise ValueError(f"{args.command} needs weights (--from), or a model without them (--model NAME --random)")
    trained = random_weights(args.model, **model_options(args)) if args.random else load_trained(args)
    print(trained.said, file=sys.stderr)
    return trained


def check_output(args: argparse.Namespace) -> None:
    """ValueError if --output is there and --overwrite is not."""
    if args.output and paths.path_of(args.output).exists() and not args.overwrite:
        raise ValueError(f"{args.output} exists already: choose another name, or --overwrite")
