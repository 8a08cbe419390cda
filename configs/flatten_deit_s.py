"""FLatten-DeiT-S on ImageNet-1k, 300 epochs at 224 px.

    python main.py --config configs/flatten_deit_s.py --workdir runs/flatten_deit_s

For a TPU v4-8 or a box of GPUs, with --config.model.dtype=bfloat16.
A minute on any CPU, with generated pictures: --config configs/flatten_deit_s.py:smoke
Top-1: not published for this size; not run here.
"""

from configs import base


def get_config(arg: str = ""):
    return base.variant(base.deit("flatten_deit_s", drop_path=0.1), arg)
