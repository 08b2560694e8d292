"""LoRA: low-rank adaptation of every kind of weight."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxbig.errors import UsageError
from jaxbig.lowrank import LowRank, by_path, check_rank, factors, scale_of
from jaxbig.site import sites
from jaxbig.transform import Split, Transform, key_for, technique
from jaxbig.tree import paths, replace
from jaxbig.weight import wide


@technique
def lora(
    rank: int | Mapping[str, int] = 8,
    alpha: float | Mapping[str, float] | None = None,
    where: Any = None,
    dropout: float = 0.0,
    uses: str = "all",
    stabilised: bool = False,
) -> Transform:
    """Trains a low-rank update of each selected weight: ``W' = W + (alpha / rank) * A @ B``.

    Args:
        rank: the rank r; or pattern -> rank, of which the first that matches a leaf's path holds for it.
        alpha: the numerator of the scale, or likewise pattern -> alpha; None: alpha = rank, a scale of 1.
        where: the weights; None: every product and every ungrouped convolution except the model's head and look-up
            tables, as `jaxbig.usage.usage` finds them.
        dropout: probability of dropping an input of A in training (only when `apply` is given a key).
        uses: "all": a tied table is adapted in its look-up and in its product; "lookup": in its look-up alone, which
            is what PEFT does; `where` None then means every table that is looked up.
        stabilised: the scale is ``alpha / sqrt(rank)`` (rsLoRA; without alpha ``sqrt(rank)``), which keeps the update's
            size the same whatever the rank.

    Returns:
        a Transform. ``train[path] = {"a": [*stack, *in, r], "b": [*stack, r, *out]}``, float32 (float64 over a float64
        base). `apply` gives a `LowRank` weight in the place of each selected leaf, array or Weight.

    Raises:
        UsageError: a selected leaf is neither multiplied nor looked up, or trained whole by an earlier link; a pattern
            matches none of the selected leaves, or a leaf none of the patterns.

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
        >>> mixed = lora(rank={".*/query/kernel": 16, ".*": 4}, stabilised=True)

    Reference: Hu et al. 2021, arXiv:2106.09685; Kalajdzievski 2023 (rsLoRA), arXiv:2312.03732. Deviations: A's init is
    PEFT's (the paper says Gaussian); kernels with several input or output axes and convolutions are factored between
    all inputs and all outputs; dropout draws one mask for each leaf, layer and call of `apply`, so that all uses of a
    shared weight in a step (a cell's time steps, both ends of a tied table) drop alike, where PEFT draws anew; look-ups
    drop nothing. Where a weight has to be expanded to a plain array (grouped convolutions) there is no input to drop:
    the update is whole, and the warning of the expansion says so. PEFT's patterns are searched for at the end of a
    name, and where none fits its one rank holds; ours match whole paths, and the last has to fit the rest.
    """
    if uses not in ("all", "lookup"):
        raise UsageError(f"lora: uses={uses!r}; it is 'all' or 'lookup'")
    check_rank("lora", rank)
    if isinstance(dropout, float | int) and not 0 <= dropout < 1:
        raise UsageError(f"lora: dropout={dropout}; it lies in [0, 1)")

    def init(key, params, known):
        train, state = {}, {}
        found = sites("lora", where, params, known, lookup=uses == "lookup")
        ranks = by_path("lora", "rank", rank, found)
        by_path("lora", "alpha", alpha, found)  # a mistake in it is told here, not at the first step
        for path, site in found.items():
            train[path] = factors(key_for(key, path), site, ranks[path])
            state[path] = LowRank(None, None, None, None, None, None, site.in_axes, site.out_axes, uses)
        return Split(params, train, state)

    def apply(split, key=None):
        alphas, rate = by_path("lora", "alpha", alpha, split.train), None if key is None else jnp.asarray(dropout)

        def adapted(path, leaf):
            low = split.state[path].replace(base=leaf, **split.train[path])
            scale = scale_of(low.a.shape[-1], alphas[path], stabilised)
            keys = None if key is None else _stacked_keys(key_for(key, path), low)
            return low.replace(scale=jnp.asarray(scale, wide(low.a.dtype)), key=keys, rate=rate)

        bases = paths(split.params)  # a later link that trains the base puts it under the update in its own turn
        return replace(split.params, {path: adapted(path, bases.get(path)) for path in split.train})

    return Transform("lora", init, apply if _may_drop(dropout) else lambda split, key=None: apply(split))


def _may_drop(dropout: Any) -> bool:
    return not isinstance(dropout, float | int) or dropout > 0


def _stacked_keys(key, low: LowRank):
    """A dropout key per layer of a stack."""
    stack = low.a.shape[: low.a.ndim - len(low.in_axes) - 1]
    return jax.random.split(key, stack) if stack else key
