"""Speed of flatten_jax beside a checkout of the PyTorch release, interleaved.

    git clone https://github.com/LeapLabTHU/FLatten-Transformer ~/FLatten-Transformer
    pip install torch einops
    python tools/compare_with_release.py --release ~/FLatten-Transformer --output ratios.json

Each round runs every contestant once, in turn, so that a machine that slows down slows all of them. The ratio of a
round is the release's time over ours; the table has its median, lowest and highest over the rounds. On a GPU the
contestants compute in bfloat16 (the release under autocast), on the CPU in float32 (--dtype says otherwise). Each has a
process of its own for each row, with what its users have: ours the settings of main.py and `flatten-jax predict`
(`flatten_jax.runtime`), the release PyTorch's defaults, unless --same-memory.
"""

import argparse
import contextlib
import importlib
import io
import itertools
import multiprocessing
import sys
import types
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import jax
import numpy as np
import torch

import flatten_jax
from flatten_jax import runtime
from flatten_jax.bench import models, report, timing
from flatten_jax.models import dummy_images

# Our name -> the release's module, constructor and arguments (its cfgs/*.yaml and the defaults of its config.py).
RELEASE = {
    "flatten_deit_t": ("", "", {}),  # made here of the release's attention: it has no DeiT itself
    "flatten_pvt_t": ("flatten_pvt", "flatten_pvt_tiny", {"attn_type": "LLLL", "la_sr_ratios": "1111"}),
    "flatten_pvt_v2_b1": ("flatten_pvt_v2", "flatten_pvt_v2_b1", {"attn_type": "LLLL", "la_sr_ratios": "1111"}),
    "flatten_swin_t": (
        "flatten_swin",
        "FLattenSwinTransformer",
        {"depths": [2, 2, 6, 2], "num_heads": [3, 6, 12, 24], "window_size": 56, "attn_type": "LLSS"},
    ),
    "flatten_cswin_t": (
        "flatten_cswin",
        "FLatten_CSWin_64_24181_tiny_224",
        {"attn_type": "LLSS", "la_split_size": "56-28-14-7"},
    ),
}


def import_release(folder: Path) -> None:
    """Make `models.*` of the checkout importable without timm, of which it takes five small names of an old version."""
    if not (folder / "models" / "flatten_swin.py").is_file():
        sys.exit(f"error: {folder} is no checkout of FLatten-Transformer: it has no models/flatten_swin.py")
    package = types.ModuleType("models")  # not its __init__, which imports what is not needed
    package.__path__ = [str(folder / "models")]
    sys.modules["models"] = package

    class DropPath(torch.nn.Module):
        def __init__(self, rate: float = 0.0):
            super().__init__()
            self.rate = rate

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if not self.training or not self.rate:
                return x
            keep = 1 - self.rate
            return x * x.new_empty(x.shape[:1] + (1,) * (x.ndim - 1)).bernoulli_(keep).div_(keep)

    names = {
        "timm": {},
        "timm.data": {"IMAGENET_DEFAULT_MEAN": None, "IMAGENET_DEFAULT_STD": None},
        "timm.models": {},
        "timm.models.layers": {
            "DropPath": DropPath,
            "to_2tuple": lambda x: x if isinstance(x, tuple) else (x, x),
            "trunc_normal_": torch.nn.init.trunc_normal_,
        },
        "timm.models.registry": {"register_model": lambda function: function},
        "timm.models.vision_transformer": {"_cfg": lambda **kwargs: kwargs},
        "timm.models.helpers": {"load_pretrained": None},
    }
    for name, content in names.items():
        module = types.ModuleType(name)
        vars(module).update(content)
        sys.modules[name] = module


def release_model(name: str, drop_path: float) -> torch.nn.Module:
    """The release's model of the same function, whose constructors print a line for every block."""
    module, constructor, options = RELEASE[name]
    with contextlib.redirect_stdout(io.StringIO()):
        if not module:
            return deit_of_release_attention(flatten_jax.create_model(name))
        make = getattr(importlib.import_module(f"models.{module}"), constructor)
        return make(drop_path_rate=drop_path, **options)


def deit_of_release_attention(ours: flatten_jax.models.deit.DeiT) -> torch.nn.Module:
    """DeiT without class token around the release's FocusedLinearAttention, with parameters named as in timm."""
    attention = importlib.import_module("models.flatten_swin").FocusedLinearAttention
    side, width = ours.image_size[0] // ours.patch_size, ours.embed_dim

    class Block(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.norm1, self.norm2 = (torch.nn.LayerNorm(width, eps=1e-6) for _ in range(2))
            self.attn = attention(width, (side, side), ours.num_heads)
            self.mlp = torch.nn.Sequential()
            self.mlp.add_module("fc1", torch.nn.Linear(width, 4 * width))
            self.mlp.add_module("act", torch.nn.GELU())
            self.mlp.add_module("fc2", torch.nn.Linear(4 * width, width))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = x + self.attn(self.norm1(x))
            return x + self.mlp(self.norm2(x))

    class DeiT(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.patch_embed = torch.nn.Sequential()
            self.patch_embed.add_module("proj", torch.nn.Conv2d(3, width, ours.patch_size, ours.patch_size))
            self.pos_embed = torch.nn.Parameter(torch.zeros(1, side * side, width))
            self.blocks = torch.nn.Sequential(*(Block() for _ in range(ours.depth)))
            self.norm = torch.nn.LayerNorm(width, eps=1e-6)
            self.head = torch.nn.Linear(width, ours.num_classes)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.patch_embed(x).flatten(2).transpose(1, 2) + self.pos_embed
            return self.head(self.norm(self.blocks(x)).mean(1))

    return DeiT()


def torch_inference(
    model: torch.nn.Module, images: torch.Tensor, device: str, half: bool
) -> Callable[[], torch.Tensor]:
    def run() -> torch.Tensor:
        with torch.no_grad(), torch.autocast(device, torch.bfloat16, enabled=half):
            return finished(model(images), device)

    return run


def torch_training(model: torch.nn.Module, images: torch.Tensor, device: str, half: bool) -> Callable[[], torch.Tensor]:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.05)
    labels = torch.zeros(len(images), dtype=torch.long, device=device)

    def run() -> torch.Tensor:
        with torch.autocast(device, torch.bfloat16, enabled=half):
            loss = torch.nn.functional.cross_entropy(model(images), labels, label_smoothing=0.1)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        return finished(loss.detach(), device)

    return run


def finished(x: torch.Tensor, device: str) -> torch.Tensor:
    if device == "cuda":
        torch.cuda.synchronize()
    return x


def drop_path(kind: str, name: str) -> float:
    """Of all contestants: in training as the release has it, whose DeiT, which is made here, has none."""
    return 0.1 if kind == "training" and RELEASE[name][0] else 0.0


def contestant(who: str, kind: str, name: str, batch_size: int, args: argparse.Namespace) -> Callable[[], object]:
    """A call of "ours", "eager" or "compiled"; of ours for inference after a check that the release's is the same."""
    half, training = args.dtype == "bfloat16", kind == "training"
    ours = flatten_jax.create_model(name, dtype=args.dtype, drop_path=drop_path(kind, name))
    if who == "ours" and training:
        return models.training(ours, batch_size)
    pictures = np.random.default_rng(0).normal(size=(batch_size, *ours.image_size, 3)).astype(np.float32)
    images = torch.from_numpy(pictures.transpose(0, 3, 1, 2).copy()).to(args.device)
    theirs = release_model(name, ours.drop_path).to(args.device)
    theirs = theirs.train() if training else theirs.eval()
    if who == "ours":
        variables = jax.jit(ours.init)(jax.random.key(0), dummy_images(ours))
        weights = {k: torch.from_numpy(np.array(v)) for k, v in flatten_jax.to_torch(variables, ours).items()}
        theirs.load_state_dict(weights, strict=True)
        expected = torch_inference(theirs, images, args.device, half)().float().cpu().numpy()
        run = models.inference(ours, batch_size, variables, pictures)
        error = float(np.abs(np.asarray(run()) - expected).max() / np.abs(expected).max())
        if error > (0.1 if half else 1e-3):
            sys.exit(f"error: {name}: the two models differ by {error:.1e} of the largest logit; nothing is timed")
        return run
    theirs = torch.compile(theirs) if who == "compiled" else theirs
    return (torch_training if training else torch_inference)(theirs, images, args.device, half)


_call: Callable[[], object]  # of a contestant's process


def start(who: str, args: argparse.Namespace, *row: object) -> None:
    global _call
    import_release(args.release.expanduser())
    if who == "ours":
        runtime.device_per_core()
    if who == "ours" or args.same_memory:
        runtime.keep_freed_memory()
    # Convolutions by TF32, matrix products too: what JAX does on such a GPU by default.
    torch.set_float32_matmul_precision("high")
    _call = contestant(who, *row, args)


def call() -> None:
    _call()


def has_gpu() -> bool:
    return torch.cuda.is_available() and jax.default_backend() == "gpu"


def process() -> ProcessPoolExecutor:
    """A new process: JAX and PyTorch would not survive a fork."""
    return ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--release", type=Path, required=True, help="folder of the checkout")
    parser.add_argument("--models", nargs="+", default=list(RELEASE), choices=list(RELEASE))
    parser.add_argument("--kinds", nargs="+", default=list(models.KINDS), choices=list(models.KINDS))
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 16], help="of inference")
    parser.add_argument("--train-batch", type=int, nargs="+", default=[8])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"])
    parser.add_argument("--no-compile", dest="compile", action="store_false", help="leave torch.compile out")
    parser.add_argument("--output", type=Path, help="a JSON file to write")
    parser.add_argument("--same-memory", action="store_true", help="keep freed memory in PyTorch's processes too")
    args = parser.parse_args()
    with process() as probe:  # here JAX would take most of a GPU's memory
        args.device = "cuda" if probe.submit(has_gpu).result() else "cpu"
    args.dtype = args.dtype or ("bfloat16" if args.device == "cuda" else "float32")

    results = []
    batches = {"inference": args.batch, "training": args.train_batch}
    for kind, name in itertools.product(args.kinds, args.models):
        for batch_size in batches[kind]:
            results.append(measure(kind, name, batch_size, args))
            print(report.line(results[-1].rows[0]), flush=True)
    rows = [row for result in results for row in result.rows]
    result = report.Result("side by side with the release", rows, results[-1].made_on)
    print(report.table(result))
    if args.output:
        report.write_json(args.output, [result])


def measure(kind: str, name: str, batch_size: int, args: argparse.Namespace) -> report.Result:
    """One row."""
    compiled = args.compile and (kind == "inference" or args.device == "cuda")
    with contextlib.ExitStack() as stack:
        processes = {who: stack.enter_context(process()) for who in ("ours", "eager", "compiled")[: 2 + compiled]}
        for who, there in processes.items():
            there.submit(start, who, args, kind, name, batch_size).result()
        calls = {who: lambda there=there: there.submit(call).result() for who, there in processes.items()}
        seconds = timing.interleaved(calls, rounds=args.rounds)
        made_on = processes["ours"].submit(report.hardware).result()
    row = {"kind": kind, "model": name, "dtype": args.dtype, "batch": batch_size}
    row["images/s"] = timing.Spread.of([batch_size / s for s in seconds["ours"]])
    for other in list(calls)[1:]:
        row[f"x {other}"] = timing.ratios(seconds, other, "ours")
    versions = {"torch": torch.__version__, "torch threads": torch.get_num_threads()}
    return report.Result("", [row], made_on | versions | {"same memory": args.same_memory})


if __name__ == "__main__":
    main()
