"""Give a trained model another attention: swap it, align it block by block, train on for a tenth of the usual epochs.

    python main.py --config configs/linearize.py --workdir runs/linear --config.distill.teacher=WEIGHTS \
        --config.linearize.attention=linear

WEIGHTS are a run's folder or a file of deit_t; of another model: --config configs/linearize.py:swin_t. The data are
ImageNet's, or --config.data.name=folder --config.data.folder=PATH. `flatten-jax linearize` does the same with a
teacher's own data. docs/linearize.md says what the stages do.

For one GPU, with --config.model.dtype=bfloat16.
Published for DeiT-T with all weights taken, 30 epochs: linear 63.3 %, T5 71.2 %, of 72.1 % (arXiv of T5); not run here.
"""

from configs import base
from configs.recipes import Recipe
from flatten_jax.training.run_config import blank

# Rates are given for a batch of 512. What the teacher has not learns 20 times as fast.
RECIPE = Recipe(
    batch_size=512,
    drop_path=0.0,
    source="LeapLabTHU/Transformer-to-TTT@06493e4, T5/main.py; the weight of outputs is that of Copy the Same",
    epochs=30,
    warmup_epochs=5,
    learning_rate=2e-5,
    warmup_learning_rate=2e-7,
    min_learning_rate=2e-7,
    weight_decay=0.05,
)


def get_config(arg: str = ""):
    name, _, variant = arg.partition(",")
    config = base.variant(base.imagenet(name or "deit_t", RECIPE), variant)
    blank(config.model, {"name", "dtype", "drop_path"})  # all else is as the teacher has it
    config.distill.update(weight=50.0, new_factor=20.0)
    return config
