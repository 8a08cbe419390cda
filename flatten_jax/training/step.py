"""The state of training and the one jitted step that advances it."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from flatten_jax.models.images import dummy_images
from flatten_jax.ops.platform import tpu_kernels
from flatten_jax.runtime import compiler_options
from flatten_jax.training.optimizer import Schedule
from flatten_jax.training.sharding import by_size, over_data, replicated
from flatten_jax.training.tasks import STATISTICS, Batch, Classify, Variables


@flax.struct.dataclass
class TrainState:
    """All that a run is: with it and the configuration, every later step is determined.

    Random numbers and the position in the data are functions of (seed, step), so neither is kept here. The checkpoints
    name a leaf by its path. A model that has parameters only has no leaves in `state` and `ema_state`.
    """

    step: jax.Array  # () int32, optimizer steps done
    params: Any
    state: Variables  # every collection but "params"
    opt_state: Any
    ema: Any  # moving average of params, or None
    ema_state: Variables = flax.struct.field(default_factory=dict)  # and of the statistics among `state`

    @property
    def variables(self) -> Variables:
        """What the model is applied to."""
        return {"params": self.params, **self.state}

    @property
    def averaged(self) -> Variables | None:
        """The same with moving averages of parameters and statistics, or None; constants have none."""
        return None if self.ema is None else {"params": self.ema, **self.state, **self.ema_state}


@dataclass(frozen=True)
class Training:
    """All that a step of training needs besides the state and a batch.

    Attributes:
        task: what is optimised, and of which model.
        optimizer, schedule: the optimizer, and its learning rate by step, to be reported.
        mesh: the devices.
        seed: of the initial variables and of the random numbers of every step.
        accumulation: parts of a batch that are computed one after the other.
        ema_decay: of the moving average; 0: none.
        skip_nonfinite_steps: not 0: a step that is not finite changes nothing but the number of steps.
        tpu_kernels: see `ops.platform.tpu_kernels`.
        rates: factor of the learning rate of every parameter, a number or one for each entry of its last axis. Of those
            with 0 alone no gradient is asked. None: all alike.
    """

    task: Classify
    optimizer: optax.GradientTransformation
    schedule: Schedule
    mesh: Mesh
    seed: int = 0
    accumulation: int = 1
    ema_decay: float = 0.0
    skip_nonfinite_steps: int = 0
    tpu_kernels: bool = False
    rates: Any = None


def init_state(training: Training, variables: Variables | None = None) -> TrainState:
    """The state at step 0, made on the devices; with `variables` from elsewhere, or initialised from the seed."""
    model, ema = training.task.model, training.ema_decay > 0

    def init(variables: Variables | None) -> TrainState:
        if variables is None:
            variables = model.init(jax.random.key(training.seed), dummy_images(model))
        params = variables["params"]
        state = {name: tree for name, tree in variables.items() if name != "params"}
        statistics = {name: tree for name, tree in state.items() if ema and name in STATISTICS}
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            params=params,
            state=state,
            opt_state=training.optimizer.init(params),
            ema=jax.tree.map(jnp.copy, params) if ema else None,
            ema_state=jax.tree.map(jnp.copy, statistics),
        )

    return jax.jit(init, out_shardings=by_size(training.mesh, jax.eval_shape(init, variables)))(variables)


def abstract_state(training: Training) -> TrainState:
    """Shapes, dtypes and shardings of `init_state`'s result, for restoring into."""
    shapes = jax.eval_shape(lambda: init_state(training))
    return jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        shapes,
        by_size(training.mesh, shapes),
    )


def make_train_step(
    training: Training,
) -> Callable[..., tuple[TrainState, dict[str, jax.Array]]]:
    """step(state, batch, *task.constants) -> (state, metrics), jitted over the mesh; the old state's memory is reused.

    A batch is what the task says, split over the devices. Metrics are scalars of this step: loss, learning_rate,
    grad_norm (before clipping), update_norm. With `skip_nonfinite_steps` a step where one of them is not finite changes
    nothing but the number of steps.

    The batch is one array, wherever its parts lie, so a BatchNorm's mean and variance are those of all devices
    ("SyncBN") without a word about it. With `accumulation` they are those of a part, and each part moves the running
    statistics.
    """
    task, optimizer, accumulation = training.task, training.optimizer, training.accumulation

    def loss_and_grad(
        params: Any, state: Variables, inputs: Any, key: jax.Array, *constants: Any
    ) -> tuple[Any, Variables]:
        """((loss, gradient), new `state`)."""

        def loss(params: Any) -> tuple[jax.Array, Variables]:
            return task.loss({"params": held(params, training.rates), **state}, inputs, key, *constants)

        (value, changed), grads = jax.value_and_grad(loss, has_aux=True)(params)
        return (value, grads), {**state, **changed}

    def accumulated(
        params: Any, state: Variables, inputs: Any, key: jax.Array, *constants: Any
    ) -> tuple[Any, Variables]:
        """Mean of loss and gradient over `accumulation` parts, one after the other; every part is on all devices."""

        def part(carry: Any, given: Any) -> tuple[Any, None]:
            mean, state = carry
            computed, state = loss_and_grad(params, state, *given, *constants)
            return (jax.tree.map(lambda mean, x: mean + x / accumulation, mean, computed), state), None

        parts = jax.tree.map(lambda x: x.reshape(-1, accumulation, *x.shape[1:]).swapaxes(0, 1), inputs)
        zeros = jnp.zeros(()), jax.tree.map(jnp.zeros_like, params)
        return jax.lax.scan(part, (zeros, state), (parts, jax.random.split(key, accumulation)))[0]

    def step(old: TrainState, batch: Batch, *constants: Any) -> tuple[TrainState, dict[str, jax.Array]]:
        key = jax.random.fold_in(jax.random.key(training.seed), old.step)
        erase_key, mix_key, model_key = jax.random.split(key, 3)
        with jax.named_scope("inputs"):
            inputs = task.inputs(batch, erase_key, mix_key)
        compute = loss_and_grad if accumulation == 1 else accumulated
        constants += task.from_state(old.averaged, old.step)
        with tpu_kernels(training.mesh) if training.tpu_kernels else nullcontext():
            (loss, grads), state = compute(old.params, old.state, inputs, model_key, *constants)
        with jax.named_scope("optimizer"):
            updates, opt_state = optimizer.update(grads, old.opt_state, old.params)
            params = optax.apply_updates(old.params, updates)
            ema, ema_state = old.ema, old.ema_state
            if ema is not None:
                latest = params, {name: state[name] for name in ema_state}
                ema, ema_state = optax.incremental_update(latest, (ema, ema_state), 1 - training.ema_decay)
        metrics = {
            "loss": loss,
            "learning_rate": training.schedule(old.step),
            "grad_norm": optax.global_norm(grads),
            "update_norm": optax.global_norm(updates),
        }
        new = TrainState(old.step + 1, params, state, opt_state, ema, ema_state)
        if training.skip_nonfinite_steps:
            finite = jnp.isfinite(jnp.stack([loss, metrics["grad_norm"], metrics["update_norm"]])).all()
            unchanged = old.replace(step=old.step + 1)
            new = jax.tree.map(lambda ours, old: jnp.where(finite, ours, old), new, unchanged)
        return new, metrics

    mesh, layout = training.mesh, by_size(training.mesh, abstract_state(training))
    return jax.jit(
        step,
        donate_argnums=0,
        in_shardings=(layout, over_data(mesh), *by_size(mesh, task.constants)),
        out_shardings=(layout, replicated(mesh)),
        compiler_options=compiler_options(mesh.devices.flat[0].platform),
    )


def held(params: Any, rates: Any) -> Any:
    """Parameters, of which those whose rate is 0 are constants to the gradient."""
    if rates is None:
        return params
    return jax.tree.map(lambda x, rate: x if np.any(rate) else jax.lax.stop_gradient(x), params, rates)
