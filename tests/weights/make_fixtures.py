"""The PyTorch files of these tests, made once by PyTorch itself: python tests/weights/make_fixtures.py (torch, yacs).

Weights follow from their names (`value`), so the tests know them without PyTorch.
"""

import argparse
import zlib
from collections import OrderedDict
from pathlib import Path

import numpy as np

FOLDER = Path(__file__).parent

# FLatten-DeiT as create_model("flatten_deit_t", **OPTIONS) has it, under PyTorch's names.
OPTIONS = dict(embed_dim=8, depth=2, num_heads=2, patch_size=4, image_size=16, mlp_ratio=2, num_classes=3)
BLOCK = {
    "norm1.weight": (8,),
    "norm1.bias": (8,),
    "attn.qkv.weight": (24, 8),
    "attn.qkv.bias": (24,),
    "attn.proj.weight": (8, 8),
    "attn.proj.bias": (8,),
    "attn.scale": (1, 1, 8),
    "attn.positional_encoding": (1, 16, 8),
    "attn.dwc.weight": (4, 1, 5, 5),
    "attn.dwc.bias": (4,),
    "norm2.weight": (8,),
    "norm2.bias": (8,),
    "mlp.fc1.weight": (16, 8),
    "mlp.fc1.bias": (16,),
    "mlp.fc2.weight": (8, 16),
    "mlp.fc2.bias": (8,),
}
SHAPES = {
    "pos_embed": (1, 16, 8),
    "patch_embed.proj.weight": (8, 3, 4, 4),
    "patch_embed.proj.bias": (8,),
    **{f"blocks.{i}.{name}": shape for i in range(2) for name, shape in BLOCK.items()},
    "norm.weight": (8,),
    "norm.bias": (8,),
    "head.weight": (3, 8),
    "head.bias": (3,),
}


def value(name: str, shape: tuple[int, ...], salt: str = "") -> np.ndarray:
    """Normal numbers of three binary digits after the point: exact in bfloat16 too."""
    normal = np.random.RandomState(zlib.crc32((name + salt).encode())).standard_normal(shape)
    return (np.round(8 * normal) / 8).astype(np.float32)


def weights(salt: str = "") -> dict[str, np.ndarray]:
    return {name: value(name, shape, salt) for name, shape in SHAPES.items()}


def main() -> None:
    import safetensors.torch
    import torch
    import torch.nn.functional as F
    from yacs.config import CfgNode

    def state(prefix: str = "", salt: str = "", dtype: torch.dtype = torch.float32) -> OrderedDict:
        named = OrderedDict((prefix + k, torch.tensor(v).to(dtype)) for k, v in weights(salt).items())
        named._metadata = OrderedDict([("", {"version": 1})])  # as nn.Module.state_dict has it
        return named

    def save(name: str, content: object, **options: object) -> None:
        torch.save(content, FOLDER / name, **options)

    parameters = [torch.nn.Parameter(torch.ones(3)), torch.nn.Parameter(torch.ones(2, 2))]
    optimizer = torch.optim.AdamW(parameters, lr=1e-3)
    sum(p.sum() for p in parameters).backward()
    optimizer.step()
    config = CfgNode({"MODEL": {"TYPE": "flatten_deit", "LA": {"FOCUSING_FACTOR": 3}}, "AUG": {"SCALE": (0.08, 1.0)}})
    config.freeze()
    scheduler = {"warmup_steps": 20, "base_values": [1e-3, 1e-3], "noise_range_t": None, "_step_count": 7}
    training = {
        "optimizer": optimizer.state_dict(),
        "lr_scheduler": scheduler,
        "scaler": {"scale": 65536.0, "growth_factor": 2.0, "_growth_tracker": 0},
        "epoch": 299,
        "rng": (torch.get_rng_state(), np.random.RandomState(0).get_state()[0], np.arange(4)),
    }

    # What the release's save_checkpoint_ema writes, under DistributedDataParallel, in both forms of torch.save.
    release = {
        "model": state("module."),
        "max_accuracy": np.float64(74.1),
        "config": config,
        **training,
        "state_dict_ema": state("module.", "ema"),
    }
    save("release.pth", release)
    save("release_legacy.pth", release, _use_new_zipfile_serialization=False)
    # What timm and DeiT write.
    args = argparse.Namespace(lr=5e-4, device=torch.device("cpu"), size=torch.Size([2]), path=Path("out"), names={"a"})
    save("timm.pth", {"state_dict": state("_orig_mod.module."), "arch": "deit", "args": args, "metric": 74.1})
    # The bare state dict: of float16, of bfloat16, of Parameters, with everything in one storage.
    save("half.pth", state(dtype=torch.float16))
    save("bfloat16.pth", state(dtype=torch.bfloat16))
    save("parameters.pth", {k: torch.nn.Parameter(v) for k, v in state().items()})
    safetensors.torch.save_file(state(dtype=torch.bfloat16), FOLDER / "bfloat16.safetensors")
    flat = torch.cat([torch.zeros(5), *(v.t().flatten() if v.ndim == 2 else v.flatten() for v in state().values())])
    views, at = OrderedDict(), 5
    for name, tensor in state().items():
        part = flat[at : at + tensor.numel()]
        views[name] = part.view(tensor.shape[::-1]).t() if tensor.ndim == 2 else part.view(tensor.shape)
        at += tensor.numel()
    save("views.pth", views)
    save("views_legacy.pth", views, _use_new_zipfile_serialization=False)

    x = torch.tensor(value("x", (1, 2, 5, 5)), dtype=torch.float64)
    sizes = {f"to_{h}x{w}": F.interpolate(x, size=(h, w), mode="bicubic") for h, w in [(7, 7), (3, 3), (5, 8), (4, 9)]}
    np.savez(FOLDER / "bicubic.npz", x=x.numpy(), **{k: v.numpy() for k, v in sizes.items()})


if __name__ == "__main__":
    main()
