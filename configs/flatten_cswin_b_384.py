r"""FLatten-CSwin-B on ImageNet-1k, fine-tuned at 384 px from its weights of 224 px.

    python main.py --config configs/flatten_cswin_b_384.py --workdir runs/flatten_cswin_b_384 \
        --config.init_from=runs/flatten_cswin_b

For a TPU v4-8 or a box of GPUs, with --config.model.dtype=bfloat16.
A minute on any CPU, with generated pictures: --config configs/flatten_cswin_b_384.py:smoke
Top-1: published 85.5 (paper); not run here.
"""

from configs import base


def get_config(arg: str = ""):
    config = base.cswin("flatten_cswin_b_384", batch_size=256, drop_path=0.7, ema_decay=0.99982)
    config.train.update(epochs=20, warmup_epochs=0)
    config.optimizer.update(learning_rate=5e-6, warmup_learning_rate=5e-6, min_learning_rate=5e-7, weight_decay=1e-8)
    return base.variant(config, arg)
