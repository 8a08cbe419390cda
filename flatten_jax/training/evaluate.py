"""Evaluation: every image exactly once, padding masked, and the count asserted."""

from collections.abc import Callable, Iterable

import jax
from jax.sharding import Mesh

from flatten_jax.runtime import compiler_options
from flatten_jax.training.sharding import over_data, replicated, to_host
from flatten_jax.training.tasks import Batch, Classify, Sums, Variables


def make_eval_step(task: Classify, mesh: Mesh) -> Callable[[Sums, Variables, Batch], Sums]:
    """step(sums, variables, batch) -> sums with those of the batch added. Running statistics stay as they are."""

    def step(sums: Sums, variables: Variables, batch: Batch) -> Sums:
        return {name: sums[name] + value for name, value in task.sums(variables, batch).items()}

    everywhere = replicated(mesh)
    shardings = (everywhere, None, over_data(mesh))  # variables stay as they lie
    options = compiler_options(mesh.devices.flat[0].platform)
    return jax.jit(step, donate_argnums=0, in_shardings=shardings, out_shardings=everywhere, compiler_options=options)


def evaluate(
    task: Classify, eval_step: Callable, variables: Variables, batches: Iterable[Batch], expected_count: int
) -> dict[str, float]:
    """The task's summary of a whole set, and `count`, the number of its images.

    Raises:
        RuntimeError: where not exactly `expected_count` images were seen; an accuracy over another set is wrong.
    """
    sums: Sums = task.zero_sums()
    shape, fitted = None, variables
    for batch in batches:
        if batch["image"].shape[1:] != shape:
            shape = batch["image"].shape[1:]
            fitted = task.fitted(variables, shape)
        sums = eval_step(sums, fitted, batch)
    sums = to_host(sums)
    count = round(float(sums["count"]))
    if count != expected_count:
        raise RuntimeError(f"evaluation saw {count} images, the set has {expected_count}: the result would be wrong")
    return {**task.summary(sums), "count": count}
