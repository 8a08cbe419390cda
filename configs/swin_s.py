"""Swin-S with softmax attention on ImageNet-1k, 300 epochs at 224 px.

    python main.py --config configs/swin_s.py --workdir runs/swin_s

For a TPU v4-8 or a box of GPUs, with --config.model.dtype=bfloat16.
A minute on any CPU, with generated pictures: --config configs/swin_s.py:smoke
Top-1: published 83.0 (paper); not run here.
"""

from configs import base


def get_config(arg: str = ""):
    return base.variant(base.swin("swin_s", batch_size=1024, drop_path=0.3), arg)
