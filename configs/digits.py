"""A small FLatten-DeiT on scikit-learn's 1,797 handwritten digits: a real training run on two CPU cores.

    python main.py --config configs/digits.py --workdir runs/digits

The attention is swapped by --config.model.attn_type=NAME, one of `flatten-jax attentions`.

For any machine: under three minutes on two CPU cores. No published accuracy; ours is in the README.
"""

from configs import base
from configs.recipes import Recipe

RECIPE = Recipe(
    batch_size=64,
    drop_path=0.0,
    source="our own",
    epochs=20,
    warmup_epochs=2,
    learning_rate=8e-3,
    clip_norm=1.0,
    resize_ratio=1.0,
)


def get_config(arg: str = ""):
    config = base.imagenet("flatten_deit_t", RECIPE)
    config.model.update(num_classes=10, image_size=(16, 16), patch_size=2, embed_dim=64, depth=4, num_heads=2)
    config.data.update(name="digits", workers=0)
    # Digits are centred and must not be mirrored: the published augmentation is for photographs.
    config.augment.update(scale=(0.7, 1.0), ratio=(0.9, 1.1), hflip=0.0, rand_augment="", erase_prob=0.0)
    config.augment.update(mixup=0.0, cutmix=0.0)
    config.eval.every_epochs = 5.0
    config.checkpoint.every_epochs = 5.0
    config.log_every_steps = 20
    return base.variant(config, arg)
