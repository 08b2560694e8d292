"""Several processes as one: fetching arrays, and giving every process what all of them have, bit for bit."""

import json
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

PyTree = Any


def is_whole(tree: PyTree) -> bool:
    """Whether the arrays are those of all processes together already, not of this one alone.

    Example:
        >>> is_whole({"loss": np.float32(1)})  # one process is all processes
        True
    """
    lies_elsewhere = lambda leaf: isinstance(leaf, jax.Array) and not leaf.is_fully_addressable  # noqa: E731
    return jax.process_count() == 1 or any(map(lies_elsewhere, jax.tree.leaves(tree)))


def fetch(tree: PyTree) -> PyTree:
    """The tree in NumPy; arrays that are split over processes are put together, so then all have to call this.

    Example:
        >>> fetch({"a": jax.numpy.ones(2)})["a"].tolist()
        [1.0, 1.0]
    """

    def one(leaf):
        if isinstance(leaf, jax.Array) and not (leaf.is_fully_addressable or leaf.is_fully_replicated):
            return multihost_utils.process_allgather(leaf, tiled=True)
        return jax.device_get(leaf)

    return jax.tree.map(one, tree)


def gather(blob: bytes) -> list[bytes]:
    """The bytes that each process gives, in the order of the processes; all have to call this.

    Example:
        >>> gather(b"mine")
        [b'mine']
    """
    if jax.process_count() == 1:
        return [blob]
    # As bytes, because jax would turn 64-bit numbers into 32-bit ones on the way.
    lengths = multihost_utils.process_allgather(np.array([len(blob)], np.uint64).view(np.uint8))
    sizes = np.ascontiguousarray(lengths).view(np.uint64).ravel().astype(int).tolist()
    padded = np.zeros(max(sizes), np.uint8)
    padded[: len(blob)] = np.frombuffer(blob, np.uint8)
    rows = np.asarray(multihost_utils.process_allgather(padded))
    return [row[:size].tobytes() for row, size in zip(rows, sizes, strict=True)]


def to_bytes(arrays: Mapping[str, np.ndarray]) -> bytes:
    """Arrays by name as bytes, for `gather`.

    Example:
        >>> from_bytes(to_bytes({"a": np.arange(3)}))["a"].tolist()
        [0, 1, 2]
    """
    head = json.dumps([(name, str(array.dtype), array.shape) for name, array in arrays.items()]).encode()
    return b"".join([len(head).to_bytes(8, "little"), head, *(array.tobytes() for array in arrays.values())])


def from_bytes(blob: bytes) -> dict[str, np.ndarray]:
    """What `to_bytes` was given."""
    start = 8 + int.from_bytes(blob[:8], "little")
    arrays = {}
    for name, dtype, shape in json.loads(blob[8:start]):
        arrays[name] = np.frombuffer(blob, np.dtype(dtype), int(np.prod(shape)), start).reshape(shape)
        start += arrays[name].nbytes
    return arrays
