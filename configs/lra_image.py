"""Long Range Arena's Image: grey CIFAR-10 as sequences of 1,024 pixels, by the official recipe, 35,000 steps of 256.

    python main.py --config configs/lra_image.py --workdir runs/lra_image --config.data.folder=PATH

PATH holds CIFAR-10 as train/<class>/*.jpg and test/<class>/*.jpg; 5,000 training pictures are for validation. Of the
test set at the end: --mode=eval --config.data.eval_split=test. The attention is swapped by
--config.model.attn_type=NAME; one that takes no class token, by --config.model.class_token=False besides.

For one GPU: some ten minutes. A minute on any CPU, with generated pictures: --config configs/lra_image.py:smoke
Test accuracy: published 42.44 (Transformer), 42.34 (Linear Transformer), 42.77 (Performer); not run here.
"""

from configs import base
from configs.recipes import Recipe
from flatten_jax.training.setting import NO_AUGMENTATION

ADAM = dict(b1=0.9, b2=0.98, eps=1e-9)  # of all tasks
RECIPE = Recipe(
    batch_size=256,
    drop_path=0.0,
    source="google-research/long-range-arena, image/configs/cifar10",
    epochs=200,
    warmup_epochs=1,
    learning_rate=5e-4 * 512 / 256,
    warmup_learning_rate=0.0,
    min_learning_rate=0.0,
    weight_decay=0.0,
    augment=NO_AUGMENTATION,
)


def tokens(model: str, recipe: Recipe, classes: int, source: str):
    """What the arena's configs have in common."""
    config = base.imagenet(model, recipe)
    config.model.num_classes = classes
    config.data.update(name=source, workers=2, eval_split="validation")
    config.optimizer.update(ADAM)
    config.eval.update(every_epochs=5.0)
    config.checkpoint.every_epochs = 5.0
    return config


def smoke(config, batch_size: int = 32, epochs: int = 6):
    """The same in a minute on a CPU, on examples made in memory."""
    config.data.update(examples=320, workers=0)
    config.train.update(batch_size=batch_size, epochs=float(epochs), warmup_epochs=1.0, accumulation=1)
    config.eval.update(batch_size=batch_size, every_epochs=float(epochs))
    config.checkpoint.every_epochs = float(epochs)
    config.log_every_steps = 10
    return config


def get_config(arg: str = ""):
    if arg not in ("", "smoke"):
        raise ValueError(f"unknown variant {arg!r} of configs/lra_image.py; leave it out, or use ':smoke'")
    config = tokens("lra_image", RECIPE, 10, "lra_image")
    if arg:
        smoke(config)
        config.data.update(name="synthetic", eval_split="eval")
        config.model.update(attn_type="linear", dropout=0.0)
        config.optimizer.learning_rate *= 16
    return config
