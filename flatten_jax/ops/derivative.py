"""Backward passes that are written by hand, and forward-mode differentiation, which does without them."""

import functools
from collections.abc import Callable
from typing import Any

import jax

_FORWARD_MODE = jax.make_user_context(False)


def forward_mode() -> Any:
    """A context in which `jax.jvp`, `jax.jacfwd`, `jax.linearize` and Hessian-vector products pass through the models.

        with flatten_jax.forward_mode():
            logits, change = jax.jvp(lambda images: model.apply(variables, images), (images,), (direction,))

    JAX has no forward mode for a function with a hand-written backward pass. Within the context the functions are their
    plain forms, and JAX makes both derivatives itself. The values are the same; the backward pass takes more memory.
    Compiled functions know of the context: what is jitted outside is compiled anew inside.
    """
    return _FORWARD_MODE(True)


def with_backward(
    function: Callable, forward: Callable, backward: Callable, nondiff_argnums: tuple[int, ...] = ()
) -> Callable:
    """`function` of arrays with a backward pass by hand, see `jax.custom_vjp`; within `forward_mode` without it.

    It is jitted, so that layers which are alike are traced once; XLA inlines it.
    """
    by_hand = jax.custom_vjp(function, nondiff_argnums=nondiff_argnums)
    by_hand.defvjp(forward, backward)

    @functools.partial(jax.jit, static_argnums=nondiff_argnums)
    @functools.wraps(function)
    def call(*args: Any) -> Any:
        return function(*args) if _FORWARD_MODE.value else by_hand(*args)

    return call
