"""IA3: one trained factor for each channel."""

from typing import Any

import jax.numpy as jnp

from jaxbig.adapter import adapter
from jaxbig.errors import UsageError
from jaxbig.matrix import Diagonal
from jaxbig.transform import Transform, technique


@technique
def ia3(where: Any = None, side: str = "out") -> Transform:
    """Trains a factor for each channel of the selected weights: ``W' = W diag(l)``, or ``diag(l) W``; l = 1 at first.

    Args:
        where: the weights; None: every product and every ungrouped convolution except the model's head and tables.
        side: "out": the factors scale what a weight makes (the paper's keys and values); "in": what it is given (its
            feed-forward's inner activations: the weight that reads them). Both: ``partition`` with one of each.

    Returns:
        a Transform; ``train[path] = {"gain": [*stack, O]}`` (I for "in"), float32 (float64 over a float64 base).

    Raises:
        UsageError: another `side`; a selected leaf that is neither multiplied nor looked up.

    Cost: a parameter and a multiplication a channel.

    Example:
        >>> from jaxbig.usage import usage
        >>> params, x = {"w": jnp.ones((4, 3))}, jnp.ones((2, 4))
        >>> uses = usage(lambda p, x: x @ p["w"], params, x)
        >>> ia3(where="w").init(None, params, uses).train["w"]["gain"].shape
        (3,)

    Reference: Liu et al. 2022, arXiv:2205.05638. Deviations: the paper scales keys, values and the feed-forward's inner
    activations; nothing in a program says which these are, so None takes every weight: name them with `where`. A bias
    that follows is not scaled (T5, the paper's model, has none; PEFT scales it). The paper's losses and its pretraining
    of l are not here.
    """
    if side not in ("in", "out"):
        raise UsageError(f"ia3: side={side!r}; it is 'in' or 'out'")

    def start(key, path, site):
        count = site.matrix[side == "out"]
        return {"gain": jnp.ones((*site.stack, count), site.dtype)}, Diagonal(
            None, site.in_axes, site.out_axes, side, None
        )

    return adapter("ia3", where, start)
