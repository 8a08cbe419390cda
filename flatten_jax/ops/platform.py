"""Operations that are computed otherwise on one platform: all of them ask here."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from flatten_jax.ops.derivative import with_backward

_PLAIN = jax.make_user_context(False)
_TPU_KERNELS = jax.make_user_context(None)


def plain_forms() -> Any:
    """A context in which every operation is its plain form, on whatever platform.

    For converters to other formats, which know nothing of platforms. Compiled functions know of the context.
    """
    return _PLAIN(True)


def platform_dependent(*args: Any, default: Callable, **platforms: Callable) -> Any:
    """As `jax.lax.platform_dependent`; within `plain_forms` it is `default(*args)`."""
    if _PLAIN.value:
        return default(*args)
    return jax.lax.platform_dependent(*args, default=default, **platforms)


def tpu_kernels(mesh: Mesh) -> Any:
    """A context in which kernels written for TPUs may stand in for XLA's, on TPUs, in bfloat16.

    XLA cannot split such a kernel, so it has to be told how examples lie: over all axes of `mesh`. Compiled functions
    know of the context.
    """
    return _TPU_KERNELS(mesh)


def kernel_mesh() -> Mesh | None:
    """The mesh of `tpu_kernels`, or None outside of it and within `plain_forms`."""
    return None if _PLAIN.value else _TPU_KERNELS.value


def with_tpu_kernel(plain: Callable, forward: Callable, backward: Callable, arrays: int, facts: int) -> Callable:
    """A function of so many arrays and of facts, `plain` but on TPUs, where it and its derivative are kernels.

    Args:
        plain: of the arrays and of all facts but the last, which is the mesh of `tpu_kernels`.
        forward: the same, of the arrays and of all facts.
        backward: gradients of the arrays, of them, of the result's gradient and of all facts.
    """

    def by_kernel(*args: Any) -> jax.Array:
        given, known = args[:arrays], args[arrays:]
        return platform_dependent(
            *given, tpu=lambda *given: forward(*given, *known), default=lambda *given: plain(*given, *known[:-1])
        )

    def kept(*args: Any) -> tuple[jax.Array, tuple]:
        return by_kernel(*args), args[:arrays]

    def pulled(*args: Any) -> tuple:
        *known, saved, gradient = args

        def by_jax(*given: jax.Array) -> tuple:
            return jax.vjp(lambda *given: plain(*given, *known[:-1]), *given[:-1])[1](given[-1])

        return platform_dependent(*saved, gradient, tpu=lambda *given: backward(*given, *known), default=by_jax)

    return with_backward(by_kernel, kept, pulled, nondiff_argnums=tuple(range(arrays, arrays + facts)))


def on_each_device(kernel: Callable, mesh: Mesh, shared: jax.Array, arrays: Sequence[jax.Array], results: int) -> tuple:
    """`kernel(shared, *arrays)` where the examples lie, along the first axis of all arrays and of so many results."""
    examples = P(mesh.axis_names)
    split = jax.shard_map(
        kernel,
        mesh=mesh,
        in_specs=(P(), *[examples] * len(arrays)),
        out_specs=(examples,) * results,
        check_vma=False,
    )
    return split(shared, *arrays)
