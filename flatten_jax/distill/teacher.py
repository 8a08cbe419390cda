"""The teacher of a run: which it is, its weights on the devices, and whether a student fits it."""

import dataclasses
import hashlib
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from flax.traverse_util import flatten_dict
from jax.sharding import Mesh

from flatten_jax.models.backbone import Backbone
from flatten_jax.models.images import dummy_images
from flatten_jax.models.isotropic import Isotropic
from flatten_jax.models.stack import SEEN
from flatten_jax.training.sharding import by_size

FINGERPRINT = 16  # digits


@dataclasses.dataclass(frozen=True, eq=False)
class Teacher:
    """A model that is not trained.

    Attributes:
        model: evaluated, never trained.
        variables: on the devices; they are arguments of the jitted step.
        mean, std: of the channels, by which its pictures are normalised.
        fingerprint: of the weights.
        said: where they are from, for people.
    """

    model: Backbone
    variables: Mapping[str, Any]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    fingerprint: str = ""
    said: str = ""

    def sees(self, images: jax.Array, mean: tuple[float, ...], std: tuple[float, ...]) -> jax.Array:
        """Pictures that were normalised by `mean` and `std`, as the teacher is used to them."""
        if (tuple(mean), tuple(std)) == (tuple(self.mean), tuple(self.std)):
            return images
        ours, theirs = ((np.float64(m), np.float64(s)) for m, s in ((mean, std), (self.mean, self.std)))
        scale, shift = ours[1] / theirs[1], (ours[0] - theirs[0]) / theirs[1]
        return images * jnp.asarray(scale, images.dtype) + jnp.asarray(shift, images.dtype)


def needs_teacher(config: ml_collections.ConfigDict) -> bool:
    """Whether anything in a config asks for one."""
    distill = config.distill
    return distill.kind != "mesa" and (distill.kind != "none" or distill.weight > 0 or distill.new_factor != 1)


def load_teacher(config: ml_collections.ConfigDict, model: nn.Module, mesh: Mesh) -> Teacher:
    """The teacher of a config: `distill.teacher`, as `flatten_jax.trained.load_trained` takes it.

    It sees pictures of the student's size: position encodings of another one are resampled, which is said.

    Args:
        model: the student.

    Raises:
        FileNotFoundError, ValueError: nothing there; other weights than `distill.fingerprint` says; other classes.
    """
    from flatten_jax.trained.load import load_trained  # which builds on training

    distill = config.distill
    options = {"image_size": model.image_size, "dtype": config.model.dtype}
    trained = load_trained(distill.teacher, distill.teacher_model or None, **options)
    found = checked_fingerprint(trained.variables, distill)
    theirs = trained.model.num_classes
    if distill.kind in ("soft", "hard") and theirs != model.num_classes:
        raise ValueError(
            f"distill.teacher={distill.teacher} answers {theirs} classes and the student {model.num_classes}: "
            f"distill.kind={distill.kind} needs the same"
        )
    variables = jax.device_put(trained.variables, by_size(mesh, trained.variables))
    return Teacher(trained.model, variables, trained.mean, trained.std, found, trained.said)


def fingerprint(variables: Mapping[str, Any]) -> str:
    """Hexadecimal digits that tell weights from all others: names, shapes and values."""
    digest = hashlib.blake2b(digest_size=FINGERPRINT // 2)
    for path, leaf in sorted(flatten_dict(variables).items()):
        array = np.ascontiguousarray(leaf, np.float32)
        digest.update(f"{'/'.join(path)} {array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def checked_fingerprint(variables: Mapping[str, Any], distill: ml_collections.ConfigDict) -> str:
    """`fingerprint` of the teacher's variables; ValueError where `distill` knows another one."""
    found = fingerprint(variables)
    if distill.fingerprint not in ("", found):
        raise ValueError(
            f"distill.teacher={distill.teacher} has other weights ({found}) than this run was started with "
            f"({distill.fingerprint}): give that teacher, or take another --workdir"
        )
    return found


def check_blocks(teacher: Backbone, student: Backbone) -> None:
    """ValueError where blocks of the two cannot be compared one by one; it lists both side by side."""
    ours, theirs = (_shapes(model) for model in (student, teacher))
    extra = teacher.prefix - student.prefix
    if extra > 0 and isinstance(student, Isotropic):
        theirs = {path: (shape[0], shape[1] - extra, *shape[2:]) for path, shape in theirs.items()}
    if not ours:
        raise ValueError(f"{type(student).__name__} has no blocks that could be compared with a teacher's")
    if ours != theirs:
        rows = [(name, architecture(teacher)[name], said) for name, said in architecture(student).items()]
        lines = "".join(f"\n  {name}: {a} of the teacher, {b} of the student" for name, a, b in rows if a != b)
        raise ValueError(f"the blocks of teacher and student are not alike:{lines}")


def _shapes(model: Backbone) -> dict[tuple[str, ...], tuple[int, ...]]:
    """What the attention of each block gives, by the block's path: (1, N, C)."""

    def look(key: jax.Array) -> Any:
        images = dummy_images(model)
        return model.apply(model.init(key, images), images, mutable=[SEEN])[1].get(SEEN, {})

    return {path: leaf.shape for path, leaf in attended(jax.eval_shape(look, jax.random.key(0))).items()}


def attended(seen: Mapping[str, Any]) -> dict[tuple[str, ...], jax.Array]:
    """Of the collection SEEN what each block's attention gave, by the path of the block."""
    return {path[:-1]: leaf for path, leaf in flatten_dict(seen).items() if path[-1] == "attended"}


def architecture(model: Backbone) -> dict[str, Any]:
    """What two models have to have in common for their blocks to be compared, by what it is called."""
    return {
        "family": type(model).__name__,
        "image size": model.image_size,
        "blocks of each stage": [len(names) for names in model.attentions()],
        "widths": list(model.widths()) if hasattr(model, "widths") else [i["num_chs"] for i in model.level_info()],
        "patch size": getattr(model, "patch_size", "-"),
        "tokens before the picture": model.prefix,
    }
