"""Long Range Arena's ListOps: what do nested lists of operations come to? By the official recipe, 5,000 steps of 32.

    flatten-jax lra listops --count 100000 --out data/listops
    python main.py --config configs/lra_listops.py --workdir runs/listops --config.data.folder=data/listops

The attention is swapped by --config.model.attn_type=NAME, one that can leave out what fills up shorter sequences and
needs no grid: efficient, hydra, linear, performer, softmax.

For one GPU. A minute or two on any CPU, smaller and on 320 sequences made in memory: configs/lra_listops.py:smoke
Test accuracy: published 36.37 (Transformer); 16.13 (Linear Transformer) and 18.01 (Performer) are what one answer
for all gives, 17.5; not run here.
"""

from configs.lra_image import smoke, tokens
from configs.recipes import Recipe
from flatten_jax.training.setting import NO_AUGMENTATION

STEPS, STEPS_PER_EPOCH = 5000, 96_000 // 32
RECIPE = Recipe(
    batch_size=32,
    drop_path=0.0,
    source="google-research/long-range-arena, listops/configs",
    epochs=STEPS / STEPS_PER_EPOCH,
    warmup_epochs=1000 / STEPS_PER_EPOCH,
    learning_rate=0.05 / 1000**0.5 * 512 / 32,  # of the schedule .05 / sqrt(max(step, 1000)) after its warm-up
    warmup_learning_rate=0.0,
    min_learning_rate=0.0,
    weight_decay=0.1,
    augment=NO_AUGMENTATION,
)


def get_config(arg: str = ""):
    if arg not in ("", "smoke"):
        raise ValueError(f"unknown variant {arg!r} of configs/lra_listops.py; leave it out, or use ':smoke'")
    config = tokens("lra_listops", RECIPE, 10, "listops")
    config.optimizer.schedule = "rsqrt"
    config.eval.update(every_epochs=0.1)
    config.checkpoint.every_epochs = 0.1
    if arg:
        smoke(config, batch_size=16, epochs=2)
        config.model.update(attn_type="linear", embed_dim=64, qkv_dim=64, depth=1)
    return config
