"""Semantic segmentation as a task of the training loop: cross-entropy of pixels, and mIoU over whole sets."""

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from flatten_jax.counted import counted
from flatten_jax.segmentation.masks import IGNORED
from flatten_jax.segmentation.metrics import in_limbs, of_limbs, scores
from flatten_jax.segmentation.model import resize_logits
from flatten_jax.segmentation.windows import confusion_of_windows
from flatten_jax.training.sharding import by_size, over_data
from flatten_jax.training.tasks import Batch, Classify, Sums, Variables
from flatten_jax.weights.segmenter import variables_at


@dataclass(frozen=True)
class Segment(Classify):
    """A class for each pixel; beside `Classify`, whose augmentations on the device it has not.

    Attributes:
        model: gives logits (B, height / 4, width / 4, num_classes), or of any other stride, at train=True also a tuple
            of them and an auxiliary head's.
        auxiliary_weight: of the auxiliary head's loss.
        avg_non_ignore: the loss is a mean over labelled pixels; or over all, where those of no class count as 0.
        class_names: for the results of single classes; (): numbers.
    """

    best: ClassVar[str] = "miou"

    auxiliary_weight: float = 0.4
    avg_non_ignore: bool = False
    class_names: tuple[str, ...] = ()

    def abstract_batch(self, size: int, mesh: Mesh, *, masked: bool = False) -> dict[str, jax.ShapeDtypeStruct]:
        """image uint8 (B, height, width, 3), label uint8 (B, height, width); of training alone."""
        if masked:
            raise ValueError("batches of an evaluation of masks have shapes of their own, see segmentation.batches")
        shapes = {"image": (*self.model.image_size, 3), "label": self.model.image_size}
        sharding = over_data(mesh)
        return {
            name: jax.ShapeDtypeStruct((size, *shape), np.uint8, sharding=sharding) for name, shape in shapes.items()
        }

    def inputs(self, batch: Batch, erase_key: jax.Array, mix_key: jax.Array) -> tuple[jax.Array, jax.Array]:
        """What `loss` takes: normalised images, and labels int32 (B, height, width)."""
        return self.given(batch), batch["label"].astype(jnp.int32)

    def loss(
        self, variables: Variables, inputs: tuple[jax.Array, jax.Array], key: jax.Array
    ) -> tuple[jax.Array, Variables]:
        images, labels = inputs
        out, changed, _ = self.trained(variables, images, key)
        main, *auxiliary = out if isinstance(out, tuple) else (out,)
        value = cross_entropy(main, labels, self.avg_non_ignore)
        for logits in auxiliary:
            value += self.auxiliary_weight * cross_entropy(logits, labels, self.avg_non_ignore)
        return value, changed

    def fitted(self, variables: Variables, shape: tuple[int, ...]) -> Variables:
        """Variables for pictures taken whole that are of another size than in training: position tables resampled."""
        size = tuple(shape[1:3])
        if size == tuple(self.model.image_size):
            return variables
        fitted = variables_at(self.model, variables, self.model.at_size(size))
        mesh = getattr(jax.tree.leaves(variables)[0].sharding, "mesh", None)
        return fitted if mesh is None else jax.device_put(fitted, by_size(mesh, fitted))  # once, not for every batch

    def zero_sums(self) -> Sums:
        classes = self.model.num_classes
        return {"confusion": np.zeros((2, classes, classes), np.uint32), "count": np.zeros((), np.float32)}

    def sums(self, variables: Variables, batch: Batch) -> Sums:
        """Of a batch as `segmentation.batches` makes it: its confusion matrix, and how many pictures it has."""
        images = batch["image"]  # (B, windows, height, width, 3)
        window = images.shape[2:4]
        model = self.model if window == tuple(self.model.image_size) else self.model.at_size(window)

        def answer(i: jax.Array) -> jax.Array:
            here = jax.lax.dynamic_index_in_dim(images, i, 1, keepdims=False)
            return model.apply(variables, self.given({"image": here}))

        one = jax.eval_shape(answer, 0)
        logits = jnp.zeros((one.shape[0], images.shape[1], *one.shape[1:]))
        logits = jax.lax.fori_loop(  # of as many windows as the batch has, not of as many as there are places
            0,
            batch["windows"].max(),
            lambda i, found: jax.lax.dynamic_update_index_in_dim(found, answer(i), i, 1),
            logits,
        )
        counts = confusion_of_windows(logits, batch, window)
        return {"confusion": in_limbs(counts), "count": batch["mask"].astype(jnp.float32).sum()}

    def summary(self, sums: Sums) -> dict[str, float]:
        """miou, aacc and macc, and iou/<class> of every class that is in labels or predictions, in percent."""
        found = scores(of_limbs(sums["confusion"]))
        names = self.class_names or tuple(map(str, range(len(found.iou))))
        classes = {f"iou/{name}": 100 * float(iou) for name, iou in zip(names, found.iou, strict=True) if iou == iou}
        return {"miou": 100 * found.miou, "aacc": 100 * found.aacc, "macc": 100 * found.macc, **classes}

    def words(self, result: dict[str, float]) -> str:
        text = (
            f"mIoU {result['eval/miou']:.2f} %, aAcc {result['eval/aacc']:.2f} %, mAcc {result['eval/macc']:.2f} % "
            f"on {counted(result['eval/count'], 'image')}"
        )
        raw = result.get("eval_raw/miou")
        return text if raw is None else f"{text} (without averaging: mIoU {raw:.2f} %)"

    def details(self, result: dict[str, float]) -> str:
        """IoU of each class, a line each."""
        names = self.class_names or tuple(map(str, range(self.model.num_classes)))
        width = max(map(len, names))
        values = (result.get(f"eval/iou/{name}") for name in names)
        lines = (
            f"  {name:{width}}  {'nowhere' if value is None else f'{value:6.2f}'}"
            for name, value in zip(names, values, strict=True)
        )
        return "\n".join(["IoU in percent:", *lines])


def cross_entropy(logits: jax.Array, labels: jax.Array, avg_non_ignore: bool = False) -> jax.Array:
    """Mean cross-entropy of logits, resized to the labels, over all pixels, or over those that have a class.

    Args:
        logits: (B, rows, columns, classes).
        labels: int (B, height, width), IGNORED where there is no class: 0 to the loss.
    """
    logits = resize_logits(logits, labels.shape[1:])
    valid = labels != IGNORED
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.where(valid, labels, 0))
    total = jnp.where(valid, losses, 0).sum()
    return total / (jnp.maximum(valid.sum(), 1) if avg_non_ignore else labels.size)
