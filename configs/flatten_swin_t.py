"""FLatten-Swin-T on ImageNet-1k, 300 epochs at 224 px.

    python main.py --config configs/flatten_swin_t.py --workdir runs/flatten_swin_t

For a TPU v4-8 or a box of GPUs, with --config.model.dtype=bfloat16.
A minute on any CPU, with generated pictures: --config configs/flatten_swin_t.py:smoke
Top-1: published 82.1 (paper), 82.106 (release); not run here.
"""

from functools import partial

from configs.published import published

get_config = partial(published, "flatten_swin_t")
