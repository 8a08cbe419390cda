"""The device mesh and where arrays lie on it."""

from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P


def make_mesh() -> Mesh:
    """All devices of all processes in one axis, `data`. Auto axes, stated: jax.make_mesh's default is Explicit."""
    return jax.make_mesh((jax.device_count(),), ("data",), axis_types=(AxisType.Auto,))


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, P())


def over_data(mesh: Mesh) -> NamedSharding:
    """The leading axis, the batch, split over the devices."""
    return NamedSharding(mesh, P("data"))


def put_batch(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """This process's slice of a batch -> global arrays, the batch axis split over all devices."""
    sharding = over_data(mesh)
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), batch)


def check_divisible(mesh: Mesh, **batch_sizes: int) -> None:
    """ValueError where a batch size is not a multiple of the number of devices."""
    for name, size in batch_sizes.items():
        if size % mesh.size:
            down = size // mesh.size * mesh.size
            raise ValueError(f"{name}={size} is not divisible by the {mesh.size} devices; try {down or mesh.size}")


def to_host(tree: Any) -> Any:
    """Arrays of any sharding -> NumPy, waiting for them."""
    return jax.tree.map(np.asarray, jax.device_get(tree))
