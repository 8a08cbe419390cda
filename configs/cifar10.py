"""FLatten-DeiT-T's width on CIFAR-10 at 32 px with patches of 4: accuracy within hours instead of days.

    python main.py --config configs/cifar10.py --workdir runs/cifar10 --config.data.folder=PATH

PATH holds train/<class>/*.jpg and test/<class>/*.jpg. The attention is swapped by --config.model.attn_type=NAME, one
of `flatten-jax attentions`, or changed by its options, such as focusing_factor, use_dwc and use_positional_encoding.

For one GPU. On two CPU cores some hundred steps show the loss falling: --config.model.depth=4 --config.train.epochs=1
--config.train.warmup_epochs=0
No published accuracy for this setting; ours: not run here.
"""

from configs import base
from configs.recipes import Recipe

RECIPE = Recipe(
    batch_size=128,
    drop_path=0.1,
    source="our own",
    epochs=100,
    warmup_epochs=5,
    learning_rate=2e-3,
    clip_norm=5.0,
    resize_ratio=1.0,
)


def get_config(arg: str = ""):
    config = base.imagenet("flatten_deit_t", RECIPE)
    config.model.update(num_classes=10, image_size=(32, 32), patch_size=4)
    config.data.update(name="folder", workers=4)
    config.augment.update(scale=(0.3, 1.0), erase_prob=0.0)
    config.eval.update(batch_size=500, every_epochs=5.0)
    config.checkpoint.every_epochs = 5.0
    return base.variant(config, arg)
