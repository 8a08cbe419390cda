"""From a config to everything a run needs, checked before anything is compiled."""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any

import flax.linen as nn
import jax
import ml_collections
import numpy as np
from jax.sharding import Mesh

from flatten_jax.data import augment, check, pipeline, sources
from flatten_jax.data.source import Source
from flatten_jax.distill.choose import notes_of, taught
from flatten_jax.distill.tasks import SelfTaught
from flatten_jax.distill.teacher import Teacher, load_teacher, needs_teacher
from flatten_jax.lra import sources as lra
from flatten_jax.models import create_model
from flatten_jax.segmentation import check as check_masks
from flatten_jax.segmentation import choose as segmentation
from flatten_jax.segmentation.batches import EvalBatches, plan_batches
from flatten_jax.training import settings
from flatten_jax.training.optimizer import make_optimizer, make_schedule
from flatten_jax.training.preprocess import Mixing
from flatten_jax.training.setting import NO_AUGMENTATION
from flatten_jax.training.sharding import check_divisible, make_mesh, put_batch
from flatten_jax.training.step import Training
from flatten_jax.training.tasks import Batch, Classify, ClassifyTokens

MESA_FROM = 0.25  # of the epochs
WORTH_SAYING = 0.05  # the share of an epoch that may be left out without a word


@dataclasses.dataclass(frozen=True)
class Run:
    """A config made concrete: what a step needs, data, and durations in steps."""

    config: ml_collections.ConfigDict
    training: Training
    train_source: Source
    eval_source: Source
    steps_per_epoch: int
    total_steps: int
    found: tuple[str, ...] = ()  # what a look at the data found, for people

    @property
    def task(self) -> Classify:
        return self.training.task

    @property
    def model(self) -> nn.Module:
        return self.task.model

    @property
    def mesh(self) -> Mesh:
        return self.training.mesh

    def in_steps(self, epochs: float) -> int:
        """A duration in epochs, which may be a fraction of one, in steps: at least one."""
        return max(1, round(epochs * self.steps_per_epoch))

    def transform(self, *, train: bool) -> Callable[..., np.ndarray]:
        """What makes arrays of the examples."""
        config, size = self.config, self.model.image_size
        if config.segmentation.head:
            return segmentation.transform(config, size, train=train)
        if takes_tokens(self.model):
            return lra.Tokens(size)
        if train:
            options = {k: config.augment[k] for k in ("scale", "ratio", "hflip", "rand_augment")}
            return augment.TrainTransform(size, **options)
        return augment.eval_transform(size, config.eval.resize_ratio, config.eval.resize)

    def train_batches(self, start_step: int) -> Iterator[tuple[dict[str, jax.Array], int]]:
        """(batch on the devices, pictures of it that were skipped as corrupt), from `start_step` to the end."""
        config = self.config
        batches = pipeline.train_batches(
            self.train_source,
            self.transform(train=True),
            batch_size=config.train.batch_size,
            seed=config.seed,
            start_step=start_step,
            stop_step=self.total_steps,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
            workers=config.data.workers,
            on_corrupt=config.data.on_corrupt,
            repeats=config.augment.repeats,
        )

        def put(batch: dict[str, np.ndarray]) -> tuple[dict[str, jax.Array], int]:
            skipped = int(batch.pop("skipped").sum())
            return put_batch(batch, self.mesh), skipped

        return pipeline.prefetch(batches, put)

    def eval_batches(self) -> Iterator[dict[str, jax.Array]]:
        """The evaluation set once, on the devices."""
        config = self.config
        if self.masks is not None:
            batches = pipeline.iterate(self.masks, self.masks.largest, config.data.workers)
            return pipeline.prefetch(batches, lambda batch: put_batch(batch, self.mesh))
        batches = pipeline.eval_batches(
            self.eval_source,
            self.transform(train=False),
            batch_size=self.eval_batch_size,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
            workers=config.data.workers,
        )
        return pipeline.prefetch(batches, lambda batch: put_batch(batch, self.mesh))

    @functools.cached_property
    def masks(self) -> EvalBatches | None:
        """The batches of an evaluation of masks, else None."""
        if not self.config.segmentation.head:
            return None
        return plan_batches(
            self.eval_source,
            self.transform(train=False),
            batch_size=self.eval_batch_size,
            devices=self.mesh.size,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )

    def abstract_batches(self) -> tuple[Batch, list[Batch]]:
        """What batches of training and of evaluation look like, for compiling before there is one."""
        if self.masks is not None:
            evaluation = [shape.abstract(self.mesh) for shape in self.masks.shapes]
        else:
            evaluation = [self.task.abstract_batch(self.eval_batch_size, self.mesh, masked=True)]
        return self.task.abstract_batch(self.config.train.batch_size, self.mesh), evaluation

    @property
    def eval_batch_size(self) -> int:
        """At most what the evaluation set fills."""
        fills = -(-len(self.eval_source) // self.mesh.size) * self.mesh.size
        return min(self.config.eval.batch_size, fills)

    @property
    def num_eval_batches(self) -> int:
        if self.masks is not None:
            return len(self.masks)
        return -(-len(self.eval_source) // self.eval_batch_size)

    def notes(self) -> list[str]:
        """What a user may not expect: how batches and the sets go together."""
        size, batch = len(self.train_source), self.config.train.batch_size
        left = size - self.steps_per_epoch * batch
        said = [*dict.fromkeys((self.train_source.note, self.eval_source.note)), *self.found]
        said += notes_of(self.task)
        if left > WORTH_SAYING * size:
            smaller = range(batch, 0, -self.mesh.size)
            fitting = next((b for b in smaller if size % b <= WORTH_SAYING * size), self.mesh.size)
            said.append(
                f"an epoch, {self.steps_per_epoch:,} steps, leaves out {left:,} of {size:,} pictures, others each "
                f"time; --config.train.batch_size={fitting} leaves out {size % fitting:,}"
            )
        if self.eval_batch_size < self.config.eval.batch_size:
            said.append(
                f"the evaluation set fits into one batch of {self.eval_batch_size}, below "
                f"eval.batch_size={self.config.eval.batch_size}"
            )
        return [note for note in said if note]

    def position(self, step: int) -> dict[str, Any]:
        """Where in the data a step stands, and what that depends on."""
        epoch, batch = divmod(step, self.steps_per_epoch)
        position = {
            "step": step,
            "epoch": epoch,
            "batch_in_epoch": batch,
            "seed": self.config.seed,
            "batch_size": self.config.train.batch_size,
            "examples": len(self.train_source),
        }
        # Left out where it is 1: checkpoints from before there were repetitions do not say it.
        return position if self.config.augment.repeats == 1 else {**position, "repeats": self.config.augment.repeats}


def prepare(config: ml_collections.ConfigDict) -> Run:
    """Check a config against itself, the data on disk and the devices.

    Raises:
        ValueError, FileNotFoundError: with what is wrong and the way out.
    """
    config = settings.checked(config)
    mesh = make_mesh(fsdp=config.mesh.fsdp)
    train, model = config.train, model_of(config)
    check_divisible(mesh, **{"train.batch_size": train.batch_size, "eval.batch_size": config.eval.batch_size})
    if train.batch_size % (train.accumulation * mesh.size):
        raise ValueError(
            f"train.batch_size={train.batch_size} is not divisible by train.accumulation={train.accumulation} "
            f"times {mesh.size} devices: every part of a batch needs a whole number of images on every device"
        )
    train_source, eval_source = (open_source(config, split) for split in ("train", "eval"))
    if not config.model.num_classes:
        config.model.num_classes = len(train_source.class_names)
        model = model.clone(num_classes=config.model.num_classes)
    for source, split in ((train_source, "train"), (eval_source, "evaluation")):
        if len(source.class_names) != model.num_classes:
            raise ValueError(
                f"the {split} data has {len(source.class_names)} classes and model.num_classes={model.num_classes}: "
                f"use --config.model.num_classes={len(source.class_names)}"
            )
    if takes_tokens(model):
        _check_tokens(config, model, train_source)
    size = len(train_source)
    if size < train.batch_size:
        fitting = max(size // 2 // mesh.size, 1) * mesh.size
        raise ValueError(
            f"train.batch_size={train.batch_size} gives no whole batch out of num_examples={size}: "
            f"make it smaller, such as --config.train.batch_size={fitting}"
        )
    steps_per_epoch = pipeline.steps_per_epoch(size, train.batch_size)
    teacher = load_teacher(config, model, mesh) if needs_teacher(config) else None
    if teacher is not None:
        config.distill.fingerprint = teacher.fingerprint
    here, found = (jax.process_index(), jax.process_count()), []
    check.glance(eval_source, *here)
    if config.data.on_corrupt == "fail":
        check.glance(train_source, *here, way_out="; --config.data.on_corrupt=skip replaces them")
    if config.segmentation.head:
        for split, source in (("training", train_source), ("evaluation", eval_source)):
            skip = split == "training" and config.data.on_corrupt == "skip"
            found.append(f"{split}: {check_masks.glance(source, *here, skip_corrupt=skip)}")
    training = training_of(config, model, mesh, steps_per_epoch, teacher, train_source.class_names)
    return Run(
        config=config,
        training=training,
        train_source=train_source,
        eval_source=eval_source,
        steps_per_epoch=steps_per_epoch,
        total_steps=max(1, round((train.epochs + train.cooldown_epochs) * steps_per_epoch)),
        found=tuple(found),
    )


def takes_tokens(model: nn.Module) -> bool:
    """Whether a model takes numbers of tokens, and no pictures."""
    return getattr(model, "tokens", False)


def _check_tokens(config: ml_collections.ConfigDict, model: nn.Module, source: Source) -> None:
    """ValueError where a model of tokens has another vocabulary than the data, or would be trained on mixed ones."""
    if model.vocabulary != source.vocabulary:
        raise ValueError(
            f"data.name={config.data.name!r} has {source.vocabulary} tokens and model.vocabulary={model.vocabulary}: "
            f"use --config.model.vocabulary={source.vocabulary}"
        )
    for option, off in NO_AUGMENTATION.items():
        if option == "label_smoothing":  # which is of the answers
            continue
        if tuple(np.atleast_1d(config.augment[option])) != tuple(np.atleast_1d(off)):
            raise ValueError(
                f"augment.{option}={config.augment[option]!r} has no effect on the tokens of {config.model.name}: "
                f"set it to {off!r}"
            )


def model_of(config: ml_collections.ConfigDict) -> nn.Module:
    """The model of a config, whose options that are None are left to the model.

    Raises:
        ValueError: an option that does not fit, also where the model itself has no words for it.
    """
    options = {option: value for option, value in config.model.items() if value is not None}
    create = functools.partial(segmentation.create, config) if config.segmentation.head else create_model
    try:
        return create(**options)
    except ValueError:
        raise
    except Exception as error:  # of a trace with sizes that nobody has thought of
        said, name = f"{type(error).__name__}: {error}", options["name"]
        culprits = [option for option in options if option != "name" and _builds(create, {**options, option: None})]
        given = ", ".join(f"model.{option}={options[option]!r}" for option in culprits or options.keys() - {"name"})
        raise ValueError(f"{given} does not fit {name} ({said}); `flatten-jax config` says what it takes") from error


def _builds(create: Callable[..., nn.Module], options: dict[str, Any]) -> bool:
    try:
        create(**{option: value for option, value in options.items() if value is not None})
    except Exception:
        return False
    return True


def training_of(
    config: ml_collections.ConfigDict,
    model: nn.Module,
    mesh: Mesh,
    steps_per_epoch: int,
    teacher: Teacher | None = None,
    class_names: tuple[str, ...] = (),
) -> Training:
    """What a config says of a step of training.

    Args:
        class_names: for what is said of single classes.

    Raises:
        ValueError: it asks for a teacher, and there is none; or the two do not fit together.
    """
    if teacher is None and needs_teacher(config):
        raise ValueError(f"distill.teacher={config.distill.teacher!r} is for training: leave config.distill out here")
    augment, train = config.augment, config.train
    schedule = make_schedule(
        config.optimizer,
        batch_size=train.batch_size,
        warmup_steps=round(train.warmup_epochs * steps_per_epoch),
        total_steps=max(1, round(train.epochs * steps_per_epoch)),
    )
    mixing = Mixing(augment.mixup, augment.cutmix, augment.mix_prob, augment.switch_prob)
    mean, std = (tuple(map(float, config.data[option])) for option in ("mean", "std"))
    kind, rates = ClassifyTokens if takes_tokens(model) else Classify, None
    task = kind(model, augment.label_smoothing, augment.erase_prob, mixing, mean, std)
    if config.segmentation.head:
        task = segmentation.task(config, model, class_names)
    elif teacher is not None:
        task, rates = taught(task, teacher, config.distill)
    elif config.distill.kind == "mesa":
        start = round(MESA_FROM * train.epochs * steps_per_epoch)
        task = SelfTaught(**vars(task), weight=config.distill.weight, start=start)
    return Training(
        task=task,
        optimizer=make_optimizer(config.optimizer, schedule, model.no_weight_decay, rates),
        schedule=schedule,
        mesh=mesh,
        seed=config.seed,
        accumulation=train.accumulation,
        ema_decay=train.ema_decay,
        skip_nonfinite_steps=train.skip_nonfinite_steps,
        tpu_kernels=train.tpu_kernels,
        rates=rates,
    )


def open_source(config: ml_collections.ConfigDict, split: str) -> Source:
    """The data of a config to train on ("train"), or to evaluate on ("eval")."""
    data, model, options = config.data, config.model, {}
    wanted = config.segmentation
    if wanted.head and wanted.mosaic == "none":
        return segmentation.open_masks(config, split)
    if data.name == "synthetic":
        options = {"image_size": model.image_size, "num_classes": model.num_classes, "examples": data.examples}
    elif data.name in lra.SOURCES:
        options = {"folder": data.folder or None, "examples": data.examples or None}
        if data.name == "pathfinder" and not data.folder:
            options["image_size"] = model.image_size
    elif data.name == "folder":
        # Where a set is named to evaluate on, nothing is held out of the one that is trained on.
        options = {"folder": data.folder or None, "hold_out": (data.train_split, data.eval_split) == ("train", "eval")}
    options |= {"data_dir": data.data_dir or None, "cache_dir": data.cache_dir or None}
    source = sources.open_source(data.name, data[f"{split}_split"], **options)
    return segmentation.mosaics(config, split, source) if wanted.head else source
