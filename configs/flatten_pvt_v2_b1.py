"""FLatten-PVTv2-B1 on ImageNet-1k, 300 epochs at 224 px.

    python main.py --config configs/flatten_pvt_v2_b1.py --workdir runs/flatten_pvt_v2_b1

For a TPU v4-8 or a box of GPUs, with --config.model.dtype=bfloat16.
A minute on any CPU, with generated pictures: --config configs/flatten_pvt_v2_b1.py:smoke
Top-1: published 79.5 (paper); not run here.
"""

from functools import partial

from configs.published import published

get_config = partial(published, "flatten_pvt_v2_b1")
