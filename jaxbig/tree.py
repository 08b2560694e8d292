"""Parameter trees: paths, and the one language that selects leaves everywhere in jaxbig.

A *path* is the keys from the root to a leaf joined by ``/``: ``encoder/layer_3/attention/query/kernel``. Dictionary
keys, sequence indices and attribute names all count. A `Weight` is a leaf; `None` is an empty place, not a leaf.

*where* is a regular expression that has to match the whole path, or a sequence of them (any may match). It means the
same for training, freezing, learning rates, sharding and compression. A pattern that matches nothing is an error: a
typing mistake must not silently train nothing.
"""

import difflib
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax

from jaxbig.errors import UsageError
from jaxbig.weight import is_weight

PyTree = Any
Where = str | Sequence[str]


def path_of(key_path: Iterable[Any]) -> str:
    """The jaxbig path of a JAX key path.

    Example:
        >>> (keys, _), = jax.tree_util.tree_flatten_with_path({"a": [1.0]})[0]
        >>> path_of(keys)
        'a/0'
    """
    return jax.tree_util.keystr(tuple(key_path), simple=True, separator="/")


def paths(tree: PyTree) -> dict[str, Any]:
    """The leaves of `tree` by path, in JAX's order. Weights are leaves; None is none.

    Args:
        tree: any pytree.

    Returns:
        dictionary path -> leaf.

    Raises:
        UsageError: if two leaves have the same path (a key that holds a ``/``).

    Example:
        >>> paths({"dense": {"kernel": 1.0, "bias": 2.0}, "moved": None})
        {'dense/bias': 2.0, 'dense/kernel': 1.0}
    """
    leaves = jax.tree_util.tree_flatten_with_path(tree, is_leaf=is_weight)[0]
    found = {path_of(keys): leaf for keys, leaf in leaves}
    if len(found) != len(leaves):
        raise UsageError("parameter tree: two leaves have the same path; rename the key that contains a '/'")
    return found


def match(where: Where, names: Iterable[str]) -> list[str]:
    """The names that `where` selects, in their own order.

    Args:
        where: regular expression (matches the whole path), or a sequence of them.
        names: the paths to choose from.

    Returns:
        the selected names.

    Raises:
        UsageError: a pattern is no regular expression, or matches nothing; the message lists the nearest paths.

    Example:
        >>> match(".*/kernel", ["dense/kernel", "dense/bias"])
        ['dense/kernel']
    """
    names = list(names)
    selected: set[str] = set()
    if not where:
        raise UsageError(f"where={where!r} names nothing; give a pattern, or None for the default")
    patterns = [where] if isinstance(where, str) else where
    if not isinstance(patterns, Sequence) or not all(isinstance(pattern, str) for pattern in patterns):
        raise UsageError(f"where={where!r} is neither a pattern (a str) nor a list of them")
    for pattern in patterns:
        try:
            hits = {name for name in names if re.fullmatch(pattern, name)}
        except re.error as error:
            raise UsageError(f"where={pattern!r} is no regular expression: {error}") from None
        if not hits:
            raise UsageError(f"where={pattern!r} matches no parameter; {_nearest(pattern, names)}")
        selected |= hits
    return [name for name in names if name in selected]


def _nearest(pattern: str, names: list[str], most: int = 3) -> str:
    if not names:
        return "the tree has no leaves left to choose from: it is empty, or they all belong to other links"
    plain = re.sub(r"[\\.^$*+?(){}\[\]|]+", "", pattern)
    scored = sorted(names, key=lambda name: -difflib.SequenceMatcher(None, plain, name).ratio())
    note = "" if len(names) <= most else f" (of {len(names)})"
    return f"nearest paths{note}: {', '.join(scored[:most])}. A pattern matches whole paths; '.*' is any part"


def first_match(rules: Sequence[tuple[Where, Any]], names: Iterable[str], default: Any = None) -> dict[str, Any]:
    """For each name the value of the first rule that selects it.

    Args:
        rules: ``(where, value)`` pairs; earlier ones win.
        names: paths.
        default: the value of names that no rule selects.

    Returns:
        dictionary name -> value, in the order of `names`.

    Raises:
        UsageError: a rule matches nothing.

    Example:
        >>> first_match([("head/.*", 1.0), (".*", 0.1)], ["head/kernel", "body/kernel"])
        {'head/kernel': 1.0, 'body/kernel': 0.1}
    """
    names, values = list(names), {}
    for where, value in rules:
        for name in match(where, names):
            values.setdefault(name, value)
    return {name: values.get(name, default) for name in names}


def map_paths(function: Callable[[str, Any], Any], tree: PyTree) -> PyTree:
    """`tree` with each leaf replaced by ``function(path, leaf)``.

    Example:
        >>> map_paths(lambda path, leaf: path, {"a": {"b": 0}})
        {'a': {'b': 'a/b'}}
    """
    return jax.tree_util.tree_map_with_path(lambda keys, leaf: function(path_of(keys), leaf), tree, is_leaf=is_weight)


def replace(tree: PyTree, leaves: Mapping[str, Any]) -> PyTree:
    """A copy of `tree` with the leaves at the given paths replaced; empty places (None) can be filled too.

    Args:
        tree: any pytree; it is not changed.
        leaves: path -> new leaf. None leaves an empty place.

    Returns:
        the new tree.

    Raises:
        UsageError: a path is not in the tree.

    Example:
        >>> replace({"a": 1, "b": None}, {"a": None, "b": 2})
        {'a': None, 'b': 2}
    """
    rest = dict(leaves)

    def new(keys, leaf):
        name = path_of(keys)
        return rest.pop(name) if name in rest else leaf

    result = jax.tree_util.tree_map_with_path(new, tree, is_leaf=lambda x: x is None or is_weight(x))
    if rest:
        known = [path_of(keys) for keys, _ in jax.tree_util.tree_flatten_with_path(tree, is_leaf=is_weight)[0]]
        raise UsageError(f"no parameter at {next(iter(rest))!r}; {_nearest(next(iter(rest)), known)}")
    return result


def nbytes(tree: PyTree) -> int:
    """Bytes that the arrays of `tree` hold (4-bit types at half a byte); works on shapes as well as on arrays.

    Example:
        >>> nbytes({"a": jax.ShapeDtypeStruct((3, 4), "bfloat16")})
        24
    """

    def of(leaf) -> int:
        if not hasattr(leaf, "dtype"):
            leaf = jax.eval_shape(jax.numpy.asarray, leaf)
        if jax.numpy.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.eval_shape(jax.random.key_data, leaf)
        return -(-math.prod(leaf.shape) * jax.dtypes.itemsize_bits(leaf.dtype) // 8)

    return sum(of(leaf) for leaf in jax.tree.leaves(tree))
