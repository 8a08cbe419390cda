"""FLatten-CSwin-B on ImageNet-1k, 300 epochs at 224 px.

    python main.py --config configs/flatten_cswin_b.py --workdir runs/flatten_cswin_b

For a TPU v4-8 or a box of GPUs, with --config.model.dtype=bfloat16.
A minute on any CPU, with generated pictures: --config configs/flatten_cswin_b.py:smoke
Top-1: published 84.5 (paper); not run here.
"""

from configs import base


def get_config(arg: str = ""):
    return base.variant(
        base.cswin("flatten_cswin_b", batch_size=512, drop_path=0.5, ema_decay=0.99982, weight_decay=0.1), arg
    )
