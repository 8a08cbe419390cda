"""What training optimises and evaluation counts; a class for each task. Those with a teacher are in `distill.tasks`."""

from dataclasses import dataclass
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from flatten_jax.counted import counted
from flatten_jax.models.images import IMAGENET_MEAN, IMAGENET_STD, normalize
from flatten_jax.training import preprocess
from flatten_jax.training.sharding import over_data

# Collections that a model changes while it is trained. All others but "params" stay as they were drawn.
STATISTICS = ("batch_stats",)

Variables = dict[str, Any]
Batch = dict[str, jax.Array]
Sums = dict[str, jax.Array]


@dataclass(frozen=True)
class Classify:
    """Classification of pictures: cross-entropy with soft targets in training, top-1 and top-5 in evaluation.

    The training step, the evaluation and the loop know of a task only what is public here: another task is another
    class with the same members.

    Attributes:
        model: gives logits (B, num_classes).
        label_smoothing, erase_prob, mixing: see `preprocess`.
        mean, std: of the channels, by which pictures are normalised.
    """

    best: ClassVar[str] = "acc1"  # what the best checkpoint has most of

    model: nn.Module
    label_smoothing: float = 0.0
    erase_prob: float = 0.0
    mixing: preprocess.Mixing = preprocess.NO_MIXING
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD

    @property
    def constants(self) -> tuple[Any, ...]:
        """Arrays on the devices that `loss` takes besides, and that stay as they are: a teacher's weights."""
        return ()

    def from_state(self, averaged: Variables | None, step: jax.Array) -> tuple[Any, ...]:
        """What of the state `loss` takes after that: of the moving average and the number of steps done, nothing."""
        return ()

    def abstract_batch(self, size: int, mesh: Mesh, *, masked: bool = False) -> dict[str, jax.ShapeDtypeStruct]:
        """What a batch looks like: image uint8 (B, height, width, 3), label int32 (B,), of evaluation mask bool (B,).

        Its leading axis is split over the devices.
        """
        kinds = {"image": ((*self.model.image_size, 3), np.uint8), "label": ((), np.int32)}
        kinds |= {"mask": ((), np.bool_)} if masked else {}
        return {
            name: jax.ShapeDtypeStruct((size, *shape), dtype, sharding=over_data(mesh))
            for name, (shape, dtype) in kinds.items()
        }

    def given(self, batch: Batch) -> jax.Array:
        """What the model takes of a batch."""
        return normalize(batch["image"], self.mean, self.std)

    def inputs(self, batch: Batch, erase_key: jax.Array, mix_key: jax.Array) -> tuple[jax.Array, jax.Array]:
        """What `loss` takes of a whole batch: images, normalised and augmented, and targets (B, num_classes)."""
        images = self.given(batch)
        targets = preprocess.soft_targets(batch["label"], self.model.num_classes, self.label_smoothing)
        if self.erase_prob:
            images = preprocess.random_erase(erase_key, images, self.erase_prob)
        if self.mixing.mixup or self.mixing.cutmix:
            images, targets = preprocess.mix(mix_key, images, targets, self.mixing)
        return images, targets

    def loss(
        self, variables: Variables, inputs: tuple[jax.Array, jax.Array], key: jax.Array
    ) -> tuple[jax.Array, Variables]:
        """(mean over the inputs, new statistics: the collections of STATISTICS that the model has)."""
        images, targets = inputs
        logits, changed, _ = self.trained(variables, images, key)
        return optax.softmax_cross_entropy(logits, targets).mean(), changed

    def trained(
        self, variables: Variables, images: jax.Array, key: jax.Array, *wanted: str, method: str | None = None
    ) -> tuple[Any, Variables, Variables]:
        """(what the model gives in training, its new statistics, its collections `wanted`)."""
        mutable = [name for name in STATISTICS if name in variables]
        out, changed = self.model.apply(
            variables, images, train=True, rngs={"dropout": key}, mutable=[*mutable, *wanted], method=method
        )
        statistics = {name: tree for name, tree in changed.items() if name in mutable}
        return out, statistics, {name: changed.get(name, {}) for name in wanted}

    def fitted(self, variables: Variables, shape: tuple[int, ...]) -> Variables:
        """Variables for batches of evaluation whose `image` is (B, *shape): those of the run, as all are alike."""
        return variables

    def zero_sums(self) -> Sums:
        """Where the sums of an evaluation start."""
        return {name: np.zeros((), np.float32) for name in ("loss", "acc1", "acc5", "count")}

    def sums(self, variables: Variables, batch: Batch) -> Sums:
        """Of a batch without its padding: of the loss, of top-1 and top-5 hits, and of images."""
        logits, label = self.model.apply(variables, self.given(batch)), batch["label"]
        # Among equal logits, or NaN, the label counts as the last: a broken network is not right about anything.
        own = jnp.take_along_axis(logits, label[:, None], axis=1)
        rank = (~(logits < own)).sum(axis=1) - 1
        values = {
            "loss": optax.softmax_cross_entropy_with_integer_labels(logits, label),
            "acc1": (rank < 1).astype(jnp.float32),
            "acc5": (rank < 5).astype(jnp.float32),
            "count": jnp.ones(label.shape, jnp.float32),
        }
        return {name: jnp.where(batch["mask"], value, 0).sum() for name, value in values.items()}

    def summary(self, sums: Sums) -> dict[str, float]:
        """Means of sums over a whole set: loss, and acc1 and acc5 in percent."""
        percent = {"loss": 1.0, "acc1": 100.0, "acc5": 100.0}
        return {name: factor * float(sums[name]) / round(float(sums["count"])) for name, factor in percent.items()}

    def words(self, result: dict[str, float]) -> str:
        """An evaluation {"eval/acc1": ...} for people."""
        top5 = f", top-5 {result['eval/acc5']:.2f} %" if self.model.num_classes > 5 else ""  # else it is always 100
        text = (
            f"top-1 {result['eval/acc1']:.2f} %{top5}, loss {result['eval/loss']:.4f} "
            f"on {counted(result['eval/count'], 'image')}"
        )
        raw = result.get("eval_raw/acc1")
        return text if raw is None else f"{text} (without averaging: top-1 {raw:.2f} %)"

    def details(self, result: dict[str, float]) -> str:
        """What besides is worth a line each when a checkpoint is evaluated; "" for nothing."""
        return ""


@dataclass(frozen=True)
class ClassifyTokens(Classify):
    """The same of sequences of tokens, for models that take their numbers: `image` of a batch is uint8 (B, N)."""

    def abstract_batch(self, size: int, mesh: Mesh, *, masked: bool = False) -> dict[str, jax.ShapeDtypeStruct]:
        """As in `Classify`, but for image uint8 (B, N)."""
        batch = super().abstract_batch(size, mesh, masked=masked)
        height, width = self.model.image_size
        return {**batch, "image": jax.ShapeDtypeStruct((size, height * width), np.uint8, sharding=over_data(mesh))}

    def given(self, batch: Batch) -> jax.Array:
        return batch["image"].astype(jnp.int32)
