"""UperNet over FLatten-Swin-T on ADE20K at 512 x 512, 160,000 iterations of 16 pictures.

    python main.py --config configs/ade20k_upernet_flatten_swin_t.py --workdir runs/ade20k_upernet \\
        --config.data.folder=ADEChallengeData2016 --config.init_from=flatten_swin_t.pth

The folder is the challenge's, with images/ and annotations/; weights of the classifier at 224 px are fitted to 512 px.
Durations are in epochs, as everywhere: 160,000 steps are 126.68 epochs of 1,263, the warm-up is 1,500 steps.

For a box of GPUs, with --config.model.dtype=bfloat16.
A minute or two on any CPU, on mosaics: --config configs/ade20k_upernet_flatten_swin_t.py:smoke
mIoU: published 44.82 (paper; Swin-T 44.51); not run here.
"""

from configs.recipes import Recipe, dense
from flatten_jax.training.segmenters import OF_CLASSES

RECIPE = Recipe(
    batch_size=16,
    drop_path=0.3,
    source="mmsegmentation's UperNet of Swin; drop path of LeapLabTHU/Agent-Attention's upernet_la.py",
    epochs=0,
    warmup_epochs=0,
    learning_rate=6e-5 * 512 / 16,
    warmup_learning_rate=6e-5 * 512 / 16 * 1e-6,
    min_learning_rate=0.0,
    weight_decay=0.01,
    augment=OF_CLASSES,
)


def get_config(arg: str = ""):
    config = dense.ade20k("flatten_swin_t", "upernet", RECIPE)
    config.optimizer.update(power=1.0, decay="not_norms")
    config.train.update(epochs=dense.epochs(160_000, 16), warmup_epochs=dense.epochs(1_500, 16))
    config.eval.every_epochs = config.checkpoint.every_epochs = dense.epochs(16_000, 16)
    return dense.variant(config, arg)
