"""Fine-tune on a folder of your own pictures: some dozens to thousands a class, light augmentation, small batches.

    python main.py --config configs/finetune.py --workdir runs/mine --config.data.folder=PATH --config.init_from=WEIGHTS

PATH holds train/<class>/*.jpg and val/ or test/ likewise, or the class folders alone, of which a tenth is held out.
WEIGHTS are a run's folder or a file of flatten_pvt_t; of another model: --config configs/finetune.py:flatten_swin_t.
The classifier is made new, for as many classes as there are folders. Without weights, from scratch, which takes more
pictures and epochs: --config.init_from= --config.init_new_head=False --config.train.epochs=200.

For one GPU, with --config.model.dtype=bfloat16; on a CPU a small model or few pictures: --mode=check says how long.
No published accuracy for this setting; ours: not run here.
"""

from configs import base
from configs.recipes import Recipe

RECIPE = Recipe(
    batch_size=32,
    drop_path=0.1,
    source="our own, after the release's fine-tuning at 384 px",
    epochs=30,
    warmup_epochs=2,
    learning_rate=1.6e-3,  # 1e-4 for a batch of 32
    warmup_learning_rate=1.6e-5,
    min_learning_rate=1.6e-5,
    weight_decay=0.05,
    clip_norm=5.0,
)


def get_config(arg: str = ""):
    name, _, variant = arg.partition(",")
    config = base.imagenet(name or "flatten_pvt_t", RECIPE)
    config.model.num_classes = 0  # as many as the folder has
    config.init_new_head = not variant  # which has no weights to start from
    config.data.update(name="folder", workers=2)
    # The weights know pictures already: less is done to the few that there are.
    config.augment.update(scale=(0.35, 1.0), rand_augment="rand-m6-mstd0.5-inc1", erase_prob=0.0, mixup=0.0, cutmix=0.0)
    config.log_every_steps = 10
    return base.variant(config, variant)
