r"""FLatten-Swin-B on ImageNet-1k, fine-tuned at 384 px from its weights of 224 px.

    python main.py --config configs/flatten_swin_b_384.py --workdir runs/flatten_swin_b_384 \
        --config.init_from=runs/flatten_swin_b

For a TPU v4-8 or a box of GPUs, with --config.model.dtype=bfloat16.
A minute on any CPU, with generated pictures: --config configs/flatten_swin_b_384.py:smoke
Top-1: published 85.0 (paper); not run here.
"""

from configs import base


def get_config(arg: str = ""):
    config = base.swin("flatten_swin_b_384", batch_size=256, drop_path=0.5)
    config.train.update(epochs=30, warmup_epochs=5)
    config.optimizer.update(learning_rate=2e-5, warmup_learning_rate=2e-8, min_learning_rate=2e-7, weight_decay=1e-8)
    config.eval.resize_ratio = 1.0  # 384 x 384 without a crop
    return base.variant(config, arg)
