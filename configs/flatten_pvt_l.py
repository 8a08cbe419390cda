"""FLatten-PVT-L on ImageNet-1k, 300 epochs at 224 px.

    python main.py --config configs/flatten_pvt_l.py --workdir runs/flatten_pvt_l

For a TPU v4-8 or a box of GPUs, with --config.model.dtype=bfloat16.
A minute on any CPU, with generated pictures: --config configs/flatten_pvt_l.py:smoke
Top-1: published 83.4 (paper); not run here.
"""

from configs import base


def get_config(arg: str = ""):
    return base.variant(base.pvt("flatten_pvt_l", batch_size=256, drop_path=0.3, clip_norm=1.0), arg)
