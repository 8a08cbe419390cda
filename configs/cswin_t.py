"""CSwin-T (of the release's depths) with softmax attention on ImageNet-1k, 300 epochs at 224 px.

    python main.py --config configs/cswin_t.py --workdir runs/cswin_t

For a TPU v4-8 or a box of GPUs, with --config.model.dtype=bfloat16.
A minute on any CPU, with generated pictures: --config configs/cswin_t.py:smoke
Top-1: published 82.7 (paper, other depths); not run here.
"""

from configs import base


def get_config(arg: str = ""):
    return base.variant(base.cswin("cswin_t", batch_size=2048, drop_path=0.2, ema_decay=0.99984), arg)
