"""Virtual tokens: positions before a sequence of ids that stand for no text, and go again before anyone sees them.

A technique that `Transform.wrap`s a model lengthens the ids by P and drops the first P positions of what comes out.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxbig.errors import UsageError
from jaxbig.lift import lift
from jaxbig.tree import path_of


class Virtual(NamedTuple):
    """How many virtual tokens there are, and which argument has the ids.

    Attributes:
        count: P.
        ids: the name of the ids in a mapping among the arguments (such as a batch) or among the keyword arguments, or
            their number among the positional ones, as a string; None: the only array of integers.
        fill: name (or number) of another array with the shape of the ids -> what stands in it at the virtual positions:
            ``{"attention_mask": 1, "label": -100}``.
    """

    count: int
    ids: str | None = None
    fill: Mapping[str, float] = {}

    def around(self, fn: Callable, dress: Callable[[Any, int], Any]) -> Callable:
        """A function of the same signature, with virtual tokens inside.

        Args:
            fn: ``(params, *args, **kwargs) -> result``: a model, or an objective.
            dress: ``(params, length) -> params`` for P + T positions, which may hold Weights: `fn` is lifted.

        Returns:
            the function. Ids [..., T] become [..., P + T], the new ones 0; of each array in the result that has P + T
            positions where the ids have them, the first P are dropped.

        Raises:
            UsageError: `fn` has virtual tokens already; when called, the ids are not found, or another array of their
                shape is not in `fill`.
        """
        if getattr(fn, "has_virtual_tokens", False):
            raise UsageError(
                "virtual tokens: another technique of this chain puts some in front of the text; give one of them more"
            )

        def run(params, *args, **kwargs):
            flat, structure = jax.tree_util.tree_flatten_with_path((args, kwargs))
            names = {i: _name(place) for i, (place, _) in enumerate(flat)}
            leaves = [leaf for _, leaf in flat]
            chosen = self._find(names, leaves)
            shape = leaves[chosen].shape
            for i, leaf in enumerate(leaves):
                if i == chosen:
                    leaves[i] = self._longer(leaf, 0, len(shape))
                elif names[i] in self.fill:
                    leaves[i] = self._longer(leaf, self.fill[names[i]], len(shape))
                elif len(shape) > 1 and _shape(leaf)[: len(shape)] == shape:
                    raise UsageError(
                        f"virtual tokens: {names[i]!r} has the shape {shape} of the ids; say what stands in it at the "
                        f"virtual positions, as in fill={{{names[i]!r}: 1}}"
                    )
            longer = (*shape[:-1], shape[-1] + self.count)
            args, kwargs = jax.tree_util.tree_unflatten(structure, leaves)
            result = lift(fn)(dress(params, longer[-1]), *args, **kwargs)
            return jax.tree.map(lambda leaf: self._shorter(leaf, longer), result)

        run.has_virtual_tokens = True
        return run

    def _find(self, names: Mapping[int, str], leaves: list[Any]) -> int:
        integers = [i for i, leaf in enumerate(leaves) if _shape(leaf) and jnp.issubdtype(leaf.dtype, jnp.integer)]
        found = integers if self.ids is None else [i for i in integers if names[i] == self.ids]
        if len(found) == 1:
            return found[0]
        known = ", ".join(repr(names[i]) for i in integers) or "none"
        wanted = "one array of integers" if self.ids is None else f"ids called {self.ids!r}"
        raise UsageError(
            f"virtual tokens: {wanted} among the arguments, not {len(found)}; say ids=, there are: {known}"
        )

    def _longer(self, array: Any, value: float, axes: int) -> Any:
        array = jnp.asarray(array)
        widths = [(0, 0)] * array.ndim
        widths[axes - 1] = (self.count, 0)
        return jnp.pad(array, widths, constant_values=value)

    def _shorter(self, leaf: Any, longer: tuple[int, ...]) -> Any:
        if _shape(leaf)[: len(longer)] != longer:
            return leaf
        return jax.lax.slice_in_dim(leaf, self.count, None, axis=len(longer) - 1)


def _shape(leaf: Any) -> tuple[int, ...]:
    """() for flags and names too."""
    return tuple(leaf.shape) if isinstance(leaf, jax.Array | np.ndarray) else ()


def _name(place: Any) -> str:
    """The key of a mapping, at the end of a place; or the number of a positional argument."""
    return path_of(place[-1:]) if len(place) > 2 or place[0].idx == 1 else path_of(place[1:])
