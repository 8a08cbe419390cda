"""What training has as its task where there is a teacher. Evaluation is that of `Classify`, of the student alone."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax.traverse_util import flatten_dict, unflatten_dict

from flatten_jax.attention.contract import MAPS
from flatten_jax.distill import losses
from flatten_jax.distill.teacher import Teacher, attended
from flatten_jax.models.isotropic import Isotropic
from flatten_jax.models.stack import GIVEN, SEEN
from flatten_jax.training.tasks import Classify, Variables

Inputs = tuple[jax.Array, jax.Array]


@dataclass(frozen=True)
class Taught(Classify):
    """Base of the tasks with a teacher, who sees the very pictures that the student sees, and is never trained."""

    teacher: Teacher | None = None

    @property
    def constants(self) -> tuple[Any, ...]:
        return (self.teacher.variables,)

    def asked(self, variables: Variables, images: jax.Array, *wanted: str, method: str | None = None) -> Any:
        """(what the teacher gives, its collections `wanted`)."""
        images = self.teacher.sees(images, self.mean, self.std)
        return self.teacher.model.apply(variables, images, mutable=list(wanted), method=method)

    def ours(self, theirs: jax.Array) -> jax.Array:
        """Tokens (B, N, C) of the teacher without those that the student has not, such as a class token."""
        extra = self.teacher.model.prefix - self.model.prefix
        return theirs[:, extra:] if extra > 0 and isinstance(self.model, Isotropic) else theirs


@dataclass(frozen=True)
class Distill(Taught):
    """The labels, a teacher's answers, and what the attentions of its blocks give.

    (1 - alpha) cross-entropy + alpha `losses.answer_loss` + weight `losses.squared_error`. A model with a head for
    answers (`deit_*_distilled`, `care_*`) learns them by that one, others by the head that they have.

    Attributes: those of `Classify`, and
        kind: "soft" or "hard"; "none": no answers, and alpha is 0.
        alpha, tau, reduction: see above, and `losses.answer_loss`.
        weight: of the squared error of what the attentions give, after their projection, a mean over all blocks.
    """

    kind: str = "none"
    alpha: float = 0.5
    tau: float = 1.0
    reduction: str = "sample"
    weight: float = 0.0

    def loss(
        self, variables: Variables, inputs: Inputs, key: jax.Array, theirs: Variables
    ) -> tuple[jax.Array, Variables]:
        images, targets = inputs
        alpha, wanted = self.alpha if self.kind != "none" else 0.0, [SEEN] if self.weight else []
        heads, changed, seen = self.trained(variables, images, key, *wanted, method="logits_of_heads")
        logits = heads[0] if self.kind != "none" else sum(heads[1:], heads[0]) / len(heads)
        total = optax.softmax_cross_entropy(logits, targets).mean()
        if not (alpha or self.weight):
            return total, changed
        answer, their_seen = self.asked(theirs, images, *wanted)
        if alpha:
            taught = losses.answer_loss(heads[-1], answer, self.kind, self.tau, self.reduction)
            total = (1 - alpha) * total + alpha * taught
        if self.weight:
            ours, others = (attended(collections[SEEN]) for collections in (seen, their_seen))
            total += self.weight * losses.squared_error(
                [ours[path] for path in others], [self.ours(x) for x in others.values()]
            )
        return total, changed


@dataclass(frozen=True)
class Align(Taught):
    """Every attention by itself, on what the teacher's block is given, to give what the teacher's attention gives.

    Inputs are the teacher's, so no gradient goes from block to block. Which parameters learn is said by
    `Training.rates`. No labels are used.

    Attributes: those of `Classify`, and
        match: "output", the squared error after the projection, a mean over blocks; "map", `losses.map_loss`, where
            both have maps, a mean over attentions.
        moving: (collection, path) of the running statistics that move, see `rates.of_attentions`.
    """

    match: str = "output"
    moving: frozenset[tuple[str, ...]] = frozenset()

    def loss(
        self, variables: Variables, inputs: Inputs, key: jax.Array, theirs: Variables
    ) -> tuple[jax.Array, Variables]:
        wanted = MAPS if self.match == "map" else SEEN
        _, their_seen = self.asked(theirs, inputs[0], SEEN, wanted)
        given = {
            path: jax.tree.map(self.ours, leaf)
            for path, leaf in flatten_dict(their_seen[SEEN]).items()
            if path[-1] == "given"
        }
        _, changed, seen = self.trained({**variables, GIVEN: unflatten_dict(given)}, inputs[0], key, wanted)
        before = {path: leaf for path, leaf in flatten_dict(variables).items() if path[0] in changed}
        after = {path: leaf for path, leaf in flatten_dict(changed).items() if path in self.moving}
        changed = unflatten_dict(before | after)
        if self.match == "output":
            ours, others = attended(seen[SEEN]), attended(their_seen[SEEN])
            return losses.squared_error([ours[p] for p in others], [self.ours(x) for x in others.values()]), changed
        ours, others = (flatten_dict(collections[MAPS]) for collections in (seen, their_seen))
        paths = [path[:-1] for path in others if path[-1] == "map"]
        each = [
            losses.map_loss(ours[(*p, "map")], others[(*p, "map")], jax.lax.stop_gradient(ours[(*p, "values")]))
            for p in paths
        ]
        return sum(each) / len(each), changed


@dataclass(frozen=True)
class Features(Taught):
    """The whole student, to have the teacher's features before pooling (`losses.feature_loss`). No labels are used.

    Attributes: those of `Classify`, and
        measure: "mse" or "cosine".
    """

    measure: str = "mse"

    def loss(
        self, variables: Variables, inputs: Inputs, key: jax.Array, theirs: Variables
    ) -> tuple[jax.Array, Variables]:
        features, changed, _ = self.trained(variables, inputs[0], key, method="forward_features")
        taught, _ = self.asked(theirs, inputs[0], method="forward_features")
        return losses.feature_loss(features, jax.lax.stop_gradient(self.ours(taught)), self.measure), changed


@dataclass(frozen=True)
class SelfTaught(Classify):
    """MESA: the labels, and from a step on what the moving average of the model itself answers (MLLA's recipe).

    Attributes: those of `Classify`, and
        weight: of the cross-entropy with the softmax of the average's logits.
        start: the step.
    """

    weight: float = 1.0
    start: int = 0

    def from_state(self, averaged: Variables | None, step: jax.Array) -> tuple[Any, ...]:
        return averaged, step

    def loss(
        self, variables: Variables, inputs: Inputs, key: jax.Array, averaged: Variables, step: jax.Array
    ) -> tuple[jax.Array, Variables]:
        images, targets = inputs
        logits, changed, _ = self.trained(variables, images, key)
        taught = jax.lax.cond(
            step >= self.start,
            lambda: jax.nn.softmax(self.model.apply(averaged, images), axis=-1),
            lambda: jnp.zeros_like(logits),
        )
        total = optax.softmax_cross_entropy(logits, targets).mean()
        return total + self.weight * optax.softmax_cross_entropy(logits, taught).mean(), changed
