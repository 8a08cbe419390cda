"""PVT-T with softmax attention, mean-pooled on ImageNet-1k, 300 epochs at 224 px.

    python main.py --config configs/pvt_t.py --workdir runs/pvt_t

For a TPU v4-8 or a box of GPUs, with --config.model.dtype=bfloat16.
A minute on any CPU, with generated pictures: --config configs/pvt_t.py:smoke
Top-1: published 75.1 (paper, with class token); not run here.
"""

from configs import base


def get_config(arg: str = ""):
    return base.variant(base.pvt("pvt_t", batch_size=1024, drop_path=0.1), arg)
