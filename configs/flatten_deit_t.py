"""FLatten-DeiT-T on ImageNet-1k: 300 epochs at 224 px, batch 1024.

    python main.py --config configs/flatten_deit_t.py --workdir runs/flatten_deit_t

For a TPU v4-8 or one H100-class GPU (--config.model.dtype=bfloat16). A minute on a CPU, with generated pictures:
--config configs/flatten_deit_t.py:smoke

Top-1: paper 74.1 (DeiT-T as FLatten, table of the ablation); not run here.
Which recipe the paper used for DeiT is not public; these are the release's Swin settings.
"""

from configs import base


def get_config(arg: str = ""):
    config = base.imagenet(
        "flatten_deit_t",
        batch_size=1024,
        drop_path=0.1,
        warmup_epochs=20,
        warmup_learning_rate=5e-7,
        min_learning_rate=5e-6,
        clip_norm=5.0,
    )
    return base.variant(config, arg)
