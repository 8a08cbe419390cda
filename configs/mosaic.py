"""A small FLatten-PVT with an UperNet learns to segment mosaics of digits, or of CIFAR-10, in minutes on a CPU.

    python main.py --config configs/mosaic.py --workdir runs/mosaic

Of pictures of your own, in folders of classes: --config.data.name=folder --config.data.folder=PATH. The attention is
swapped by --config.model.attn_type=NAME, the head by --config.segmentation.head=semfpn.

For any machine: 1,000 steps, about half an hour of CPU time. No published mIoU for this setting; ours:
46.92 (one run, seed 0); an answer at random has 5.
"""

from configs import base
from configs.recipes import Recipe, dense
from flatten_jax.training.segmenters import OF_CLASSES

RECIPE = Recipe(
    batch_size=32,
    drop_path=0.0,
    source="our own",
    epochs=20,
    warmup_epochs=1,
    learning_rate=2e-3 * 512 / 32,
    warmup_learning_rate=0.0,
    min_learning_rate=0.0,
    clip_norm=1.0,
    augment=OF_CLASSES,
)


def get_config(arg: str = ""):
    config = base.imagenet("flatten_pvt_t", RECIPE)
    config.model.update(
        num_classes=0, image_size=(64, 64), embed_dims=(32, 64, 96, 128), depths=(1, 1, 1, 1), num_heads=(1, 2, 3, 4)
    )
    config.data.update(name="digits", workers=0, examples=1600)
    config.augment.hflip = 0.0  # of digits; of photographs 0.5
    config.segmentation.update(head="upernet", channels=32, mosaic="voronoi", ratio=(0.8, 1.5), photometric=False)
    config.optimizer.schedule = "poly"
    config.eval.update(every_epochs=5.0, batch_size=50)
    config.checkpoint.every_epochs = 5.0
    config.log_every_steps = 20
    return dense.variant(config, arg)
