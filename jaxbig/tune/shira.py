"""SHiRA: a few entries of each weight."""

from typing import Any, ClassVar

import jax.numpy as jnp

from jaxbig.adapter import adapter
from jaxbig.errors import UsageError
from jaxbig.matrix import Delta, places
from jaxbig.transform import Transform, key_for, technique
from jaxbig.weight import static


class Scattered(Delta):
    """``base + scale * values at places``.

    Attributes:
        values: [*stack, n]; places: int32 [*stack, n], distinct indices into the flattened matrix I x O; scale: a
            scalar; size: (I, O).
    """

    values: Any = None
    places: Any = None
    scale: Any = None
    size: tuple[int, int] = static(default=(0, 0))
    PRIVATE: ClassVar[dict[str, int]] = {"values": 1, "places": 1}
    SHARED: ClassVar[dict[str, int]] = {"scale": 0}

    def matrix(self):
        inputs, outputs = self.size
        flat = jnp.zeros(inputs * outputs, self.values.dtype)
        added = flat.at[self.places].add(self.values, unique_indices=True, mode="promise_in_bounds")
        return added.reshape(self.size) * self.scale


@technique
def shira(rank: int = 32, where: Any = None, scale: float = 1.0) -> Transform:
    """Trains few entries of each selected weight: ``W'_ij = W_ij + scale * v_ij`` at ``r (I + O)`` random places.

    Args:
        rank: r: as many entries as a LoRA of that rank has parameters.
        where: the weights; None: every product and every ungrouped convolution except the model's head and tables.
        scale: of the update; a number to turn the adapter down by at run time.

    Returns:
        a Transform; ``train[path] = {"values": [*stack, n]}``, float32 (float64 over a float64 base); their places are
        kept in ``state[path]``.

    Raises:
        UsageError: a `rank` below 1, or one that asks for more entries than a weight has; a selected leaf that is
            neither multiplied nor looked up.

    Init: zero: the model is unchanged, bit for bit (up to the sign of zeros). Places at random, distinct.

    Cost: ``r (I + O)`` parameters a layer. The update is formed, for one layer at a time and once more in the backward
    pass, and costs ``2 I O`` FLOPs a row; merged, nothing.

    Example:
        >>> import jax
        >>> from jaxbig.usage import usage
        >>> params, x = {"w": jnp.ones((12, 9))}, jnp.ones((2, 12))
        >>> uses = usage(lambda p, x: x @ p["w"], params, x)
        >>> shira(rank=1, where="w").init(jax.random.key(0), params, uses).train["w"]["values"].shape
        (21,)

    Reference: Bhardwaj et al. 2024, arXiv:2406.13175. Deviation: of its masks the random one (SHiRA-Rand), which PEFT
    has too.

    Limit: over a mesh the update of a layer, of W's size, is gathered.
    """
    if not isinstance(rank, int) or rank < 1:
        raise UsageError(f"shira: rank={rank!r}; it is a whole number of at least 1")

    def start(key, path, site):
        inputs, outputs = site.matrix
        count = rank * (inputs + outputs)
        if count > inputs * outputs:
            raise UsageError(
                f"shira: {path} has {inputs * outputs} entries in a layer, and rank={rank} asks for {count}; use a "
                "smaller rank, or leave it out with where="
            )
        chosen = places(key_for(key, path), site.stack, inputs * outputs, count)
        weight = Scattered(None, site.in_axes, site.out_axes, places=chosen, size=site.matrix)
        return {"values": jnp.zeros((*site.stack, count), site.dtype)}, weight

    return adapter("shira", where, start, lambda state, path: {"scale": jnp.asarray(scale)})
