"""Long Range Arena's Pathfinder: are the two marked ends of one snake? By the official recipe, 62,400 steps of 512.

    flatten-jax lra pathfinder --size 32 --count 200000 --out data/pathfinder32
    python main.py --config configs/lra_pathfinder.py --workdir runs/pathfinder32 --config.data.folder=data/pathfinder32

With :64 and :128 behind the name of the config of 4,096 and of 16,384 tokens, the latter of which is Path-X. Linear
attention has another shape than the others in the official configs: --config configs/lra_pathfinder.py:32,linear
--config.model.attn_type=NAME is any other attention in the transformer's shape.

For one GPU. A minute on any CPU, with 320 pictures made in memory: --config configs/lra_pathfinder.py:32,smoke
Test accuracy of 32: published 71.40 (Transformer), 75.30 (Linear Transformer), 77.05 (Performer); not run here.
"""

from configs.lra_image import smoke, tokens
from configs.recipes import Recipe
from flatten_jax.training.setting import NO_AUGMENTATION

SIZES = (32, 64, 128)
RECIPE = Recipe(
    batch_size=512,
    drop_path=0.0,
    source="google-research/long-range-arena, image/configs/pathfinder32",
    epochs=200,
    warmup_epochs=1,
    learning_rate=1e-3,
    warmup_learning_rate=0.0,
    min_learning_rate=0.0,
    weight_decay=0.0,
    augment=NO_AUGMENTATION,
)


def get_config(arg: str = ""):
    words = arg.split(",") if arg else []
    sizes = [int(word) for word in words if word in map(str, SIZES)]
    rest = [word for word in words if word not in map(str, SIZES)]
    if len(sizes) > 1 or not set(rest) <= {"linear", "smoke"}:
        raise ValueError(
            f"unknown variant {arg!r} of configs/lra_pathfinder.py; use ':32', ':64', ':128', and ',linear' or ',smoke'"
        )
    model = "lra_pathfinder_linear" if "linear" in rest else "lra_pathfinder"
    config = tokens(model, RECIPE, 2, "pathfinder")
    side = sizes[0] if sizes else 32
    config.model.image_size = (side, side)
    if "smoke" in rest:
        smoke(config, epochs=40)
        config.data.examples = 80
        config.model.update(attn_type="linear", dropout=0.0)
        config.optimizer.learning_rate = (
            0.064  # of a batch of 32, so that 64 pictures can be seen to be learned by heart
        )
    return config
