"""LoRA: low-rank adaptation of every kind of weight."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxbig.errors import UsageError
from jaxbig.lowrank import LowRank, factors
from jaxbig.site import sites
from jaxbig.transform import Split, Transform, key_for, technique
from jaxbig.tree import paths, replace


@technique
def lora(rank: int = 8, alpha: float | None = None, where: Any = None, dropout: float = 0.0, uses: str = "all"):
    """Trains a low-rank update of each selected weight: ``W' = W + (alpha / rank) * A @ B``.

    Args:
        rank: the rank r.
        alpha: the numerator of the scale; None: alpha = rank, a scale of 1.
        where: the weights; None: every product and every ungrouped convolution except the model's head and look-up
            tables, as `jaxbig.usage.usage` finds them.
        dropout: probability of dropping an input of A in training (only when `apply` is given a key).
        uses: "all": a tied table is adapted in its look-up and in its product; "lookup": in its look-up alone, which
            is what PEFT does; `where` None then means every table that is looked up.

    Returns:
        a Transform. ``train[path] = {"a": [*stack, *in, r], "b": [*stack, r, *out]}``, float32 (float64 over a float64
        base). `apply` gives a `LowRank` weight in the place of each selected leaf, array or Weight.

    Raises:
        UsageError: a selected leaf is neither multiplied nor looked up, or trained whole by an earlier link.

    Init: A uniform in ``+-1/sqrt(fan_in)``, B zero (for look-up tables A zero, B normal): the model is unchanged, bit
    for bit (one that multiplies its own weights by a number: to rounding), up to the sign of zeros: -0.0 + 0.0 is 0.0.

    Cost: ``r * (in + out)`` parameters a layer; forward ``2 r (in + out)`` FLOPs a row; nothing of the size of W is
    ever formed.

    Example:
        >>> from jaxbig.usage import usage
        >>> params, x = {"w": jnp.ones((4, 3))}, jnp.ones((2, 4))
        >>> uses = usage(lambda p, x: jnp.tanh(x @ p["w"]), params, x)
        >>> split = lora(rank=2, where="w").init(jax.random.key(0), params, uses)
        >>> jax.tree.map(jnp.shape, split.train)
        {'w': {'a': (4, 2), 'b': (2, 3)}}

    Reference: Hu et al. 2021, arXiv:2106.09685. Deviations: A's init is PEFT's (the paper says Gaussian); kernels with
    several input or output axes and convolutions are factored between all inputs and all outputs; dropout draws one
    mask for each leaf, layer and call of `apply`, so that all uses of a shared weight in a step (a cell's time
    steps, both ends of a tied table) drop alike, where PEFT draws anew; look-ups drop nothing. Where a weight has to be
    expanded to a plain array (grouped convolutions) there is no input to drop: the update is whole, and the warning of
    the expansion says so.
    """
    if uses not in ("all", "lookup"):
        raise UsageError(f"lora: uses={uses!r}; it is 'all' or 'lookup'")
    if not isinstance(rank, int | np.integer) or rank < 1:
        raise UsageError(f"lora: rank={rank!r}; it is a whole number of at least 1")
    if isinstance(dropout, float | int) and not 0 <= dropout < 1:
        raise UsageError(f"lora: dropout={dropout}; it lies in [0, 1)")

    def init(key, params, known):
        train, state = {}, {}
        for path, site in sites("lora", where, params, known, lookup=uses == "lookup").items():
            train[path] = factors(key_for(key, path), site, rank)
            state[path] = LowRank(None, None, None, None, None, None, site.in_axes, site.out_axes, uses)
        return Split(params, train, state)

    def apply(split, key=None):
        scale, rate = 1.0 if alpha is None else alpha / rank, None if key is None else jnp.asarray(dropout)

        def adapted(path, leaf):
            low = split.state[path].replace(base=leaf, **split.train[path])
            keys = None if key is None else _stacked_keys(key_for(key, path), low)
            return low.replace(scale=jnp.asarray(scale, low.a.dtype), key=keys, rate=rate)

        bases = paths(split.params)  # a later link that trains the base puts it under the update in its own turn
        return replace(split.params, {path: adapted(path, bases.get(path)) for path in split.train})

    return Transform("lora", init, apply if _may_drop(dropout) else lambda split, key=None: apply(split))


def _may_drop(dropout: Any) -> bool:
    return not isinstance(dropout, float | int) or dropout > 0


def _stacked_keys(key, low: LowRank):
    """A dropout key per layer of a stack."""
    stack = low.a.shape[: low.a.ndim - len(low.in_axes) - 1]
    return jax.random.split(key, stack) if stack else key
