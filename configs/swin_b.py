"""Swin-B with softmax attention on ImageNet-1k, 300 epochs at 224 px.

    python main.py --config configs/swin_b.py --workdir runs/swin_b

For a TPU v4-8 or a box of GPUs, with --config.model.dtype=bfloat16.
A minute on any CPU, with generated pictures: --config configs/swin_b.py:smoke
Top-1: published 83.5 (paper); not run here.
"""

from configs import base


def get_config(arg: str = ""):
    return base.variant(base.swin("swin_b", batch_size=512, drop_path=0.5), arg)
