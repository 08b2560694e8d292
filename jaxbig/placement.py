"""Where a run's arrays lie: on one device, over a mesh, or one copy a device for `pmap`."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxbig.errors import UserError

PyTree = Any
AXIS = "data"


class Placement(NamedTuple):
    """How to put things on devices and to call a step there.

    Attributes:
        state: tree -> the tree where the step wants it.
        batch: dictionary of arrays [B, ...] -> the same where the step wants it.
        compile: ``(step, state) -> function (base, state, batch) -> (state, metrics)`` that donates the state.
        fetch: state -> the state as one device would have it.
        metrics: metrics of a list of steps -> NumPy numbers.
    """

    state: Callable[[PyTree], PyTree]
    batch: Callable[[dict[str, Any]], dict[str, Any]]
    compile: Callable[[Callable, PyTree], Callable]
    fetch: Callable[[PyTree], PyTree]
    metrics: Callable[[list], list]


def single() -> Placement:
    """One device, JAX's default one.

    Example:
        >>> single().metrics([{"loss": (jnp.float32(1), jnp.float32(2))}])[0]["loss"][1].item()
        2.0
    """
    return Placement(
        state=lambda tree: tree,
        batch=lambda batch: batch,
        compile=lambda step, state: jax.jit(step, donate_argnums=1),
        fetch=lambda state: state,
        metrics=jax.device_get,
    )


def over_mesh(mesh: Mesh) -> Placement:
    """Batches split over all axes of a mesh; parameters and state replicated, unless they lie on this mesh already.

    Args:
        mesh: devices; with Auto axes, as `jax.make_mesh(..., axis_types=(AxisType.Auto,))` makes it.

    Returns:
        placement whose `batch` raises UserError where the devices do not divide a batch.

    Example:
        >>> mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
        >>> over_mesh(mesh).batch({"x": np.zeros((4, 2))})["x"].sharding.spec == P("data")
        True
    """

    def put(leaf):
        here = isinstance(getattr(leaf, "sharding", None), NamedSharding) and leaf.sharding.mesh == mesh
        return leaf if here else jax.device_put(leaf, NamedSharding(mesh, P()))

    def batch(arrays):
        _divides(arrays, mesh.size, "the mesh has")
        return jax.device_put(arrays, NamedSharding(mesh, P(mesh.axis_names)))

    def compiled(step, state):
        # Pinned, because a state that the compiler lays out anew would make the second call compile again.
        return jax.jit(step, donate_argnums=1, out_shardings=(jax.tree.map(lambda leaf: leaf.sharding, state), None))

    return Placement(lambda tree: jax.tree.map(put, tree), batch, compiled, lambda state: state, jax.device_get)


def replicas() -> Placement:
    """One copy of everything on each local device, as `jax.pmap` wants it; the step reduces over the axis `AXIS`.

    Example:
        >>> replicas().batch({"x": np.zeros((jax.local_device_count(), 3))})["x"].shape[1:]
        (1, 3)
    """
    count = jax.local_device_count()
    mesh = Mesh(np.array(jax.local_devices()), (AXIS,))

    def put(leaf):
        return jax.device_put(jnp.broadcast_to(leaf, (count, *jnp.shape(leaf))), NamedSharding(mesh, P(AXIS)))

    def batch(arrays):
        _divides(arrays, count, "pmap uses")
        return {name: np.reshape(array, (count, -1, *np.shape(array)[1:])) for name, array in arrays.items()}

    def first(tree):
        return jax.tree.map(lambda leaf: leaf[0], tree)

    return Placement(
        lambda tree: jax.tree.map(put, tree),
        batch,
        lambda step, state: jax.pmap(step, axis_name=AXIS, donate_argnums=1),
        lambda state: jax.device_put(first(state), jax.local_devices()[0]),
        lambda batches: jax.device_get([first(metrics) for metrics in batches]),
    )


def _divides(arrays: dict[str, Any], devices: int, who: str) -> None:
    for name, array in arrays.items():
        if len(array) % devices:
            raise UserError(
                f"batch: {name} has {len(array)} examples, {who} {devices} devices; use a multiple of {devices}"
            )
