"""FLatten-PVTv2-B0 on ImageNet-1k, 300 epochs at 224 px.

    python main.py --config configs/flatten_pvt_v2_b0.py --workdir runs/flatten_pvt_v2_b0

For a TPU v4-8 or a box of GPUs, with --config.model.dtype=bfloat16.
A minute on any CPU, with generated pictures: --config configs/flatten_pvt_v2_b0.py:smoke
Top-1: published 71.1 (paper), 71.098 (release); not run here.
"""

from configs import base


def get_config(arg: str = ""):
    return base.variant(base.pvt("flatten_pvt_v2_b0", batch_size=1024, drop_path=0.1), arg)
