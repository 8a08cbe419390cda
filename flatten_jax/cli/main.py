"""The console command `flatten-jax`: a thin layer over functions of the package."""

import argparse
import os
import sys
from pathlib import Path
from typing import Any

_SOURCE = (
    "a run's folder, one of its checkpoints/<step>, a folder of `share`, a file of weights, or on the Hugging Face Hub "
    "hf://OWNER/NAME[@REVISION]"
)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="flatten-jax", description="Focused linear attention vision transformers.")
    commands = parser.add_subparsers(dest="command", required=True)

    command = commands.add_parser("models", help="all models: parameters, multiply-adds, published accuracy")
    command.add_argument("pattern", nargs="?", default="*", help="a shell pattern, such as 'flatten_pvt_*'")
    command.set_defaults(run=_models)

    command = commands.add_parser("convert", help="PyTorch weights to safetensors of this library")
    command.add_argument("source", help="a .pth, .pt, .bin or .safetensors file")
    command.add_argument("target", help="a .safetensors file to write; with --to-orbax a folder")
    _add_model_arguments(command)
    command.add_argument("--new-head", action="store_true", help="make a new classifier instead of loading it")
    command.add_argument(
        "--new-attention", metavar="NAME", help="inherit all but the attention, which is this one, made new (attn_type)"
    )
    command.add_argument("--to-orbax", action="store_true", help="write a checkpoint folder for main.py as well")
    command.set_defaults(run=_convert)

    command = commands.add_parser("export", help="weights under PyTorch's names, for the release's own classes")
    command.add_argument("source", help=_SOURCE)
    command.add_argument("target", help="a .safetensors file to write; with --stablehlo a .stablehlo file")
    _add_model_arguments(command)
    command.add_argument("--stablehlo", action="store_true", help="write the function itself, for any batch size")
    command.set_defaults(run=_export)

    command = commands.add_parser("predict", help="the likeliest classes of pictures")
    command.add_argument("pictures", nargs="+", help="files, folders, or patterns in quotes, such as 'a/**/*.jpg'")
    command.add_argument("--from", dest="source", help=_SOURCE)
    _add_model_arguments(command)
    command.add_argument("--random", action="store_true", help="random weights for --model, to try without any")
    command.add_argument("--top", type=int, default=5, help="how many classes (default 5)")
    command.add_argument("--batch-size", type=int, default=32, help="pictures computed at a time (default 32)")
    command.add_argument("--format", choices=("text", "csv", "json"), default="text")
    command.add_argument("--output", metavar="FILE", help="write there instead of printing")
    command.set_defaults(run=_predict)

    command = commands.add_parser("share", help="a folder with weights, config and model card, for others to load")
    command.add_argument("source", help=f"{_SOURCE}; of a run, its best kept checkpoint")
    command.add_argument("folder", help="to write model.safetensors, config.json and README.md into")
    _add_model_arguments(command)
    command.add_argument("--licence", help="of the weights, as the Hugging Face Hub calls it, such as apache-2.0")
    command.add_argument("--push", metavar="OWNER/NAME", help="upload it there as well, to the Hugging Face Hub")
    command.add_argument("--revision", help="with --push: a branch (default: main)")
    command.add_argument("--private", action="store_true", default=None, help="with --push: not for everyone")
    command.set_defaults(run=_share)

    command = commands.add_parser(
        "plan",
        help="compile training steps for TPUs or GPUs that are not there: memory, operations, collectives",
        epilog="Further arguments override the configs: --config.train.batch_size=256 --config.model.dtype=bfloat16",
    )
    command.add_argument("--config", nargs="+", required=True, metavar="FILE", help="one or more, configs/x.py")
    topologies = "v5e:4x8, v4:2x2x2, ... (jax[tpu]), h100:8, a100:8, ... (jax[cuda13]), or cpu:8"
    command.add_argument("--topology", nargs="+", required=True, help=topologies)
    command.add_argument("--quick", action="store_true", help="memory only; on TPUs in a tenth of the time")
    command.set_defaults(run=_plan)

    command = commands.add_parser("visualize", help="draw what a model attends to in pictures")
    command.add_argument("pictures", nargs="*", help="files, folders, or patterns in quotes, such as 'a/**/*.jpg'")
    command.add_argument("--from", dest="source", help=_SOURCE)
    _add_model_arguments(command)
    command.add_argument("--random", action="store_true", help="random weights for --model, to try without any")
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
    command.set_defaults(run=_visualize)

    command = commands.add_parser("curves", help="draw the training curves of one or more runs")
    command.add_argument("runs", nargs="+", help="folders of runs, which may still be under way")
    command.add_argument("--output", default="curves.png", metavar="FILE", help="to write (default curves.png)")
    command.add_argument("--overwrite", action="store_true", help="replace the output if it is there")
    command.set_defaults(run=_curves)

    command = commands.add_parser("bench", help="measure speed, memory and compile time on this machine")
    kinds = ("all", "inference", "training", "attention", "memory", "input", "compile")
    command.add_argument("kinds", nargs="+", choices=kinds, metavar="KIND", help=", ".join(kinds))
    command.add_argument("--models", nargs="+", help="names (default: a FLatten model of each family)")
    command.add_argument("--batch", type=int, nargs="+", help="of inference (default 1 16)")
    command.add_argument("--train-batch", type=int, nargs="+", help="of training (default 8)")
    command.add_argument("--tokens", type=int, nargs="+", metavar="N", help="of attention (default 196 ... 16384)")
    command.add_argument("--attention-batch", type=int, help="of attention (default 1)")
    command.add_argument("--memory-limit", type=float, metavar="GIB", help="of attention (default: 60 %% of the free)")
    command.add_argument("--image-size", type=int, help="of the models, where it is not their own")
    command.add_argument("--dtype", choices=("float32", "bfloat16"), help="default: float32 on the CPU, else bfloat16")
    command.add_argument("--rounds", type=int, help="measurements of each timing (default 7)")
    command.add_argument("--output", metavar="FOLDER", help="to write bench.json and attention.png into")
    command.add_argument("--overwrite", action="store_true", help="replace them if they are there")
    command.set_defaults(run=_bench)

    command = commands.add_parser("prepare", help="build a TFDS data set as ArrayRecord, such as imagenet2012")
    command.add_argument("name", help="imagenet2012, digits, or another TFDS name")
    command.add_argument("--manual_dir", help="folder with the files that cannot be downloaded: ImageNet's two tars")
    command.add_argument("--data_dir", help="where to build (default: $TFDS_DATA_DIR or ~/tensorflow_datasets)")
    command.set_defaults(run=_prepare)

    args, args.overrides = parser.parse_known_args(argv)
    if args.overrides and args.run is not _plan:
        parser.error(f"unrecognized arguments: {' '.join(args.overrides)}")
    try:
        args.run(args)
    except (ValueError, OSError, ImportError) as error:
        sys.exit(f"error: {error}")


def _add_model_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument("--model", help="name of the model (default: what the file says, or guessed from shapes)")
    command.add_argument("--num-classes", type=int, help="where it is not the model's own")
    command.add_argument("--image-size", type=int, nargs="+", metavar="PIXELS", help="side, or height and width")
    command.add_argument("--ema", action="store_true", help="take the moving average that the file holds")
    command.add_argument("--overwrite", action="store_true", help="replace the target if it is there")


def _model_options(args: argparse.Namespace) -> dict[str, Any]:
    options: dict[str, Any] = {} if args.num_classes is None else {"num_classes": args.num_classes}
    if args.image_size:
        if len(args.image_size) > 2:
            raise ValueError(f"--image-size {args.image_size} must be one side, or height and width")
        options["image_size"] = (args.image_size * 2)[:2]
    return options


def _models(args: argparse.Namespace) -> None:
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
        extras = [x for x in (said.note, "weights published" if said.weights else "") if x] if said else []
        billions = models.multiply_adds(model) / 1e9
        print(
            f"{name:22} {model.image_size[0]:5} {parameters:12,} {billions:7.3f}  {'; '.join([top1, *extras])}",
            flush=True,
        )
    print(
        "\nG: 10^9 multiply-adds of matrix products and convolutions, and 5 per LayerNorm element (the paper's rule).\n"
        "top-1: of ImageNet-1k in percent, as others published it; none of it was measured here."
    )


def _convert(args: argparse.Namespace) -> None:
    from flatten_jax.weights import files, load

    target = Path(args.target)
    file = target / "weights.safetensors" if args.to_orbax else target
    options = dict(ema=args.ema, new_head=args.new_head, overwrite=args.overwrite, **_model_options(args))
    if args.new_attention:
        options |= dict(attn_type=args.new_attention, new_attention=True)
    print(files.convert_file(args.source, file, args.model, **options))
    print(f"written: {file}")
    if args.to_orbax:
        from flatten_jax.training import checkpoint

        model = load.saved_model(load.read_weights(file)[2])
        folder = checkpoint.save_weights(target, load.load_weights(file, model)["params"])
        print(f"written: {folder}, for --config.init_from={target} and --checkpoint={target}")


def _export(args: argparse.Namespace) -> None:
    from flatten_jax.weights import files

    source: Any = Path(args.source)
    model, options = args.model, _model_options(args)
    if args.stablehlo or source.is_dir():
        trained = _load_trained(args)
        print(trained.said)
        model, source, options = trained.model, trained.variables, {}
    if args.stablehlo:
        from flatten_jax.trained import stablehlo

        exported = stablehlo.export_stablehlo(model, source, args.target, overwrite=args.overwrite)
        print(f"written: {args.target}, {exported.in_avals[0]} -> {exported.out_avals[0]}, for any b")
        print(f"in JAX: jax.export.deserialize(bytearray(open({args.target!r}, 'rb').read())).call(normalised_images)")
        return
    print(files.export_file(source, args.target, model, ema=args.ema, overwrite=args.overwrite, **options))
    print(f"written: {args.target}; in PyTorch: model.load_state_dict(safetensors.torch.load_file({args.target!r}))")


def _load_trained(args: argparse.Namespace, best: bool = False) -> Any:
    from flatten_jax.trained.load import load_trained

    return load_trained(args.source, args.model, ema=args.ema, best=best, **_model_options(args))


def _load_or_random(args: argparse.Namespace) -> Any:
    """The weights of --from, or random ones for --model; says which."""
    from flatten_jax.trained.load import random_weights

    if args.random == bool(args.source) or (args.random and not args.model):
        raise ValueError(f"{args.command} needs weights (--from), or a model without them (--model NAME --random)")
    trained = random_weights(args.model, **_model_options(args)) if args.random else _load_trained(args)
    print(trained.said, file=sys.stderr)
    return trained


def _check_output(args: argparse.Namespace) -> None:
    if args.output and Path(args.output).exists() and not args.overwrite:
        raise ValueError(f"{args.output} exists already: choose another name, or --overwrite")


def _predict(args: argparse.Namespace) -> None:
    from flatten_jax import runtime
    from flatten_jax.trained import predict

    _check_output(args)
    runtime.device_per_core()
    runtime.keep_freed_memory()
    trained = _load_or_random(args)
    runtime.cache_compilations()
    predictor = predict.Predictor(trained.model, trained.variables, trained.class_names, trained.resize_ratio)
    pictures = predict.find_pictures(args.pictures)
    predictions = predictor(pictures, top=args.top, batch_size=args.batch_size)
    failed = predict.report(predictions, len(pictures), args.format, args.output, overwrite=args.overwrite)
    if failed:
        raise ValueError(f"{failed} of {len(pictures)} pictures could not be read")


def _share(args: argparse.Namespace) -> None:
    from flatten_jax.trained import hub

    trained = _load_trained(args, best=True)
    print(trained.said)
    known = {k: getattr(trained, k) for k in ("class_names", "resize_ratio", "evaluation", "dataset", "origin")}
    hub.save_pretrained(
        args.folder, trained.model, trained.variables, **known, licence=args.licence, overwrite=args.overwrite
    )
    print(f"written: {args.folder}, for `flatten-jax predict --from {args.folder}` and flatten_jax.from_pretrained")
    if args.push:
        print(f"pushed: {hub.push_to_hub(args.folder, args.push, revision=args.revision, private=args.private)}")


def _plan(args: argparse.Namespace) -> None:
    # The compilers need no TPU or GPU: they must not look for one, say that it is missing, or keep others waiting.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "1")
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    import jax

    jax.config.update("jax_platforms", "cpu")
    virtual = [int(t[4:]) for t in args.topology if t.startswith("cpu:") and t[4:].isdecimal()]
    jax.config.update("jax_num_cpu_devices", max(virtual, default=1))
    from flatten_jax.bench import plan

    print(plan.HEADER)
    for path in args.config:
        for topology in args.topology:
            config = _load_config(path, args.overrides)
            try:
                print(plan.row(config, plan.plan(config, topology, args.quick)), flush=True)
            except ValueError as error:
                if len(args.config) * len(args.topology) == 1:
                    raise
                print(f"| {config.model.name} | {topology}: {error} |", flush=True)
    print(
        "\nPer chip and step. TFLOP counts 2 for a multiply-add; cycles are the compiler's own estimate, not a timing."
    )


def _load_config(path: str, overrides: list[str]) -> Any:
    """A config file with --config.x.y=value overrides, as main.py reads them."""
    from absl import flags
    from ml_collections import config_flags

    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", flag_values=values)
    sys.path.insert(0, str(Path.cwd()))  # configs import each other from the folder that main.py stands in
    try:
        unknown = values(["plan", f"--config={path}", *overrides])[1:]
    except (AttributeError, TypeError, flags.Error) as error:
        raise ValueError(f"in an override: {error}") from error
    if unknown:
        raise ValueError(f"unexpected arguments {unknown}; overrides are written --config.x.y=value")
    return values.config


def _visualize(args: argparse.Namespace) -> None:
    _check_output(args)
    if args.figure == "focus":
        if args.pictures or args.source or args.model:
            raise ValueError("--figure focus shows the map itself: it takes neither pictures nor a model")
        from flatten_jax.analysis import figures

        figure = figures.focus(focusing_factors=(1, 2, 3, 4))
    else:
        from flatten_jax.analysis.visualize import CENTRE, visualize
        from flatten_jax.data.augment import decode, eval_transform
        from flatten_jax.trained import predict

        trained = _load_or_random(args)
        transform = eval_transform(trained.model.image_size, trained.resize_ratio)
        pictures = [transform(decode(Path(file).read_bytes(), file)) for file in predict.find_pictures(args.pictures)]
        options = dict(block=args.block, head=args.head, queries=args.query or [CENTRE])
        figure = visualize(trained.model, trained.variables, pictures, args.figure, **options)
    figure.savefig(args.output, dpi=120)
    print(f"written: {args.output}")


def _curves(args: argparse.Namespace) -> None:
    _check_output(args)
    from flatten_jax.analysis import curves

    curves.draw_curves(args.runs, args.output)
    print(f"written: {args.output}")


def _bench(args: argparse.Namespace) -> None:
    from flatten_jax import runtime
    from flatten_jax.bench import report, run

    runtime.device_per_core()
    runtime.keep_freed_memory()
    names = ("models", "batch", "train_batch", "tokens", "attention_batch", "memory_limit", "dtype", "rounds")
    given = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    options = () if args.image_size is None else (("image_size", args.image_size),)
    settings = run.Settings(**given, options=options)
    folder = Path(args.output) if args.output else None
    if folder:
        run.check_free(folder, args.overwrite)
    kinds = list(run.KINDS) if "all" in args.kinds else list(dict.fromkeys(args.kinds))
    results, written = [], []
    for result in run.run(kinds, settings, lambda line: print(line, file=sys.stderr, flush=True)):
        results.append(result)
        print(report.table(result), flush=True)
        if folder:  # after every kind, so that what fails later takes nothing with it
            written = run.write(results, folder, overwrite=True)
    for path in written:
        print(f"written: {path}")


def _prepare(args: argparse.Namespace) -> None:
    from flatten_jax.data import prepare

    prepare.prepare(args.name, manual_dir=args.manual_dir, data_dir=args.data_dir)


if __name__ == "__main__":
    main()
