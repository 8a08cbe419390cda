"""The recipe of the release, the families' differences from it, and the smoke variant; configs state the rest.

Where a number differs between paper and release it is the release's (its cfgs/*.yaml and README commands).
"""

import ml_collections
from ml_collections import config_dict

import flatten_jax
from flatten_jax.data import augment


def imagenet(
    model: str,
    *,
    batch_size: int,
    drop_path: float,
    warmup_epochs: int,
    cooldown_epochs: int = 0,
    warmup_learning_rate: float = 1e-6,
    min_learning_rate: float = 1e-5,
    clip_norm: float = 0.0,
    ema_decay: float = 0.0,
    weight_decay: float = 0.05,
) -> ml_collections.ConfigDict:
    """ImageNet-1k, 300 epochs. Learning rates are for a batch of 512 and scale with `train.batch_size`."""
    config = ml_collections.ConfigDict()
    config.seed = 0
    config.init_from = ""  # a run's folder or checkpoint to fine-tune from; not for resuming, which needs no flag
    config.init_new_head = False  # make a new classifier instead of loading that of init_from

    # Every option of the model, to be overridden by name; None leaves the model's own value.
    config.model = ml_collections.ConfigDict({"name": model})
    options = flatten_jax.model_options(model)
    for option, default in options.items():
        config.model[option] = config_dict.placeholder(str if option == "dtype" else type(default))
    config.model.update(num_classes=1000, image_size=options["image_size"], drop_path=drop_path, dtype="float32")

    config.data = ml_collections.ConfigDict(
        {
            "name": "imagenet2012",  # a TFDS name, "digits", "folder", or "synthetic"
            "data_dir": "",  # of TFDS sets; empty: $TFDS_DATA_DIR or ~/tensorflow_datasets
            "folder": "",  # of name="folder": holds train/<class>/*.jpg and val/ or test/ likewise
            "train_split": "train",
            "eval_split": "eval",  # the one that the set has
            "workers": 8,  # processes that decode and augment; 0: a thread of this process
            "on_corrupt": "fail",  # or "skip": replace an unreadable training picture, and count it
            "examples": 0,  # of name="synthetic"
        }
    )
    config.augment = ml_collections.ConfigDict(
        {
            "scale": (0.08, 1.0),  # of the random crop's area
            "ratio": (3 / 4, 4 / 3),
            "hflip": 0.5,
            "rand_augment": "rand-m9-mstd0.5-inc1",
            "erase_prob": 0.25,
            "mixup": 0.8,
            "cutmix": 1.0,
            "mix_prob": 1.0,
            "switch_prob": 0.5,
            "label_smoothing": 0.1,
        }
    )
    config.train = ml_collections.ConfigDict(
        {
            "batch_size": batch_size,  # over all devices
            "accumulation": 1,  # parts of a batch that are computed one after the other
            "epochs": 300,
            "warmup_epochs": warmup_epochs,
            "cooldown_epochs": cooldown_epochs,  # at the minimum learning rate, after `epochs`
            "ema_decay": ema_decay,  # of the moving average of the parameters; 0: none
            "skip_nonfinite_steps": 0,  # how many updates that are not finite are left out before the run stops
        }
    )
    config.optimizer = ml_collections.ConfigDict(
        {
            "learning_rate": 5e-4,
            "warmup_learning_rate": warmup_learning_rate,
            "min_learning_rate": min_learning_rate,
            "weight_decay": weight_decay,
            "clip_norm": clip_norm,  # 0: none
            "b1": 0.9,
            "b2": 0.999,
            "eps": 1e-8,
        }
    )
    config.eval = ml_collections.ConfigDict(
        {
            "every_epochs": 1.0,
            "batch_size": batch_size,
            # Both sides are resized to this times the model's, which squashes the picture; then the central crop.
            "resize_ratio": augment.RESIZE_RATIO,
        }
    )
    config.checkpoint = ml_collections.ConfigDict({"every_epochs": 1.0, "keep": 3})
    config.mesh = ml_collections.ConfigDict(
        {"fsdp": 1}
    )  # devices that share one copy of the state; divides their number
    config.log_every_steps = 50
    return config


def deit(model: str, *, batch_size: int = 1024, drop_path: float) -> ml_collections.ConfigDict:
    """Which recipe the paper used for DeiT is not public; these are the release's Swin settings."""
    return swin(model, batch_size=batch_size, drop_path=drop_path)


def pvt(model: str, *, batch_size: int, drop_path: float, clip_norm: float = 0.0) -> ml_collections.ConfigDict:
    """PVT and PVTv2."""
    return imagenet(
        model, batch_size=batch_size, drop_path=drop_path, warmup_epochs=5, cooldown_epochs=10, clip_norm=clip_norm
    )


def swin(model: str, *, batch_size: int, drop_path: float) -> ml_collections.ConfigDict:
    return imagenet(
        model,
        batch_size=batch_size,
        drop_path=drop_path,
        warmup_epochs=20,
        warmup_learning_rate=5e-7,
        min_learning_rate=5e-6,
        clip_norm=5.0,
    )


def cswin(
    model: str, *, batch_size: int, drop_path: float, ema_decay: float, weight_decay: float = 0.05
) -> ml_collections.ConfigDict:
    return imagenet(
        model,
        batch_size=batch_size,
        drop_path=drop_path,
        warmup_epochs=20,
        cooldown_epochs=10,
        ema_decay=ema_decay,
        weight_decay=weight_decay,
    )


def smoke(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """The same model and recipe, shrunk to a minute on a CPU: few blocks, small generated pictures, a dozen steps."""
    shallow = {"depth": 2, "depths": (1, 1, 2, 1)}
    config.model.update({k: v for k, v in shallow.items() if k in config.model})
    config.model.update(num_classes=10, image_size=(64, 64))
    config.data.update(name="synthetic", examples=64, workers=0)
    config.train.update(batch_size=16, epochs=3, warmup_epochs=1, cooldown_epochs=0)
    config.optimizer.learning_rate = 2e-2  # of a batch of 16, so that the loss can be seen to fall
    config.eval.batch_size = 16
    config.log_every_steps = 1
    return config


def variant(config: ml_collections.ConfigDict, arg: str) -> ml_collections.ConfigDict:
    """What follows the colon in --config configs/x.py:ARG. There is one: "smoke"."""
    if arg not in ("", "smoke"):
        raise ValueError(f"unknown variant {arg!r} of a config; leave it out, or use ':smoke'")
    return smoke(config) if arg else config
