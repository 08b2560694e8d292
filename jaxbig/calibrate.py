"""`calibrate`: the moments of what each product is fed, measured by the program itself."""

import math
from collections.abc import Callable, Iterable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxbig.errors import UsageError
from jaxbig.lift import run
from jaxbig.lift.interpreter import Interpreter
from jaxbig.tree import PyTree
from jaxbig.usage import watched_leaves


class Moments(NamedTuple):
    """Sums over all rows x that met a weight's input axes; the uncentred second moment is ``square / count``.

    Attributes:
        count: number of rows; total: ``sum x``; square: ``sum x*x``; gram: ``sum x x^T`` over the flattened input
        axes, or None. Stacked weights have a leading axis per layer.
    """

    count: jax.Array
    total: jax.Array
    square: jax.Array
    gram: jax.Array | None


def calibrate(fn: Callable, params: PyTree, batches: Iterable[tuple], *, gram: bool = False) -> dict[str, Moments]:
    """The input moments of every product, over some batches; what EVA, GPTQ, Wanda and the like start from.

    The program itself returns them as extra results, through scan and remat too; nothing is hooked into the model.

    Args:
        fn: ``fn(params, *batch)``.
        params: arrays or Weights.
        batches: tuples of further arguments; all of the same shapes, or one compilation each.
        gram: also the Gram matrices, ``[..., in, in]``.

    Returns:
        path -> Moments, float32 (float64 where x is). Products inside ``while`` loops are not counted: the number of
        rounds is unknown to the compiler. A stack that the model slices by hand counts as one weight.

    Raises:
        UsageError: no batch was given, or one that is no tuple; a weight is multiplied along different axes; products
            inside `jax.shard_map`, whose rows lie on several devices.

    Example:
        >>> x = jnp.array([[1.0, 2.0], [3.0, 4.0]])
        >>> stats = calibrate(lambda p, x: x @ p["w"], {"w": jnp.ones((2, 3))}, [(x,)])
        >>> stats["w"].square.tolist()
        [10.0, 20.0]
    """

    met: dict[str, tuple[int, ...]] = {}

    def observe(view, kind, x, c, eqn):
        if kind != "product":
            return None
        axes = tuple(i - len(c.w) for i, label in enumerate(c.w) if label in c.x and label not in c.out)
        if met.setdefault(view.path, axes) != axes:
            raise UsageError(
                f"calibrate: {view.path} is multiplied along axes {met[view.path]} and along {axes}, whose moments do "
                "not add up; calibrate a function that uses it one way"
            )
        return _moments(x, c, gram)

    @jax.jit
    def step(params, batch):
        interpreter = Interpreter(observe=observe)
        run(fn, (watched_leaves(params), *batch), {}, interpreter)
        return interpreter.taps

    total = None
    for batch in batches:
        if not isinstance(batch, tuple | list):
            raise UsageError("calibrate: a batch is a tuple of the model's further arguments, such as (x,)")
        taps = step(params, tuple(batch))
        total = taps if total is None else jax.tree.map(jnp.add, total, taps)
    if total is None:
        raise UsageError("calibrate: no batches; pass at least one tuple of model inputs")
    return total


def _moments(x, c, gram: bool) -> Moments:
    """Moments of x over its rows: axes that are neither contracted nor shared with a stack of weights."""
    batch = [label for label in c.w if label in c.x and label in c.out]
    summed = [label for label in c.w if label in c.x and label not in c.out]
    rows = [label for label in c.x if label not in c.w]
    x = jnp.transpose(x, [c.x.index(label) for label in batch + rows + summed])
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    middle = tuple(range(len(batch), len(batch) + len(rows)))
    rows_met = math.prod(x.shape[i] for i in middle)
    count = jnp.full(x.shape[: len(batch)], rows_met, x.dtype)
    flat = x.reshape(*x.shape[: len(batch)], rows_met, -1)
    matrix = jnp.einsum("...ni,...nj->...ij", flat, flat) if gram else None
    return Moments(count, x.sum(middle), (x * x).sum(middle), matrix)
