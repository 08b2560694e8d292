"""Arrays of any dtype as arrays that every storage knows, with the same bits, and back.

A *record* is what has to be remembered of a leaf: its path, shape and dtype, the name under which it is stored, and for
typed PRNG keys their implementation. Records are JSON-able.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxbig.errors import UserError
from jaxbig.tree import PyTree, path_of

Record = dict[str, Any]

# What storages keep as it is. All else travels as integers of one or two bytes.
NATIVE = {f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)}
NATIVE |= {"bool", "float16", "bfloat16", "float32", "float64", "complex64", "complex128"}


def encode(tree: PyTree) -> tuple[list[Record], dict[str, Any]]:
    """The records of a tree's leaves, in JAX's order, and the arrays to store, by name.

    Args:
        tree: pytree of arrays and numbers; Weights and None are fine.

    Returns:
        records, and name -> array; leaves without elements have a record only, as storages refuse them.

    Raises:
        UserError: a leaf is no array.

    Example:
        >>> records, arrays = encode({"codes": jnp.array([-1, 3], jnp.int4)})
        >>> records[0]["dtype"], arrays[records[0]["name"]].dtype.name
        ('int4', 'int8')
    """
    records, arrays = [], {}
    for index, (keys, leaf) in enumerate(jax.tree_util.tree_flatten_with_path(tree)[0]):
        path = path_of(keys)
        if isinstance(leaf, bool | int | float | complex | np.generic):
            leaf = np.asarray(leaf)
        if not isinstance(leaf, jax.Array | np.ndarray) or (isinstance(leaf, np.ndarray) and leaf.dtype.kind in "OSU"):
            raise UserError(f"{path or 'the tree'} is a {type(leaf).__name__}, no array of numbers; leave it out")
        record = {"path": path, "name": f"{index:05d}.{path.replace('/', '.')}"}
        record |= {"shape": list(leaf.shape), "dtype": str(leaf.dtype)}
        if _is_key(leaf.dtype):
            record["impl"] = str(jax.random.key_impl(leaf))
        records.append(record)
        if leaf.size:
            arrays[record["name"]] = to_stored(leaf)
    return records, arrays


def to_stored(leaf: Any) -> Any:
    """An array as the storage takes it.

    Example:
        >>> to_stored(jnp.array([1.0], jnp.float8_e4m3fn)).dtype.name
        'uint8'
    """
    if _is_key(leaf.dtype):
        return jax.random.key_data(leaf)
    if leaf.dtype.name in NATIVE:
        return leaf
    leaf = jnp.asarray(leaf)
    if jnp.issubdtype(leaf.dtype, jnp.integer):
        return leaf.astype(jnp.int8 if jnp.issubdtype(leaf.dtype, jnp.signedinteger) else jnp.uint8)
    bits = jnp.finfo(leaf.dtype).bits
    raw = jax.lax.bitcast_convert_type(leaf, {4: jnp.uint4, 8: jnp.uint8}[bits])
    return raw.astype(jnp.uint8)


def from_stored(leaf: Any, record: Mapping[str, Any]) -> Any:
    """The array of which `to_stored` made `leaf`.

    Example:
        >>> from_stored(jnp.array([56], jnp.uint8), {"dtype": "float8_e4m3fn"})
        Array([1], dtype=float8_e4m3fn)
    """
    if "impl" in record:
        return jax.random.wrap_key_data(leaf, impl=record["impl"])
    if record["dtype"] in NATIVE:
        return leaf
    dtype = jnp.dtype(record["dtype"])
    if jnp.issubdtype(dtype, jnp.integer):
        return leaf.astype(dtype)
    return jax.lax.bitcast_convert_type(leaf.astype({4: jnp.uint4, 8: jnp.uint8}[jnp.finfo(dtype).bits]), dtype)


def stored_shape(record: Mapping[str, Any]) -> tuple[tuple[int, ...], Any]:
    """Shape and dtype of a leaf in the storage.

    Example:
        >>> stored_shape({"shape": [3], "dtype": "key<fry>", "impl": "threefry2x32"})
        ((3, 2), dtype('uint32'))
    """
    shape = tuple(record["shape"])
    if "impl" in record:
        data = jax.eval_shape(lambda: jax.random.key_data(jax.random.key(0, impl=record["impl"])))
        return shape + data.shape, data.dtype
    if record["dtype"] in NATIVE:
        return shape, jnp.dtype(record["dtype"])
    return shape, jax.eval_shape(lambda: to_stored(jnp.zeros((1,), record["dtype"]))).dtype


def _is_key(dtype: Any) -> bool:
    return jnp.issubdtype(dtype, jax.dtypes.prng_key)
