"""Small models of timm, with their names and answers: python tests/weights/make_timm.py (torch, timm 1.0.31)."""

from pathlib import Path

import numpy as np

# name -> (class in timm.models, its arguments, name here, options here)
MODELS = {
    "swin": (
        "SwinTransformer",
        dict(img_size=32, window_size=4, embed_dim=8, depths=(1, 1, 2, 1), num_heads=(1, 2, 2, 4), num_classes=3),
        "swin_t",
        dict(image_size=32, softmax_window_size=4, embed_dim=8, depths=(1, 1, 2, 1), num_heads=(1, 2, 2, 4)),
    ),
    "pvt_v2": (
        "PyramidVisionTransformerV2",
        dict(
            embed_dims=(8, 8, 16, 16),
            depths=(1, 1, 1, 1),
            num_heads=(1, 2, 2, 4),
            mlp_ratios=(2, 2, 2, 2),
            num_classes=3,
        ),
        "pvt_v2_b1",
        dict(
            image_size=32,
            embed_dims=(8, 8, 16, 16),
            depths=(1, 1, 1, 1),
            num_heads=(1, 2, 2, 4),
            mlp_ratios=(2, 2, 2, 2),
        ),
    ),
    "vit_avg": (
        "VisionTransformer",
        dict(
            **dict(img_size=16, patch_size=4, embed_dim=8, depth=2, num_heads=2, mlp_ratio=2, num_classes=3),
            **dict(global_pool="avg", class_token=False),
        ),
        "deit_t",
        dict(
            **dict(image_size=16, patch_size=4, embed_dim=8, depth=2, num_heads=2, mlp_ratio=2),
            **dict(class_token=False, fc_norm=True),
        ),
    ),
}


def main() -> None:
    import timm
    import torch

    torch.manual_seed(0)
    arrays = {}
    for name, (cls, arguments, _, options) in MODELS.items():
        model = getattr(timm.models, cls)(**arguments).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_((parameter + 0.2 * torch.randn_like(parameter)).half())
            x = torch.randn(1, 3, options["image_size"], options["image_size"])
            arrays |= {f"{name}/x": x.numpy(), f"{name}/y": model(x).numpy()}
        state = {k: v.numpy() for k, v in model.state_dict().items()}
        arrays |= {f"{name}/{k}": v.astype(np.float16) if v.dtype == np.float32 else v for k, v in state.items()}
    np.savez_compressed(Path(__file__).with_name("timm.npz"), **arrays)


if __name__ == "__main__":
    main()
