"""Layers of one kind that follow each other: one after the other or in a scan, kept or recomputed.

Legend of the shape suffixes: B batch, T tokens, D width, L layers.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax

from jaxbig.models.family import LAYERS


def recomputed(layer: Callable[..., Any], remat: bool, scan_layers: bool) -> Callable[..., Any]:
    """The class of a layer, whose inside the backward pass computes again where `remat` says so.

    Args:
        layer: the class.
        remat: False: the class itself.
        scan_layers: whether it will be scanned.

    Example:
        >>> recomputed(nn.Dense, False, True) is nn.Dense
        True

    Reference:
        Chen et al. (2016), "Training deep nets with sublinear memory cost", arXiv:1604.06174.
    """
    # Inside a scan the loop itself keeps XLA from merging the two forward passes.
    return nn.remat(layer, prevent_cse=not scan_layers) if remat else layer


def scanned(body: Callable[[Any, Any, Any], tuple[Any, Any]], length: int) -> Callable[..., tuple[Any, Any]]:
    """A function ``(module, carry, inputs) -> (carry, outputs)`` that does `body` L times, with one module whose
    parameters have a first axis of length L; each step has its own share of them, of the inputs and of the dropout's
    key.

    Args:
        body: ``(module, carry, inputs) -> (carry, outputs)``, a step.
        length: L.
    """
    return nn.scan(
        body, variable_axes={"params": 0}, split_rngs={"params": True, "dropout": True}, length=length
    )  # fmt: skip


def run_layers(
    made: Callable[..., Callable[..., jax.Array]], layers: int, scan_layers: bool, x_BTD: jax.Array, *shared: Any
) -> jax.Array:
    """``x <- layer_i(x, *shared)`` for i = 0 ... L - 1, called inside a compact method.

    Args:
        made: ``name -> module``.
        layers: L.
        scan_layers: one module ``layers`` with stacked parameters, in a program of the size of one layer, in place of
            ``layer_0``, ``layer_1``, ...
        x_BTD: the input.
        shared: what every layer is given beside it, such as a mask.

    Returns:
        array [B, T, D].

    Example:
        >>> class Twice(nn.Module):
        ...     scan_layers: bool
        ...     @nn.compact
        ...     def __call__(self, x):
        ...         return run_layers(lambda name: nn.Dense(3, name=name), 2, self.scan_layers, x)
        >>> for scan in (False, True):
        ...     shapes = jax.eval_shape(Twice(scan).init, jax.random.key(0), jax.numpy.ones((1, 2, 3)))
        ...     print({name: its["kernel"].shape for name, its in sorted(shapes["params"].items())})
        {'layer_0': (3, 3), 'layer_1': (3, 3)}
        {'layers': (2, 3, 3)}
    """
    if scan_layers:
        loop = scanned(lambda module, x_BTD, _: (module(x_BTD, *shared), None), layers)
        return loop(made(name=LAYERS), x_BTD, None)[0]
    for number in range(layers):
        x_BTD = made(name=f"layer_{number}")(x_BTD, *shared)
    return x_BTD
