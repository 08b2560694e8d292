"""Where adapters go: which leaves, and which of their axes are inputs, read from how the model uses them."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from jaxbig.errors import UsageError
from jaxbig.transform import selected
from jaxbig.usage import Use
from jaxbig.weight import wide

_MEETS = ("lookup", "product", "conv")


class Site(NamedTuple):
    """A leaf seen as a matrix [*stack, I, O]: I inputs, O outputs, and one such matrix for each of a stack of layers.

    Attributes:
        leaf: an array or a Weight.
        use: what says which axes are inputs: its look-up, else its first product or convolution.
    """

    leaf: Any
    use: Use

    @property
    def in_axes(self) -> tuple[int, ...]:
        return self.use.in_axes

    @property
    def out_axes(self) -> tuple[int, ...]:
        return self.use.out_axes

    @property
    def stack(self) -> tuple[int, ...]:
        """Lengths of the axes that are neither inputs nor outputs: layers, heads, experts."""
        n = len(self.leaf.shape)
        return tuple(self.leaf.shape[i] for i in range(-n, 0) if i not in self.in_axes + self.out_axes)

    @property
    def inputs(self) -> tuple[int, ...]:
        """Lengths of the input axes; their product is I."""
        return tuple(self.leaf.shape[i] for i in self.in_axes)

    @property
    def outputs(self) -> tuple[int, ...]:
        """Lengths of the output axes; their product is O."""
        return tuple(self.leaf.shape[i] for i in self.out_axes)

    @property
    def matrix(self) -> tuple[int, int]:
        """(I, O)."""
        return math.prod(self.inputs), math.prod(self.outputs)

    @property
    def dtype(self) -> Any:
        """Of what is trained here: float32, or float64 over a float64 base."""
        return wide(self.leaf.dtype)


def sites(name: str, where: Any, params: Any, uses: Mapping[str, Any], lookup: bool = False) -> dict[str, Site]:
    """The leaves that a technique adapts.

    Args:
        name: of the technique, for its errors.
        where: a pattern, several, or None: every product and every ungrouped convolution except the model's head and
            tables that are looked up.
        params: the tree the technique was given.
        uses: what `jaxbig.usage.usage` says of the model.
        lookup: None means every table that is looked up instead, and whatever `where` names has to be one.

    Returns:
        path -> `Site`.

    Raises:
        UsageError: nothing is selected, or a selected leaf is neither multiplied nor looked up.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxbig.usage import usage
        >>> params, x = {"w": jnp.ones((4, 3)), "b": jnp.ones(3)}, jnp.ones((2, 4))
        >>> uses = usage(lambda p, x: jnp.tanh(x @ p["w"] + p["b"]), params, x)
        >>> {path: site.matrix for path, site in sites("mine", "w", params, uses).items()}
        {'w': (4, 3)}
    """
    default = _looked_up if lookup else _multiplied
    chosen = selected(where, params, lambda path, leaf: default(uses.get(path, ())), uses)
    found = {}
    for path, leaf in chosen.items():
        meetings = [use for use in uses.get(path, ()) if use.kind in _MEETS]
        if not meetings:
            raise UsageError(
                f"{name}: {path} is neither multiplied nor looked up by the model; choose other leaves with where="
            )
        found[path] = Site(leaf, min(meetings, key=lambda use: use.kind != "lookup"))
        if lookup and found[path].use.kind != "lookup":
            raise UsageError(f"{name}: {path} is never looked up; choose other leaves with where=")
    return found


def _multiplied(uses: tuple[Use, ...]) -> bool:
    adapted = any(use.kind in ("product", "conv") and use.groups == 1 for use in uses)
    return adapted and not any(use.kind == "lookup" or use.head for use in uses)


def _looked_up(uses: tuple[Use, ...]) -> bool:
    return any(use.kind == "lookup" for use in uses)
