"""Commands that bring weights from one form into another: `convert`, `export`, `share`."""

import argparse
from pathlib import Path
from typing import Any

from flatten_jax.cli.source import SOURCE, add_model_arguments, load_trained, model_options


def add_convert(commands: Any) -> None:
    command = commands.add_parser("convert", help="PyTorch weights to safetensors of this library")
    command.add_argument("source", help="a .pth, .pt, .bin or .safetensors file")
    command.add_argument("target", help="a .safetensors file to write; with --to-orbax a folder")
    add_model_arguments(command)
    command.add_argument("--new-head", action="store_true", help="make a new classifier instead of loading it")
    command.add_argument(
        "--new-attention", metavar="NAME", help="inherit all but the attention, which is this one, made new (attn_type)"
    )
    command.add_argument("--to-orbax", action="store_true", help="write a checkpoint folder for main.py as well")
    command.set_defaults(run=convert)


def convert(args: argparse.Namespace) -> None:
    from flatten_jax.weights import files, load

    target = Path(args.target)
    file = target / "weights.safetensors" if args.to_orbax else target
    options = dict(ema=args.ema, key=args.key, new_head=args.new_head, overwrite=args.overwrite, **model_options(args))
    if args.new_attention:
        options |= dict(attn_type=args.new_attention, new_attention=True)
    print(files.convert_file(args.source, file, args.model, **options))
    print(f"written: {file}")
    if args.to_orbax:
        from flatten_jax.training import checkpoint

        model = load.saved_model(load.read_weights(file)[2])
        folder = checkpoint.save_weights(target, load.load_weights(file, model))
        print(f"written: {folder}, for --config.init_from={target} and --checkpoint={target}")


def add_export(commands: Any) -> None:
    command = commands.add_parser("export", help="weights under PyTorch's names, for the release's own classes")
    command.add_argument("source", help=SOURCE)
    command.add_argument("target", help="a .safetensors file to write; with --stablehlo or --onnx a file of that name")
    add_model_arguments(command)
    form = command.add_mutually_exclusive_group()
    form.add_argument("--stablehlo", action="store_true", help="write the function itself, for any batch size")
    form.add_argument("--onnx", action="store_true", help="likewise, by jax2onnx, in an environment with that")
    command.set_defaults(run=export, takes_buckets=("source",))


def export(args: argparse.Namespace) -> None:
    from flatten_jax.weights import files

    source: Any = args.source
    model, options = args.model, model_options(args)
    if args.stablehlo or args.onnx or "://" in source or Path(source).expanduser().is_dir():
        trained = load_trained(args)
        print(trained.said)
        model, source, options = trained.model, trained.variables, {}
    if args.stablehlo:
        from flatten_jax.trained import stablehlo

        exported = stablehlo.export_stablehlo(model, source, args.target, overwrite=args.overwrite)
        print(f"written: {args.target}, {exported.in_avals[0]} -> {exported.out_avals[0]}, for any b")
        print(f"in JAX: jax.export.deserialize(bytearray(open({args.target!r}, 'rb').read())).call(normalised_images)")
        return
    if args.onnx:
        from flatten_jax.trained import onnx

        print(f"written: {onnx.export_onnx(model, source, args.target, overwrite=args.overwrite)}, for any batch size")
        print(f"in Python: onnxruntime.InferenceSession({args.target!r}).run(None, {{'images': normalised_images}})")
        return
    choice = dict(ema=args.ema, key=args.key) if source is args.source else {}
    print(files.export_file(source, args.target, model, overwrite=args.overwrite, **choice, **options))
    print(f"written: {args.target}; in PyTorch, where model is of the original's class:")
    print(f"model.load_state_dict(safetensors.torch.load_file({args.target!r}))")


def add_share(commands: Any) -> None:
    command = commands.add_parser("share", help="a folder with weights, config and model card, for others to load")
    command.add_argument("source", help=f"{SOURCE}; of a run, its best kept checkpoint")
    command.add_argument("folder", help="to write model.safetensors, config.json and README.md into")
    add_model_arguments(command)
    command.add_argument("--licence", help="of the weights, as the Hugging Face Hub calls it, such as apache-2.0")
    command.add_argument("--push", metavar="OWNER/NAME", help="upload it there as well, to the Hugging Face Hub")
    command.add_argument("--revision", help="with --push: a branch (default: main)")
    command.add_argument("--private", action="store_true", default=None, help="with --push: not for everyone")
    command.set_defaults(run=share, takes_buckets=("source", "folder"))


def share(args: argparse.Namespace) -> None:
    from flatten_jax.trained import hub

    trained = load_trained(args, best=True)
    print(trained.said)
    known = {k: getattr(trained, k) for k in ("class_names", "evaluation", "dataset", "origin")}
    hub.save_pretrained(
        args.folder,
        trained.model,
        trained.variables,
        **known,
        **trained.preprocessing,
        licence=args.licence,
        overwrite=args.overwrite,
    )
    print(f"written: {args.folder}, for `flatten-jax predict --from {args.folder}` and flatten_jax.from_pretrained")
    if args.push:
        print(f"pushed: {hub.push_to_hub(args.folder, args.push, revision=args.revision, private=args.private)}")
