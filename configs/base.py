"""What all configs are made of: one recipe on ImageNet-1k, with every option of every model, and the smoke variant."""

import ml_collections

import flatten_jax
from configs.recipes import Recipe
from flatten_jax.training.run_config import model_section


def imagenet(model: str, recipe: Recipe) -> ml_collections.ConfigDict:
    """A model on ImageNet-1k by a recipe, with the release's augmentation. Configs change what is otherwise."""
    config = ml_collections.ConfigDict()
    config.seed = 0
    config.init_from = ""  # a run's folder or checkpoint to fine-tune from; not for resuming, which needs no flag
    config.init_new_head = False  # make a new classifier instead of loading that of init_from

    config.model = model_section(model)
    config.model.update(num_classes=1000, drop_path=recipe.drop_path, dtype="float32")

    config.data = ml_collections.ConfigDict(
        {
            "name": "imagenet2012",  # a TFDS name, "digits", "folder", "synthetic", or the arena's (docs/lra.md)
            "data_dir": "",  # of TFDS sets; empty: $TFDS_DATA_DIR or ~/tensorflow_datasets
            "folder": "",  # of name="folder": holds train/<class>/*.jpg and val/ or test/ likewise
            "cache_dir": "",  # where data_dir or folder is in a bucket, gs://: a local folder to copy the data to, once
            "train_split": "train",
            "eval_split": "eval",  # the one that the set has
            "workers": 8,  # processes that decode and augment; 0: a thread of this process
            "mean": recipe.mean,  # of the channels, 0 to 1, by which pictures are normalised
            "std": recipe.std,
            "on_corrupt": "fail",  # or "skip": replace an unreadable training picture, and count it
            "examples": 0,  # to generate, of name="synthetic" or the arena's without a folder
        }
    )
    config.augment = ml_collections.ConfigDict(
        {
            "scale": (0.08, 1.0),  # of the random crop's area
            "ratio": (3 / 4, 4 / 3),
            "hflip": 0.5,
            "repeats": recipe.repeats,  # of a picture in an epoch, which has fewer pictures for it
            "rand_augment": "rand-m9-mstd0.5-inc1",
            "erase_prob": 0.25,
            "mixup": 0.8,
            "cutmix": 1.0,
            "mix_prob": 1.0,
            "switch_prob": 0.5,
            "label_smoothing": 0.1,
        }
    )
    config.augment.update(recipe.augment)
    config.train = ml_collections.ConfigDict(
        {
            "batch_size": recipe.batch_size,  # over all devices
            "accumulation": 1,  # parts of a batch that are computed one after the other
            "epochs": float(recipe.epochs),  # which may be a fraction of one
            "warmup_epochs": float(recipe.warmup_epochs),
            "cooldown_epochs": float(recipe.cooldown_epochs),  # at the minimum learning rate, after `epochs`
            "ema_decay": recipe.ema_decay,  # of the moving average of the parameters; 0: none
            "skip_nonfinite_steps": 0,  # how many updates that are not finite are left out before the run stops
            "tpu_kernels": False,  # focused attention on TPUs, in bfloat16, by a kernel of its own (docs/training.md)
        }
    )
    config.optimizer = ml_collections.ConfigDict(
        {
            "learning_rate": recipe.learning_rate,
            "warmup_learning_rate": recipe.warmup_learning_rate,
            "min_learning_rate": recipe.min_learning_rate,
            "schedule": "cosine",  # or "rsqrt", "poly"
            "power": 1.0,  # of "poly"
            "weight_decay": recipe.weight_decay,
            "decay": "matrices",  # what it is of; or "not_norms", "all"
            "clip_norm": recipe.clip_norm,  # 0: none
            "b1": 0.9,
            "b2": 0.999,
            "eps": 1e-8,
        }
    )
    config.eval = ml_collections.ConfigDict(
        {
            "every_epochs": 1.0,
            "batch_size": recipe.batch_size,
            # Pictures are resized to this times the model's size; then the central crop.
            "resize_ratio": recipe.resize_ratio,
            "resize": recipe.resize,  # "squash": both sides; "short": the shorter side, the aspect stays
        }
    )
    config.checkpoint = ml_collections.ConfigDict({"every_epochs": 1.0, "keep": 3})
    # A teacher beside the labels, and the conversion of one to another attention: docs/linearize.md.
    config.distill = ml_collections.ConfigDict(
        {
            "kind": "mesa" if recipe.mesa else "none",
            "teacher": "",
            "teacher_model": "",
            "fingerprint": "",
            "alpha": 0.5,
            "tau": 1.0,
            "reduction": "sample",
            "weight": recipe.mesa,
            "match": "output",
            "learns": "auto",
            "features": "mse",
            "new_factor": 1.0,
        }
    )
    config.linearize = ml_collections.ConfigDict(
        {
            "attention": "",
            "keep": "",
            "copy": "all",
            "stages": "align,train",
            "search": 0,
            "align_epochs": 1.0,
            "align_learning_rate": 3e-3,
            "features_epochs": 1.0,
        }
    )
    # A class for each pixel: docs/segmentation.md.
    config.segmentation = ml_collections.ConfigDict(
        {
            "head": "",  # or "upernet", "semfpn"
            "channels": 0,
            "mosaic": "none",
            "reduce_zero_label": False,
            "resize": (512, 2048),
            "ratio": (0.5, 2.0),
            "cat_max_ratio": 0.75,
            "photometric": True,
            "auxiliary_weight": 0.4,
            "avg_non_ignore": False,
            "eval": "whole",
            "stride": 341,
            "multiple": 32,
        }
    )
    config.mesh = ml_collections.ConfigDict(
        {"fsdp": 1}
    )  # devices that share one copy of the state; divides their number
    config.log_every_steps = 50
    config.tracker = ml_collections.ConfigDict({"name": "none", "project": "flatten_jax"})  # or "wandb", "trackio"
    return config


def smoke(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """The same model and recipe, shrunk to a minute on a CPU: few blocks, small generated pictures, a dozen steps."""
    stages = len(flatten_jax.model_options(config.model.name).get("depths", ()))
    shallow = {"depth": 2, "depths": (1, 1, 2, 1)[:stages]}
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
