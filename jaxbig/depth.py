"""Which layer a parameter belongs to, as rules for the optimiser: rates that fall with depth, layers that thaw in turn.

What a *layer* is, is read from the tree and the program:

1. Siblings whose names differ in a number alone (``layer_0``, ``layer_1``) are layers, whatever they hold; of nested
   ones the outermost count. This is the only thing that names are asked, as no program tells it.
2. A module whose arrays a scan takes apart (`jaxbig.usage.Use.layers`) is as many layers as its leading axis is long.
3. Of all else each module that holds arrays itself is a layer.

Their order is that of the program: of the first product, convolution or look-up of each. What has none of these (norms,
position tables, a last norm) goes with the layer before it, and look-ups that come before all else are one layer.
"""

import re
from typing import Any, NamedTuple

import numpy as np

from jaxbig.errors import UsageError
from jaxbig.tree import PyTree, Where, paths
from jaxbig.usage import Uses

Rule = tuple[Where, Any]
WEIGHTY = ("product", "conv", "lookup")


class _Layer(NamedTuple):
    paths: list[str]
    first: int  # place of its first product, convolution or look-up in the program, or of its first use
    kinds: set[str]
    shape: tuple[int, ...]  # of the stacked axes; () for one layer


def depths(uses: Uses, layer: str | None = None) -> dict[str, Any]:
    """The depth of each leaf of a model: 0 for the first layer of the program.

    Args:
        uses: of the model, see `jaxbig.usage.usage`.
        layer: regular expression; what it matches at the beginning of a path is the name of the leaf's layer. Leaves
            that it does not match go by their module. None: as the module's text says.

    Returns:
        path -> int, or for a stacked leaf int32 of the shape of its leading axes.

    Raises:
        UsageError: no leaf is used in a product, a convolution or a look-up.

    Example:
        >>> import flax.linen as nn, jax, jax.numpy as jnp
        >>> from jaxbig.usage import usage
        >>> model, x = nn.Sequential([nn.Dense(4), nn.LayerNorm(), nn.Dense(2)]), jnp.ones((1, 3))
        >>> params = model.init(jax.random.key(0), x)["params"]
        >>> found = depths(usage(lambda p, x: model.apply({"params": p}, x), params, x))
        >>> found["layers_0/kernel"], found["layers_1/scale"], found["layers_2/kernel"]
        (0, 0, 1)
    """
    layers = sorted(_found(uses, layer), key=lambda one: one.first)
    if not any(one.kinds & set(WEIGHTY) for one in layers):
        raise UsageError("depth: no leaf is multiplied, convolved or looked up; give the usage of the whole model")
    result: dict[str, Any] = {}
    depth, embedding = -1, True  # of the last layer so far, and whether there were only look-ups so far
    for one in layers:
        if not one.kinds & set(WEIGHTY):
            result |= dict.fromkeys(one.paths, max(depth, 0))
            continue
        joins = embedding and depth >= 0 and "lookup" in one.kinds
        embedding = embedding and "lookup" in one.kinds
        start = depth + (not joins)
        count = int(np.prod(one.shape))
        own = start + np.arange(count, dtype=np.int32).reshape(one.shape) if one.shape else start
        result |= dict.fromkeys(one.paths, own)
        depth = start + count - 1
    return {path: result[path] for path in uses}


def layerwise(train: PyTree, uses: Uses, decay: Any, layer: str | None = None) -> list[Rule]:
    """Learning-rate rules that fall from the last layer to the first: factor = decay ** (last - depth).

    Args:
        train: ``split.train``, of any technique; a leaf belongs to the model's leaf whose path its own contains.
        uses: of the model.
        decay: factor from one layer to the one before it; may be traced.
        layer: see `depths`.

    Returns:
        rules for `Optimizer(lr_rules=...)`; the factor of stacked leaves is an array, one number for each layer.

    Raises:
        UsageError: a leaf of `train` belongs to no leaf of the model, or is shared by several layers.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxbig.usage import usage
        >>> train = {"full": {"a": {"w": jnp.eye(2)}, "b": {"w": jnp.eye(2)}}}
        >>> uses = usage(lambda p, x: x @ p["b"]["w"] @ p["a"]["w"], train["full"], jnp.ones((1, 2)))
        >>> layerwise(train, uses, 0.5)
        [(('full/b/w',), 0.5), (('full/a/w',), 1.0)]

    Reference:
        Howard and Ruder (2018, ULMFiT), arXiv:1801.06146, with decay 1 / 2.6; Clark et al. (2020, ELECTRA),
        arXiv:2003.10555; Bao et al. (2021, BEiT), arXiv:2106.08254. Deviation: BEiT counts a last norm to the head.
    """
    groups, last = _by_depth(train, uses, layer)
    return [(patterns, decay ** (last - depth)) for patterns, depth in groups]


def gradual(train: PyTree, uses: Uses, every: Any, layer: str | None = None) -> list[Rule]:
    """Rules that thaw one layer more every so many steps, from the last to the first: step = every * (last - depth).

    Args:
        train, uses, layer: as for `layerwise`.
        every: steps from one layer to the one before it; may be traced.

    Returns:
        rules for `Optimizer(thaw=...)`.

    Raises:
        UsageError: as `layerwise`; or layers are stacked in one array, which thaws as a whole.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxbig.usage import usage
        >>> train = {"a": {"w": jnp.eye(2)}, "b": {"w": jnp.eye(2)}}
        >>> uses = usage(lambda p, x: x @ p["b"]["w"] @ p["a"]["w"], train, jnp.ones((1, 2)))
        >>> gradual(train, uses, every=100)
        [(('b/w',), 100), (('a/w',), 0)]

    Reference:
        Howard and Ruder (2018, ULMFiT), arXiv:1801.06146, with `every` an epoch.
    """
    groups, last = _by_depth(train, uses, layer)
    for patterns, depth in groups:
        if np.ndim(depth):
            raise UsageError(f"gradual: {patterns[0]} holds {np.size(depth)} layers in one array; unroll the layers")
    return [(patterns, every * (last - depth)) for patterns, depth in groups]


def _by_depth(train: PyTree, uses: Uses, layer: str | None) -> tuple[list[tuple[tuple[str, ...], Any]], int]:
    """Patterns of the leaves of each depth, the first layer first, and the last depth."""
    of_model, groups = depths(uses, layer), {}
    for path, leaf in paths(train).items():
        depth = of_model[_owner(path, of_model)]
        shape = np.shape(depth)
        if leaf.shape[: len(shape)] != shape:
            raise UsageError(f"depth: {path} of shape {leaf.shape} is shared by {np.size(depth)} layers; leave it out")
        groups.setdefault((int(np.min(depth)), shape), ([], depth))[0].append(re.escape(path))
    last = max(int(np.max(depth)) for depth in of_model.values())
    return [(tuple(patterns), depth) for _, (patterns, depth) in sorted(groups.items(), key=lambda item: item[0])], last


def _owner(path: str, of_model: dict[str, Any]) -> str:
    inside = [name for name in of_model if f"/{name}/" in f"/{path}/"]
    if not inside:
        raise UsageError(f"depth: {path} belongs to no leaf of the model; leave it out, and give it a rule of its own")
    return max(inside, key=len)


def _found(uses: Uses, layer: str | None) -> list[_Layer]:
    groups: dict[str, list[str]] = {}
    tree = _tree(uses)
    for path in uses:
        found = None if layer is None else re.match(layer, path)
        name = found[0] if found else _name_of(path, tree, uses) if layer is None else path.rpartition("/")[0] or path
        groups.setdefault(name, []).append(path)
    return [_layer(own, uses) for own in groups.values()]


def _layer(own: list[str], uses: Uses) -> _Layer:
    places = {path: place for place, path in enumerate(uses)}
    kinds = {path: {use.kind for use in uses[path]} for path in own}
    weighty = [path for path in own if kinds[path] & set(WEIGHTY)]
    return _Layer(own, min(places[path] for path in weighty or own), set().union(*kinds.values()), _stack(own, uses))


def _stack(own: list[str], uses: Uses) -> tuple[int, ...]:
    """The leading axes that all these leaves are stacked along, if they are."""
    shapes = {use.shape[: use.layers] for path in own for use in uses[path]}
    return shapes.pop() if len(shapes) == 1 else ()


def _tree(names: Any) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for name in names:
        node = tree
        for key in name.split("/"):
            node = node.setdefault(key, {})
    return tree


def _name_of(path: str, tree: dict[str, Any], uses: Uses) -> str:
    """The module that is this leaf's layer: the outermost that is numbered, stacked, or holds arrays itself."""
    keys, node = path.split("/"), tree
    for i, key in enumerate(keys):
        stems = [re.sub(r"\d+", "#", sibling) for sibling in node if node[sibling]]
        node = node[key]
        name = "/".join(keys[: i + 1])
        numbered = bool(node) and re.search(r"\d", key) and stems.count(re.sub(r"\d+", "#", key)) > 1
        if numbered or not node:
            return name
        if all(not child for child in node.values()) or _stack([p for p in uses if p.startswith(name + "/")], uses):
            return name
    return path
