"""FLatten-Swin-S on ImageNet-1k, 300 epochs at 224 px.

    python main.py --config configs/flatten_swin_s.py --workdir runs/flatten_swin_s

For a TPU v4-8 or a box of GPUs, with --config.model.dtype=bfloat16.
A minute on any CPU, with generated pictures: --config configs/flatten_swin_s.py:smoke
Top-1: published 83.5 (paper); not run here.
"""

from configs import base


def get_config(arg: str = ""):
    return base.variant(base.swin("flatten_swin_s", batch_size=1024, drop_path=0.3), arg)
