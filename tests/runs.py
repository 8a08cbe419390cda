"""A run's folder without training: config, class names, and checkpoints of given parameters and evaluations."""

import jax
import numpy as np

from flatten_jax.models import abstract_variables, create_model
from flatten_jax.training import agreement
from flatten_jax.training.checkpoint import Checkpoints
from flatten_jax.training.step import TrainState

from .training.conftest import tiny


def write_run(folder, names, evaluations, **options):
    """A run of `tiny()` with these class names.

    Args:
        evaluations: {step: top-1 in percent or None}; the parameters of every step are others.

    Returns:
        config, model, {step: params}.
    """
    config = tiny()
    config.model.update(num_classes=len(names), **options)
    model = create_model(**{k: v for k, v in config.model.items() if v is not None})
    agreement.claim(folder, config, names)
    checkpoints = Checkpoints(folder / "checkpoints", keep=len(evaluations))
    params = {}
    for step, top1 in evaluations.items():
        rng = np.random.default_rng(step)
        params[step] = jax.tree.map(
            lambda x, rng=rng: (0.3 * rng.standard_normal(x.shape)).astype(np.float32),
            abstract_variables(model)["params"],
        )
        metrics = None if top1 is None else {"eval/acc1": top1, "eval/acc5": 100.0, "eval/loss": 0.5, "eval/count": 40}
        checkpoints.save(TrainState(np.int32(step), params[step], {}, None, None), {"step": step}, metrics)
    checkpoints.close()
    return config, model, params
