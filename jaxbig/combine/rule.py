"""How several differences become one: the steps that task arithmetic, TIES and DARE are made of."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax

from jaxbig.combine.signs import agreed_mean, elect
from jaxbig.combine.sparsify import drop, trim
from jaxbig.errors import UsageError
from jaxbig.tree import PyTree


class Rule(NamedTuple):
    """Sparsify each vector, then add them up, or elect signs and take the mean of those that agree.

    ========================  =====================================
    linear, task arithmetic   ``Rule()``
    magnitude prune           ``Rule("largest", density)``
    TIES                      ``Rule("largest", density, "total")``
    DARE                      ``Rule("random", density)``
    DARE with TIES            ``Rule("random", density, "total")``
    ========================  =====================================

    Attributes:
        keep: "all" entries; the "largest"; some at "random", scaled up.
        density: the share kept.
        signs: None: a weighted sum; "total" or "frequency": signs are elected so before the weights are multiplied, and
            the weighted vectors that agree are averaged.

    Example:
        >>> import jax.numpy as jnp
        >>> Rule("largest", 0.5, "total")([jnp.array([3.0, 1.0]), jnp.array([5.0, -2.0])], [1, 1]).tolist()
        [4.0, 0.0]
    """

    keep: str = "all"
    density: float = 1.0
    signs: str | None = None

    def __call__(self, vectors: Sequence[PyTree], weights: Sequence[float], key: Any = None, stack: int = 0) -> PyTree:
        """Trees of arrays of one structure, and a number for each -> one tree.

        Args:
            vectors: arrays, or trees of arrays; of a tree all entries are ranked together.
            weights: a number for each.
            key: for ``keep="random"``.
            stack: number of leading axes of layers, each of which is ranked by itself.
        """
        kept = [self.sparse(vector, key, i, stack) for i, vector in enumerate(vectors)]

        def joined(*leaves):
            if self.signs is None:
                return sum(leaf * weight for leaf, weight in zip(leaves, weights, strict=True))
            return agreed_mean(leaves, weights, elect(leaves, self.signs))

        return jax.tree.map(joined, *kept)

    def sparse(self, vector: PyTree, key: Any, i: int, stack: int) -> PyTree:
        """The i-th vector with only the entries that it keeps."""
        if self.keep == "all":
            return vector
        if self.keep == "random":
            return drop(None if key is None else jax.random.fold_in(key, i), vector, self.density)
        if self.keep != "largest":
            raise UsageError(f"combine: keep={self.keep!r}; it is 'all', 'largest' or 'random'")
        one = lambda vector: trim(vector, self.density)  # noqa: E731
        for _ in range(stack):
            one = jax.vmap(one)
        return one(vector)


LINEAR = Rule()
