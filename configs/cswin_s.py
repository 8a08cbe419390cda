"""CSwin-S (of the release's depths) with softmax attention on ImageNet-1k, 300 epochs at 224 px.

    python main.py --config configs/cswin_s.py --workdir runs/cswin_s

For a TPU v4-8 or a box of GPUs, with --config.model.dtype=bfloat16.
A minute on any CPU, with generated pictures: --config configs/cswin_s.py:smoke
Top-1: published 83.6 (paper, other depths); not run here.
"""

from configs import base


def get_config(arg: str = ""):
    return base.variant(base.cswin("cswin_s", batch_size=1024, drop_path=0.4, ema_decay=0.99984), arg)
