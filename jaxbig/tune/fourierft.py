"""FourierFT: a few coefficients of an update's spectrum."""

from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from jaxbig.adapter import adapter
from jaxbig.errors import UsageError
from jaxbig.matrix import Delta
from jaxbig.transform import Transform, key_for, technique
from jaxbig.weight import static

SHUFFLED = (2**32 - 1) // 20


class Spectral(Delta):
    """``base + scale * Re ifft2(F)``, F zero but at a few places.

    Attributes:
        spectrum: [*stack, n]; places: int32 [n], distinct indices into the flattened matrix I x O, of all layers;
            scale: a scalar; size: (I, O).
    """

    spectrum: Any = None
    places: Any = None
    scale: Any = None
    size: tuple[int, int] = static(default=(0, 0))
    PRIVATE: ClassVar[dict[str, int]] = {"spectrum": 1}
    SHARED: ClassVar[dict[str, int]] = {"places": 1, "scale": 0}

    def matrix(self):
        inputs, outputs = self.size
        dtype = jnp.promote_types(self.spectrum.dtype, jnp.float32)  # there is no transform of halves
        flat = jnp.zeros(inputs * outputs, dtype)
        full = flat.at[self.places].add(self.spectrum.astype(dtype), unique_indices=True, mode="promise_in_bounds")
        return (jnp.fft.ifft2(full.reshape(self.size)).real * self.scale).astype(self.spectrum.dtype)


@technique
def fourierft(
    frequencies: int = 1000, scale: float = 150.0, where: Any = None, zero: bool = False, seed: int = 777
) -> Transform:
    """Trains some coefficients of an update's discrete Fourier transform: ``W' = W + scale * Re ifft2(F)``.

    Args:
        frequencies: n, the number of coefficients of each layer.
        scale: of the update.
        where: the weights; None: every product and every ungrouped convolution except the model's head and tables.
        zero: begin with F = 0, so that the model is unchanged, bit for bit (up to the sign of zeros). False, the
            paper's way: normal coefficients, which change W by about ``scale sqrt(n) / (I O)``.
        seed: of the places, which are the same whatever key `init` is given, and those that PEFT draws from it.

    Returns:
        a Transform; ``train[path] = {"spectrum": [*stack, n]}``, float32 (float64 over a float64 base); the places are
        kept in ``state[path]``, one set for all layers of a stack.

    Raises:
        UsageError: fewer than one frequency, or more than a weight has entries; a selected leaf that is neither
            multiplied nor looked up.

    Cost: n parameters a layer. The update is formed, for one layer at a time and once more in the backward pass: a
    transform of I x O, and ``2 I O`` FLOPs a row; merged, nothing.

    Example:
        >>> from jaxbig.usage import usage
        >>> params, x = {"w": jnp.ones((12, 9))}, jnp.ones((2, 12))
        >>> uses = usage(lambda p, x: x @ p["w"], params, x)
        >>> fourierft(frequencies=7, where="w").init(jax.random.key(0), params, uses).train["w"]["spectrum"].shape
        (7,)

    Reference: Gao et al. 2024, arXiv:2405.03003. Deviations: a kernel [I, O] is transformed as it lies, where torch's
    lies as [O, I]: the same update, of transposed places; no bias towards low frequencies.

    Limit: over a mesh of CPU devices XLA refuses the sharded transform (jax 0.10).
    """
    if not isinstance(frequencies, int) or frequencies < 1:
        raise UsageError(f"fourierft: frequencies={frequencies!r}; it is a whole number of at least 1")

    def start(key, path, site):
        inputs, outputs = site.matrix
        if frequencies > inputs * outputs:
            raise UsageError(
                f"fourierft: {path} has {inputs * outputs} entries in a layer, fewer than frequencies={frequencies}; "
                "use fewer, or leave it out with where="
            )
        chosen = jnp.asarray(drawn(seed, inputs, outputs, frequencies))
        shape = (*site.stack, frequencies)
        spectrum = jnp.zeros(shape, site.dtype) if zero else jax.random.normal(key_for(key, path), shape, site.dtype)
        weight = Spectral(None, site.in_axes, site.out_axes, places=chosen, size=site.matrix)
        return {"spectrum": spectrum}, weight

    return adapter("fourierft", where, start, lambda state, path: {"scale": jnp.asarray(scale)})


def drawn(seed: int, inputs: int, outputs: int, count: int) -> np.ndarray:
    """`count` distinct places of a matrix [I, O], those that PEFT has for a seed: int32 [count].

    They are the first of torch's random order of all places of [O, I]: a shuffle by the Mersenne twister, which NumPy
    has too. A matrix of `SHUFFLED` entries or more torch shuffles otherwise: there they are not PEFT's.

    Args:
        seed: the lower 32 bits count.
        inputs, outputs: I, O.
        count: no more than I O.

    Returns:
        indices into the flattened matrix.

    Example:
        >>> drawn(777, inputs=4, outputs=3, count=3).tolist()
        [11, 10, 9]
    """
    total, moved, chosen = inputs * outputs, {}, np.empty(count, np.int64)
    random = np.random.RandomState(seed % 2**32).randint(0, 2**32, size=count, dtype=np.uint32)
    for i, number in enumerate(random.tolist()):
        j = i + number % (total - i)
        chosen[i], moved[j] = moved.get(j, j), moved.get(i, i)
    rows, columns = np.divmod(chosen, inputs)  # of [O, I]
    return (columns * outputs + rows).astype(np.int32)
