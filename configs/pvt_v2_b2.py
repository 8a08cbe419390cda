"""PVTv2-B2 with softmax attention on ImageNet-1k, 300 epochs at 224 px.

    python main.py --config configs/pvt_v2_b2.py --workdir runs/pvt_v2_b2

For a TPU v4-8 or a box of GPUs, with --config.model.dtype=bfloat16.
A minute on any CPU, with generated pictures: --config configs/pvt_v2_b2.py:smoke
Top-1: published 82.0 (paper); not run here.
"""

from configs import base


def get_config(arg: str = ""):
    return base.variant(base.pvt("pvt_v2_b2", batch_size=1024, drop_path=0.1), arg)
