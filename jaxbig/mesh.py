"""Sharding by rules: ``(where, spec)`` pairs over the parameter tree, Weights included."""

from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxbig.errors import UsageError
from jaxbig.tree import PyTree, Where, first_match, map_paths, paths
from jaxbig.weight import is_moved, is_weight

Rules = Sequence[tuple[Where, PartitionSpec]]


def shardings(tree: PyTree, rules: Rules, mesh: Mesh) -> PyTree:
    """A `NamedSharding` for every array of a tree.

    Args:
        tree: arrays, shapes or Weights.
        rules: ``(where, spec)``, the first match wins; a leaf that no rule selects is replicated. The spec speaks of
            the leaf's logical axes; the parts of a Weight derive theirs from it. Where a Weight's base has moved to
            `train`, its parts with as many axes as the spec names follow the spec, smaller ones are replicated.
        mesh: the devices.

    Returns:
        a tree of the same structure, for `jax.device_put` or jit's ``in_shardings``.

    Raises:
        UsageError: a rule that matches nothing, an axis the mesh does not have, or a length it does not divide.

    Example:
        >>> mesh = jax.make_mesh((1,), ("fsdp",), axis_types=(jax.sharding.AxisType.Auto,))
        >>> tree = {"kernel": jax.ShapeDtypeStruct((4, 2), "float32"), "bias": jax.ShapeDtypeStruct((2,), "float32")}
        >>> shardings(tree, [("kernel", PartitionSpec("fsdp"))], mesh)["bias"].spec
        P()
    """
    specs = first_match(rules, paths(tree), PartitionSpec())

    def one(path: str, leaf: Any) -> Any:
        spec = specs[path]
        if is_weight(leaf) and is_moved(leaf):
            parts = jax.tree.map(lambda part: spec if part.ndim >= len(spec) else PartitionSpec(), leaf)
        elif len(spec) > len(leaf.shape):
            raise UsageError(
                f"{path} has {len(leaf.shape)} axes, but its spec {spec} names {len(spec)}; shorten the rule"
            )
        else:
            parts = leaf.specs(spec) if is_weight(leaf) else spec
        return jax.tree.map(
            lambda spec, array: _checked(path, spec, array.shape, mesh),
            parts,
            leaf,
            is_leaf=lambda part: isinstance(part, PartitionSpec),
        )

    return map_paths(one, tree)


def _checked(path: str, spec: PartitionSpec, shape: tuple[int, ...], mesh: Mesh) -> NamedSharding:
    for axis, names in enumerate(spec):
        for name in () if names is None else names if isinstance(names, tuple) else (names,):
            if name not in mesh.shape:
                raise UsageError(f"{path}: spec {spec} names {name!r}, but the mesh has {', '.join(mesh.shape)}")
        size = 1
        for name in () if names is None else names if isinstance(names, tuple) else (names,):
            size *= mesh.shape[name]
        if shape[axis] % size:
            raise UsageError(
                f"{path}: axis {axis} of {shape} is not divided by {names!r} ({size} devices); "
                "shard another axis of it, or give it a rule of its own"
            )
    return NamedSharding(mesh, spec)
