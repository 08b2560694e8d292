"""`Shifted`: a weight and what is added to each of its blocks, as formats store that have a scale and a minimum."""

from typing import Any

import jax.numpy as jnp

from jaxbig.codes import by_group
from jaxbig.weight import Weight, aligned, cast, materialise, wide


class Shifted(Weight):
    """``base + shift``, the shift one for each block.

    Attributes:
        base: floating, an array or a Weight such as `Quantized`.
        shift: float32, of the base's rank; 1 along an axis broadcasts, a divisor of its length means groups.

    A `Quantized` by itself has a whole number as its zero point, so its values are multiples of the scale; with a shift
    around it they may lie anywhere. A product expands the weight in place, and again for the backward pass.

    Example:
        >>> weight = Shifted(jnp.zeros((4, 1)), jnp.array([[0.5], [2.0]]))
        >>> weight.materialise()[:, 0].tolist()
        [0.5, 0.5, 2.0, 2.0]
    """

    base: Any
    shift: Any

    def axes(self):
        return {"base": aligned(self.base), "shift": aligned(self.shift)}

    def cast(self, dtype):
        return self.replace(base=cast(self.base, dtype))  # the shift stays whole, as a scale of codes does

    def materialise(self):
        dtype = wide(self.dtype)
        return by_group(materialise(cast(self.base, dtype)), self.shift.astype(dtype), jnp.add).astype(self.dtype)
