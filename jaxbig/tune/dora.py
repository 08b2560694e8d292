"""DoRA: a low-rank update of directions, and a trained length for each output."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxbig.adapter import adapter
from jaxbig.contraction import Contraction, contract
from jaxbig.errors import UsageError
from jaxbig.lowrank import LowRank, factors
from jaxbig.matrix import Diagonal
from jaxbig.transform import Transform, key_for, technique
from jaxbig.weight import Weight, materialise, product, static, wide


class Lengthened(Weight):
    """``V diag(m / |V|)`` with ``V = base + scale * a b`` and |V| the norms of its outputs' columns.

    Attributes:
        base: an array or a Weight.
        a: [*stack, *in, r]; b: [*stack, r, *out]; scale: a scalar.
        magnitude: m [*stack, *out]; lengths: [*stack, *out], the norms of the base's columns.
        in_axes, out_axes: logical axes, counted from the right; the rest is the stack.
    """

    base: Any
    a: Any
    b: Any
    scale: Any
    magnitude: Any
    lengths: Any
    in_axes: tuple[int, ...] = static()
    out_axes: tuple[int, ...] = static()

    @property
    def low(self) -> LowRank:
        """V."""
        return LowRank(self.base, self.a, self.b, self.scale, None, None, self.in_axes, self.out_axes)

    def stack_axes(self):
        return tuple(i for i in range(-self.ndim, 0) if i not in self.in_axes + self.out_axes)

    def axes(self):
        outputs = (*self.stack_axes(), *self.out_axes)
        return {**self.low.axes(), "magnitude": outputs, "lengths": outputs}

    def norms(self):
        """|V| = sqrt(|W|^2 + 2 s <W, A B> + s^2 |A B|^2) [*stack, *out]; neither V nor A B is formed."""
        letters = "abcdefghijklmnopqrstuvw"[: self.ndim]
        name = lambda axes: "".join("z" if i is None else letters[i] for i in axes)  # noqa: E731
        of, stack = self.axes(), name(self.stack_axes())
        a, b, outputs = name(of["a"]), name(of["b"]), name(of["magnitude"])
        dtype = wide(self.a.dtype)
        down, up = self.a.astype(dtype), self.b.astype(dtype) * self.scale.astype(dtype)
        plain = lambda x, w: contract(x, a, w.astype(dtype), letters, outputs + "z")  # noqa: E731
        against = product(self.base, down, Contraction(a, letters, outputs + "z", plain))
        if against is NotImplemented:
            against = plain(down, materialise(self.base))
        gram = jnp.einsum(f"{a},{a.replace('z', 'y')}->{stack}zy", down, down)
        inner = jnp.einsum(f"{outputs}z,{b}->{outputs}", against, up)
        own = jnp.einsum(f"{stack}zy,{b},{b.replace('z', 'y')}->{outputs}", gram, up, up)
        w, more = self.lengths.astype(dtype), 2 * inner + own
        # Relative to |W|, so that it is |W| to the bit where A B is zero.
        return jnp.where(w > 0, w * jnp.sqrt(1 + more / jnp.where(w > 0, w, 1) ** 2), jnp.sqrt(jnp.maximum(more, 0)))

    def as_diagonal(self) -> Diagonal:
        """V with the factors m / |V| of its outputs, 1 where V is zero; no gradient goes through the norm."""
        norms = lax.stop_gradient(self.norms())
        gain = jnp.where(norms > 0, self.magnitude / jnp.where(norms > 0, norms, 1), 1)
        return Diagonal(
            self.low, self.in_axes, self.out_axes, "out", gain.reshape(*gain.shape[: len(self.stack_axes())], -1)
        )

    def materialise(self):
        return self.as_diagonal().materialise()

    def product(self, x, c):
        return self.as_diagonal().product(x, c)

    def conv(self, x, c):
        return self.as_diagonal().conv(x, c)

    def lookup(self, ids, axis):
        return self.as_diagonal().lookup(ids, axis)


@technique
def dora(rank: int = 8, alpha: float | None = None, where: Any = None) -> Transform:
    """Trains lengths and directions apart: ``W' = V diag(m / |V|)``, ``V = W + (alpha / rank) A B``, |V| by columns.

    Args:
        rank, alpha: as in `jaxbig.lora`; alpha None: a scale of 1.
        where: the weights; None: every product and every ungrouped convolution except the model's head and tables.

    Returns:
        a Transform; ``train[path] = {"a": [*stack, *in, r], "b": [*stack, r, *out], "magnitude": [*stack, *out]}``,
        float32 (float64 over a float64 base); ``state[path]`` holds the norms of W's columns.

    Raises:
        UsageError: a `rank` below 1; a selected leaf that is neither multiplied nor looked up.

    Init: A and B as LoRA's, m = |W|: the model is unchanged, bit for bit (up to the sign of zeros).

    Cost: ``r (I + O) + O`` parameters a layer; beside LoRA's FLOPs ``2 r I O + 2 r^2 (I + O)`` a call for the norm, by
    ``|V|^2 = |W|^2 + 2 s <W, A B> + s^2 |A B|^2``: V is not formed (PEFT forms it in every step).

    Example:
        >>> import jax
        >>> from jaxbig.usage import usage
        >>> params, x = {"w": jnp.ones((4, 3))}, jnp.ones((2, 4))
        >>> uses = usage(lambda p, x: x @ p["w"], params, x)
        >>> split = dora(rank=2, where="w").init(jax.random.key(0), params, uses)
        >>> split.train["w"]["magnitude"].tolist()
        [2.0, 2.0, 2.0]

    Reference: Liu et al. 2024, arXiv:2402.09353; no gradient goes through the norm (its section 4.3). Deviations: no
    dropout. |W| is that of W at init: where a later link trains W too, the norm is that of another V.
    """
    if not isinstance(rank, int | np.integer) or rank < 1:
        raise UsageError(f"dora: rank={rank!r}; it is a whole number of at least 1")

    def start(key, path, site):
        train = factors(key_for(key, path), site, rank)
        w = materialise(site.leaf).astype(site.dtype)
        lengths = jnp.sqrt((w**2).sum([axis + w.ndim for axis in site.in_axes]))
        weight = Lengthened(None, None, None, None, None, lengths, site.in_axes, site.out_axes)
        return train | {"magnitude": jnp.array(lengths, copy=True)}, weight

    return adapter(
        "dora", where, start, lambda state, path: {"scale": jnp.asarray(1.0 if alpha is None else alpha / rank)}
    )
