"""One base and many adapters: swapped without recompiling, summed with weights, or another one for each row of a batch.

A `Bank` holds what several parameter trees share once, and what differs stacked along an axis of adapters. Which is
which needs no telling: trees that `Transform.apply` made over one base hold the very same arrays where they agree.

Legend: N adapters, B rows of a batch.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer

from jaxbig.errors import UsageError
from jaxbig.lift import lift
from jaxbig.lowrank import LowRank
from jaxbig.tree import PyTree, map_paths, path_of, paths, replace
from jaxbig.weight import is_weight

Array = Any


@jax.tree_util.register_pytree_node_class
class Bank:
    """Several trees of one structure; `bank` makes it. A pytree: give it to jitted functions as an argument.

    Attributes:
        names: of the adapters, in order.
        shared: the arrays that all trees have in common, by their place in the flattened tree.
        own: the arrays that each tree has of its own, [N, ...], by their place.
        structure: of each tree.
    """

    def __init__(self, names: tuple[str, ...], shared: dict[int, Array], own: dict[int, Array], structure: Any):
        self.names, self.shared, self.own, self.structure = names, shared, own, structure

    def tree_flatten(self):
        return (self.shared, self.own), (self.names, self.structure)

    @classmethod
    def tree_unflatten(cls, rest, arrays):
        return cls(rest[0], arrays[0], arrays[1], rest[1])

    def pick(self, adapter: str | int | Array) -> PyTree:
        """The tree of one adapter, by its name or its number, which may be traced: swapping compiles nothing anew.

        Raises:
            UsageError: no adapter has that name or number.
        """
        number = self.number(adapter)
        return self._tree({i: leaf[number] for i, leaf in self.own.items()})

    def put(self, adapter: str | int | Array, tree: PyTree) -> "Bank":
        """The bank with another tree in the place of one: an adapter that arrives while others serve.

        Args:
            adapter: the name or number whose place it takes; the names stay.
            tree: over the same base; low-rank updates of fewer ranks than the bank's are padded with zeros.

        Raises:
            UsageError: the tree has another structure, another base, or more ranks than there is place for.
        """
        number, leaves, at = self.number(adapter), self._fitting(tree), paths_of(self.structure)
        for i, leaf in self.shared.items():
            if leaves[i] is not leaf and not isinstance(leaf, Tracer) and not jnp.array_equal(leaves[i], leaf):
                raise UsageError(f"bank: {at[i]} is shared by all adapters here, and another in this tree")
        own = {i: rows.at[number].set(leaves[i].astype(rows.dtype)) for i, rows in self.own.items()}
        return Bank(self.names, self.shared, own, self.structure)

    def blend(self, weights: Mapping[str, float] | Array) -> PyTree:
        """One tree with a weighted sum of the low-rank updates: W' = W + Σ_n w_n s_n A_n B_n.

        Args:
            weights: name -> weight (0 for the others), or N numbers, which may be traced: switching adapters off
                (weight 0 for all gives the base), on, or mixing them compiles nothing anew.

        Returns:
            a tree with `LowRank` weights of N times the rank.

        Raises:
            UsageError: an unknown name, another number of weights, or adapters that differ in more than low-rank
                updates, whose sum has no meaning.
        """
        shares = self._numbers(weights) if isinstance(weights, Mapping) else jnp.asarray(weights)
        if shares.shape != (len(self.names),):
            raise UsageError(f"bank: {shares.shape} weights for {len(self.names)} adapters; give one for each")
        stacked = jax.tree.unflatten(self.structure, [self.own.get(i, self.shared.get(i)) for i in range(len(self))])
        left, blended = set(self.own), {}
        for path, leaf in paths(stacked).items():
            if isinstance(leaf, LowRank):
                mine = {id(part) for part in (leaf.a, leaf.b, leaf.scale)}
                left -= {i for i, rows in self.own.items() if id(rows) in mine}
                blended[path] = _blended(leaf, shares)
        if left:
            raise UsageError(
                f"bank: {paths_of(self.structure)[min(left)]} differs from adapter to adapter and is no low-rank "
                "update: such adapters have no weighted sum; pick one, or merge them with jaxbig.combine"
            )
        return replace(stacked, blended)

    def number(self, adapter: str | int | Array) -> Any:
        """The number of an adapter."""
        if isinstance(adapter, str):
            if adapter not in self.names:
                raise UsageError(f"bank: no adapter is called {adapter!r}; there are {', '.join(self.names)}")
            return self.names.index(adapter)
        if isinstance(adapter, int) and not 0 <= adapter < len(self.names):
            raise UsageError(f"bank: no adapter {adapter}; there are {len(self.names)}, from 0 on")
        return adapter

    def __len__(self) -> int:
        return self.structure.num_leaves

    def _numbers(self, weights: Mapping[str, float]) -> Array:
        numbers = {self.number(name): weight for name, weight in weights.items()}
        return jnp.stack([jnp.asarray(numbers.get(i, 0.0), jnp.float32) for i in range(len(self.names))])

    def _fitting(self, tree: PyTree) -> list[Array]:
        ranks = {path: leaf.a.shape[-1] for path, leaf in paths(self.pick(0)).items() if isinstance(leaf, LowRank)}
        leaves, structure = jax.tree.flatten(_padded(tree, ranks))
        if structure != self.structure:
            raise UsageError(
                "bank: this tree has another structure than those of the bank; make it by the same technique"
            )
        for i, rows in self.own.items():
            if leaves[i].shape != rows.shape[1:]:
                at = paths_of(self.structure)[i]
                raise UsageError(f"bank: {at} is {leaves[i].shape}, and there is place for {rows.shape[1:]}")
        return leaves

    def _tree(self, own: Mapping[int, Array]) -> PyTree:
        return jax.tree.unflatten(self.structure, [own.get(i, self.shared.get(i)) for i in range(len(self))])


def bank(adapters: Mapping[str, PyTree]) -> Bank:
    """A bank of adapters over one base.

    Args:
        adapters: name -> the tree that its technique's ``apply(split)`` gave, without a key; all over one base, whose
            arrays are the very same objects in each. Any technique will do, also chains; ranks of low-rank updates may
            differ (the bank takes the largest, and pads the others with zeros, which change no product), and so may
            alpha.

    Returns:
        the bank; its bytes are the base's once, and N times those of the largest adapter.

    Raises:
        UsageError: no adapters, or trees of other structures (another technique, other leaves).

    Example:
        >>> from jaxbig.tune.lora import lora
        >>> from jaxbig.usage import usage
        >>> params, x = {"w": jnp.ones((4, 3))}, jnp.ones((2, 4))
        >>> fn = lambda p, x: x @ p["w"]
        >>> uses = usage(fn, params, x)
        >>> def adapter(rank, size):
        ...     split = lora(rank, where="w").init(jax.random.key(0), params, uses)
        ...     train = {"w": {"a": jnp.ones((4, rank)), "b": jnp.full((rank, 3), size)}}
        ...     return lora(rank, where="w").apply(split._replace(train=train))
        >>> both = bank({"small": adapter(1, 0.5), "large": adapter(2, 1.0)})
        >>> {i: rows.shape for i, rows in both.own.items()}, len(both.shared)
        ({1: (2, 4, 2), 2: (2, 2, 3), 3: (2,)}, 1)
        >>> mixed(fn)(both, jnp.array([1, 0]), x)[:, 0].tolist()
        [12.0, 6.0]
        >>> lift(fn)(both.blend({"small": 2.0, "large": 1.0}), x)[0, 0].item()
        16.0

    Reference: Sheng et al. 2023 (S-LoRA), arXiv:2311.03285; Chen et al. 2023 (Punica), arXiv:2310.18547.
    """
    if not adapters:
        raise UsageError("bank: no adapters; give a mapping of names to trees")
    ranks: dict[str, int] = {}
    for tree in adapters.values():
        for path, leaf in paths(tree).items():
            if isinstance(leaf, LowRank):
                ranks[path] = max(ranks.get(path, 1), leaf.a.shape[-1])
    flat = {name: jax.tree.flatten(_padded(tree, ranks)) for name, tree in adapters.items()}
    first = next(iter(adapters))
    for name, (_, structure) in flat.items():
        if structure != flat[first][1]:
            raise UsageError(f"bank: {name!r} has another structure than {first!r}; make both by the same technique")
    shared, own = {}, {}
    for i, leaves in enumerate(zip(*[leaves for leaves, _ in flat.values()], strict=True)):
        if all(leaf is leaves[0] for leaf in leaves):
            shared[i] = leaves[0]
        elif len({(leaf.shape, leaf.dtype) for leaf in leaves}) > 1:
            raise UsageError(
                f"bank: {paths_of(flat[first][1])[i]} has the shapes {', '.join(str(leaf.shape) for leaf in leaves)} "
                f"in {', '.join(adapters)}; only ranks may differ"
            )
        else:
            own[i] = jnp.stack(leaves)
    return Bank(tuple(adapters), shared, own, flat[first][1])


def mixed(fn: Callable) -> Callable:
    """A function whose rows are each computed with an adapter of their own.

    Args:
        fn: ``(params, *args) -> result``, rows (B) along the first axis of each array in `args` and in the result, and
            no row depending on another: a model in evaluation.

    Returns:
        function ``(bank, numbers, *args) -> result``, `numbers` [B] integers: the adapter of each row.

    Cost: the base's products are those of the whole batch, its arrays are read once; each row reads its own adapter's
    parts: B (in + out) r numbers for a low-rank update.

    Example: see `bank`.
    """

    def run(bank: Bank, numbers: Array, *args: Any) -> Any:
        def one(number, *row):
            result = lift(fn)(bank.pick(number), *jax.tree.map(lambda array: array[None], row))
            return jax.tree.map(lambda array: array[0], result)

        return jax.vmap(one)(jnp.asarray(numbers), *args)

    return run


def paths_of(structure: Any) -> list[str]:
    """The paths of a tree's arrays, those in Weights too."""
    places = jax.tree_util.tree_flatten_with_path(jax.tree.unflatten(structure, range(structure.num_leaves)))[0]
    return [path_of(place) for place, _ in places]


def _padded(tree: PyTree, ranks: Mapping[str, int]) -> PyTree:
    """Low-rank updates with zeros up to a rank."""

    def pad(path, leaf):
        if not isinstance(leaf, LowRank) or leaf.a.shape[-1] >= ranks.get(path, 0):
            return leaf
        more = ranks[path] - leaf.a.shape[-1]
        rank_axis = leaf.b.ndim - len(leaf.out_axes) - 1
        widths = [(0, more if i == rank_axis else 0) for i in range(leaf.b.ndim)]
        return leaf.replace(a=jnp.pad(leaf.a, [(0, 0)] * (leaf.a.ndim - 1) + [(0, more)]), b=jnp.pad(leaf.b, widths))

    return map_paths(pad, tree)


def _blended(leaf: LowRank, weights: Array) -> LowRank:
    """A LowRank whose parts may have a leading axis N of adapters, as one of N times the rank."""
    if is_weight(leaf.base) and isinstance(leaf.base, LowRank):
        raise UsageError("bank: low-rank updates on top of each other have no weighted sum here; pick one")
    n = len(weights)
    a = leaf.a if leaf.a.ndim == len(leaf.axes()["a"]) + 1 else jnp.broadcast_to(leaf.a, (n, *leaf.a.shape))
    b = leaf.b if leaf.b.ndim == len(leaf.axes()["b"]) + 1 else jnp.broadcast_to(leaf.b, (n, *leaf.b.shape))
    scale = (jnp.broadcast_to(leaf.scale, (n,)) * weights).astype(b.dtype)
    rank_axis = b.ndim - len(leaf.out_axes) - 2  # without the axis of adapters
    b = b * scale.reshape(n, *[1] * (b.ndim - 1))
    wide_a = jnp.concatenate(list(a), axis=-1)
    wide_b = jnp.concatenate(list(b), axis=rank_axis)
    return leaf.replace(a=wide_a, b=wide_b, scale=jnp.ones((), leaf.scale.dtype))
