"""FLatten-CSwin-T on ImageNet-1k, 300 epochs at 224 px.

    python main.py --config configs/flatten_cswin_t.py --workdir runs/flatten_cswin_t

For a TPU v4-8 or a box of GPUs, with --config.model.dtype=bfloat16.
A minute on any CPU, with generated pictures: --config configs/flatten_cswin_t.py:smoke
Top-1: published 83.1 (paper), 83.130 (release); not run here.
"""

from functools import partial

from configs.published import published

get_config = partial(published, "flatten_cswin_t")
