"""FLatten-PVTv2-B4 on ImageNet-1k, 300 epochs at 224 px.

    python main.py --config configs/flatten_pvt_v2_b4.py --workdir runs/flatten_pvt_v2_b4

For a TPU v4-8 or a box of GPUs, with --config.model.dtype=bfloat16.
A minute on any CPU, with generated pictures: --config configs/flatten_pvt_v2_b4.py:smoke
Top-1: published 84.0 (paper); not run here.
"""

from configs import base


def get_config(arg: str = ""):
    return base.variant(base.pvt("flatten_pvt_v2_b4", batch_size=512, drop_path=0.3, clip_norm=1.0), arg)
