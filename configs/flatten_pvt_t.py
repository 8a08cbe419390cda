"""FLatten-PVT-T on ImageNet-1k, 300 epochs at 224 px.

    python main.py --config configs/flatten_pvt_t.py --workdir runs/flatten_pvt_t

For a TPU v4-8 or a box of GPUs, with --config.model.dtype=bfloat16.
A minute on any CPU, with generated pictures: --config configs/flatten_pvt_t.py:smoke
Top-1: published 77.8 (paper), 77.758 (release); not run here.
"""

from functools import partial

from configs.published import published

get_config = partial(published, "flatten_pvt_t")
