"""SemanticFPN over FLatten-PVT-T on ADE20K at 512 x 512, 40,000 iterations of 16 pictures.

    python main.py --config configs/ade20k_semfpn_flatten_pvt_t.py --workdir runs/ade20k_semfpn \\
        --config.data.folder=ADEChallengeData2016 --config.init_from=flatten_pvt_t.pth

The folder is the challenge's, with images/ and annotations/; weights of the classifier at 224 px are fitted to 512 px.
Durations are in epochs, as everywhere: 40,000 steps are 31.67 epochs of 1,263.

For one GPU, with --config.model.dtype=bfloat16.
A minute or two on any CPU, on mosaics: --config configs/ade20k_semfpn_flatten_pvt_t.py:smoke
mIoU: published 37.21 (paper; PVT-T 36.57); not run here.
"""

from configs.recipes import Recipe, dense
from flatten_jax.training.segmenters import OF_CLASSES

RECIPE = Recipe(
    batch_size=16,
    drop_path=0.1,
    source="mmsegmentation's SemanticFPN of PVT",
    epochs=0,
    warmup_epochs=0,
    learning_rate=2e-4 * 512 / 16,
    warmup_learning_rate=0.0,
    min_learning_rate=0.0,
    weight_decay=1e-4,
    augment=OF_CLASSES,
)


def get_config(arg: str = ""):
    config = dense.ade20k("flatten_pvt_t", "semfpn", RECIPE)
    config.optimizer.update(power=0.9, decay="all")
    config.train.epochs = dense.epochs(40_000, 16)
    config.eval.every_epochs = config.checkpoint.every_epochs = dense.epochs(4_000, 16)
    return dense.variant(config, arg)
