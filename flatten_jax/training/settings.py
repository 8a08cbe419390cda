"""Every setting of a config: its type, its values and its meaning, and the check of all of them before anything starts.

What a model takes besides is said by its own class (`flatten_jax.model_options`).
"""

import difflib
from collections.abc import Iterator
from typing import Any

import ml_collections

from flatten_jax import paths
from flatten_jax.data import bucket, rand_augment, sources
from flatten_jax.lra import sources as lra
from flatten_jax.models.images import IMAGENET_MEAN, IMAGENET_STD
from flatten_jax.training import segmenters, teachers
from flatten_jax.training.setting import Setting

DTYPES = {
    "float32": ("fp32", "f32", "float", "full"),
    "bfloat16": ("bf16",),
    "float16": ("fp16", "f16", "half"),
}


SETTINGS: dict[str, Setting] = {
    "seed": Setting(int, "[0, 4294967295]", "of the first parameters and of all that is drawn by chance"),
    "init_from": Setting(str, "", "a run's folder, a checkpoint or a file of weights to fine-tune from; '': none"),
    "init_new_head": Setting(bool, "", "make a new classifier instead of loading that of init_from"),
    "model.name": Setting(str, "", "one of `flatten-jax models`"),
    "model.num_classes": Setting(int, "[0, inf)", "what the data have; 0: take it from them"),
    "model.drop_path": Setting(float, "[0, 1)", "stochastic-depth rate of the last block, growing from 0"),
    "model.dtype": Setting(
        str, " | ".join(DTYPES), "of the computation, or short f32, bf16, f16; parameters are float32"
    ),
    "data.name": Setting(
        str, "", "folder, digits, synthetic, lra_image, pathfinder, listops, imagenet2012 or another name of TFDS"
    ),
    "data.data_dir": Setting(str, "", "of TFDS sets; '': $TFDS_DATA_DIR or ~/tensorflow_datasets"),
    "data.folder": Setting(
        str,
        "",
        "holds train/<class>/*.jpg, and val/ or test/ likewise; images/ and annotations/; a set of `flatten-jax lra`",
    ),
    "data.cache_dir": Setting(str, "", "local folder that data of gs:// are copied to, once; '': they are refused", ""),
    "data.train_split": Setting(str, "", "trained on; of TFDS also a slice, train[:10%]"),
    "data.eval_split": Setting(str, "", "evaluated on; eval: val, validation or test, whichever is there"),
    "data.workers": Setting(int, "[0, inf)", "processes that decode and augment; 0: threads of this one"),
    "data.on_corrupt": Setting(str, "fail | skip", "an unreadable training picture ends the run, or is replaced"),
    "data.examples": Setting(
        int, "[0, inf)", "to generate: synthetic, mosaics, or pathfinder and listops without a folder; 0: 320"
    ),
    "data.mean": Setting(list, "[0, 1]", "that pictures are normalised by, of values in [0, 1]", IMAGENET_MEAN),
    "data.std": Setting(list, "(0, inf)", "standard deviation that pictures are normalised by", IMAGENET_STD),
    "augment.repeats": Setting(int, "[1, inf)", "how often an epoch has a picture, each time augmented anew", 1),
    "augment.scale": Setting(tuple, "(0, 1]", "share of the picture's area that a random crop takes"),
    "augment.ratio": Setting(tuple, "(0, inf)", "width / height of the random crop"),
    "augment.hflip": Setting(float, "[0, 1]", "probability of mirroring"),
    "augment.rand_augment": Setting(str, "", "RandAugment as timm writes it, rand-m9-mstd0.5-inc1; '': none"),
    "augment.erase_prob": Setting(float, "[0, 1]", "probability of erasing a box of the picture"),
    "augment.mixup": Setting(float, "[0, inf)", "a of Beta(a, a), by which two pictures are blended; 0: none"),
    "augment.cutmix": Setting(float, "[0, inf)", "a of Beta(a, a), by which a box of another is pasted; 0: none"),
    "augment.mix_prob": Setting(float, "[0, 1]", "probability that a batch is mixed at all"),
    "augment.switch_prob": Setting(float, "[0, 1]", "of cutmix rather than mixup, where there are both"),
    "augment.label_smoothing": Setting(float, "[0, 1)", "share of the target that all classes have in common"),
    "train.batch_size": Setting(int, "[1, inf)", "pictures of a step, over all devices"),
    "train.accumulation": Setting(int, "[1, inf)", "parts of a batch that are computed one after the other"),
    "train.epochs": Setting(float, "(0, inf)", "of training; a fraction of one is fine"),
    "train.warmup_epochs": Setting(float, "[0, inf)", "of them, the first, while the learning rate rises"),
    "train.cooldown_epochs": Setting(float, "[0, inf)", "after them, at the minimum learning rate"),
    "train.ema_decay": Setting(float, "[0, 1)", "of the moving average of the parameters; 0: none"),
    "train.skip_nonfinite_steps": Setting(int, "[0, inf)", "updates that may be not finite before the run stops"),
    "train.tpu_kernels": Setting(
        bool, "", "attentions on TPUs, in bfloat16, by kernels of their own that no chip has run yet", False
    ),
    "optimizer.learning_rate": Setting(float, "[0, inf)", "peak, for a batch of 512; scaled to the batch"),
    "optimizer.warmup_learning_rate": Setting(float, "[0, inf)", "where the warm-up starts, for a batch of 512"),
    "optimizer.min_learning_rate": Setting(float, "[0, inf)", "where the cosine ends, for a batch of 512"),
    "optimizer.schedule": Setting(
        str, "cosine | rsqrt | poly", "from the peak: a cosine, 1 / sqrt(step), or (1 - step / steps)^power", "cosine"
    ),
    "optimizer.power": Setting(float, "(0, inf)", "of the schedule poly", 1.0),
    "optimizer.weight_decay": Setting(float, "[0, inf)", "of AdamW, decoupled"),
    "optimizer.decay": Setting(
        str,
        "matrices | not_norms | all",
        "what decays: of two dimensions or more; or biases too; or norms, position encodings and bias tables too",
        "matrices",
    ),
    "optimizer.clip_norm": Setting(float, "[0, inf)", "largest norm of a gradient; 0: any"),
    "optimizer.b1": Setting(float, "[0, 1)", "AdamW's decay of the first moment"),
    "optimizer.b2": Setting(float, "[0, 1)", "AdamW's decay of the second moment"),
    "optimizer.eps": Setting(float, "(0, inf)", "AdamW's summand of the denominator"),
    "distill.kind": Setting(
        str,
        "none | soft | hard | align | features | mesa",
        "what a teacher is asked for: answers (soft, hard), attentions block by block, features; mesa: the average",
        "none",
    ),
    "distill.teacher": Setting(str, "", "a run's folder, a checkpoint, a shared folder or a file of weights", ""),
    "distill.teacher_model": Setting(str, "", "name of the teacher's model, where its weights do not say it", ""),
    "distill.fingerprint": Setting(str, "", "of the teacher's weights; '': whichever there are, and it is noted", ""),
    "distill.alpha": Setting(float, "[0, 1]", "share of soft or hard answers in the loss", 0.5),
    "distill.tau": Setting(float, "(0, inf)", "temperature of soft answers", 1.0),
    "distill.reduction": Setting(
        str, "sample | deit", "soft answers: a mean over pictures, or over classes too", "sample"
    ),
    "distill.weight": Setting(
        float, "[0, inf)", "of the error of what attentions give, beside the labels; of mesa: of its term", 0.0
    ),
    "distill.match": Setting(str, "output | map", "of align: what attentions give, or their maps", "output"),
    "distill.learns": Setting(
        str,
        "auto | new | qkv | mixer",
        "of align: new parameters, q, k and v too, or all; auto: new of map, else qkv",
        "auto",
    ),
    "distill.features": Setting(str, "mse | cosine", "how the distance of features is measured", "mse"),
    "distill.new_factor": Setting(
        float, "(0, inf)", "of the learning rate of parameters that the teacher has not", 1.0
    ),
    "linearize.attention": Setting(
        str, "", "convert distill.teacher to it, a name or a pattern; '': an ordinary run", ""
    ),
    "linearize.keep": Setting(str, "", "numbers of blocks that keep the teacher's attention, such as 7,11", ""),
    "linearize.copy": Setting(str, "all | mlp | attention | none", "which of the teacher's weights are taken", "all"),
    "linearize.stages": Setting(
        str, "", "after the swap, of align, features, train; in the order in which they are run", "align,train"
    ),
    "linearize.search": Setting(int, "[0, inf)", "how many blocks get the teacher's attention back, by accuracy", 0),
    "linearize.align_epochs": Setting(float, "(0, inf)", "of stage align", 1.0),
    "linearize.align_learning_rate": Setting(float, "(0, inf)", "peak of stage align, whatever the batch", 3e-3),
    "linearize.features_epochs": Setting(float, "(0, inf)", "of stage features", 1.0),
    **segmenters.SETTINGS,
    "eval.every_epochs": Setting(float, "(0, inf)", "how often, and at the end"),
    "eval.batch_size": Setting(int, "[1, inf)", "pictures at a time, over all devices"),
    "eval.resize_ratio": Setting(float, "[1, inf)", "a picture is resized to this times the model's, then cropped"),
    "eval.resize": Setting(
        str, "squash | short", "resize both sides to the square, or the shorter one, then crop", "squash"
    ),
    "checkpoint.every_epochs": Setting(float, "(0, inf)", "how often, and at the end"),
    "checkpoint.keep": Setting(int, "[1, inf)", "how many of the newest; the best is kept besides"),
    "mesh.fsdp": Setting(int, "[1, inf)", "devices that share one copy of the state; divides their number"),
    "log_every_steps": Setting(int, "[1, inf)", "a line on the screen and in metrics.jsonl"),
    "tracker.name": Setting(str, "none | wandb | trackio", "what shows the same numbers in a browser", "none"),
    "tracker.project": Setting(str, "", "the group of runs that it is shown in there", "flatten_jax"),
}
# Sizes that a model of any family has one of, or a tuple of one for each stage.
_SIZES = ("depth", "depths", "embed_dim", "embed_dims", "num_heads", "patch_size")


def checked(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """A copy of a config with every value as the program spells it ("bf16" is "bfloat16").

    Raises:
        ValueError: a line for each value that is not allowed, or does not fit another one; each names key and value.
    """
    config = config.copy_and_resolve_references()
    with config.unlocked():
        if "dtype" in config.model and isinstance(config.model.dtype, str):
            config.model.dtype = dtype_name(config.model.dtype)
        size = config.model.get("image_size")
        if isinstance(size, tuple | list) and len(size) == 1 and type(size[0]) is int:
            config.model.image_size = tuple(size) * 2  # --config.model.image_size=32
    faults = list(_faults(config)) or list(_conflicts(config))
    if len(faults) > 1:
        raise ValueError(f"{len(faults)} settings of the config are wrong:" + "".join(f"\n  {f}" for f in faults))
    if faults:
        raise ValueError(faults[0])
    return config


def dtype_name(text: str) -> str:
    """ "bf16", "half", "torch.float32", ... as NumPy calls it; what is no such name stays as it is."""
    word = text.lower().rpartition(".")[2]
    return next((name for name, others in DTYPES.items() if word in (name, *others)), text)


def flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    """{"train": {"epochs": 3}} -> {"train.epochs": 3}."""
    if not isinstance(tree, dict | ml_collections.ConfigDict):
        return {prefix: tree}
    return {k: v for name in tree for k, v in flat(tree[name], f"{prefix}.{name}" if prefix else name).items()}


def nearest(key: str, known: Any, prefix: str = "") -> str:
    """ "; did you mean 'train.epochs'?", or nothing: by the whole key, or by its last word."""
    by_word = {name.rpartition(".")[2]: name for name in known}
    close = difflib.get_close_matches(key, known, n=1, cutoff=0.75)
    close = close or [by_word[w] for w in difflib.get_close_matches(key.rpartition(".")[2], by_word, n=1)]
    return f"; did you mean {prefix + close[0]!r}?" if close else ""


def _faults(config: ml_collections.ConfigDict) -> Iterator[str]:
    """Values that are wrong by themselves."""
    given = flat(config)
    for key, setting in SETTINGS.items():
        if key not in given:
            if not key.startswith("model."):
                yield f"the config has no {key}: start from one of configs/, such as configs/base.py"
        elif not setting.takes(given[key]) and not (given[key] is None and key.startswith("model.")):
            yield f"{key}={given[key]!r} must be {setting.allowed}"
    for key in given:
        if key not in SETTINGS and not key.startswith("model."):
            yield f"{key}={given[key]!r} is not a setting{nearest(key, SETTINGS)}"
    for option in _SIZES:
        value = given.get(f"model.{option}")
        entries = value if isinstance(value, tuple | list) else [value]
        if value is not None and not all(type(entry) is int and entry >= 1 for entry in entries):
            yield f"model.{option}={value!r} must be whole numbers, at least 1"
    size = given.get("model.image_size")
    sides = size if isinstance(size, tuple | list) else (size, size)
    if size is not None and not (len(sides) == 2 and all(type(side) is int and side >= 1 for side in sides)):
        yield f"model.image_size={size!r} must be a side, or (height, width), in pixels; there are always 3 channels"
    try:
        rand_augment.parse(given.get("augment.rand_augment") or "rand")
    except (ValueError, AttributeError, TypeError) as error:
        yield f"augment.{error}"
    for key in ("init_from", "distill.teacher", "data.data_dir", "data.folder", "data.cache_dir"):
        text = str(given.get(key, ""))
        copied = key in ("data.data_dir", "data.folder")
        if "://" not in text or (key in ("init_from", "distill.teacher") and text.startswith((paths.SCHEME, "hf://"))):
            continue
        if not (copied and paths.is_bucket(text)):
            yield f"{key}={text}: such an address is not read here; mount it, or use a local path"
        elif not given.get("data.cache_dir"):
            yield f"{key}={text}: {bucket.UNREAD}"


def _conflicts(config: ml_collections.ConfigDict) -> Iterator[str]:
    """Values that are right by themselves and do not fit together."""
    train, rates, data = config.train, config.optimizer, config.data
    if train.warmup_epochs > train.epochs:
        yield (
            f"train.warmup_epochs={train.warmup_epochs:g} is longer than the training, train.epochs={train.epochs:g}: "
            "make it shorter, such as --config.train.warmup_epochs=0"
        )
    for key in ("warmup_learning_rate", "min_learning_rate"):
        if rates[key] > rates.learning_rate and (key[0] == "m" or train.warmup_epochs):
            yield (
                f"optimizer.{key}={rates[key]:g} is above the peak, optimizer.learning_rate={rates.learning_rate:g}: "
                "lower it too"
            )
    yield from segmenters.conflicts(config)
    if config.model.get("features_only"):
        yield "model.features_only=True gives maps, and what is trained are classes: leave it out"
    if data.folder and data.name not in ("folder", *lra.SOURCES):
        meant = nearest(data.name, ("folder", *lra.SOURCES))
        yield (
            f"data.name={data.name!r} takes no data.folder={data.folder!r}{meant}"
            if meant
            else f"data.folder={data.folder!r} has no effect on data.name={data.name!r}: add --config.data.name=folder"
        )
    if data.name == "folder" and not data.folder:
        masks = config.segmentation.head and config.segmentation.mosaic == "none"
        holds = "images/ and annotations/" if masks else "train/<class>/*.jpg"
        yield f"data.name='folder' needs --config.data.folder=PATH, a folder with {holds} in it"
    if data.name == "lra_image" and not data.folder:
        yield "data.name='lra_image' needs --config.data.folder=PATH, CIFAR-10 as train/<class>/*.jpg and test/"
    if data.cache_dir and not any(map(paths.is_bucket, (sources.data_address(data.data_dir), data.folder))):
        yield f"data.cache_dir={data.cache_dir!r} has no effect on data that are not in a bucket, gs://: leave it out"
    yield from teachers.conflicts(config)
    if config.init_new_head and not config.init_from:
        yield "init_new_head=True has no effect without --config.init_from=PATH: add that, or init_new_head=False"
