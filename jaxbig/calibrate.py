"""`calibrate`: the moments of what each product is fed, measured by the program itself."""

import math
import warnings
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax.traceback_util import api_boundary

from jaxbig.errors import UsageError
from jaxbig.lift import run
from jaxbig.lift.interpreter import Interpreter
from jaxbig.tree import PyTree
from jaxbig.usage import watched_leaves


class Moments(NamedTuple):
    """Sums over all rows x that met a weight's input axes; the uncentred second moment is ``square / count``.

    Attributes:
        count: number of rows; total: ``sum x``; square: ``sum x*x``; gram: ``sum x x^T`` over the flattened input
        axes, or None. Stacked weights have a leading axis per layer. The rows of a convolution are its patches, one for
        each position of its result, padding included; their axes are the kernel's input axes in the kernel's order.
    """

    count: Any
    total: Any
    square: Any
    gram: Any


class NotMeasured(UserWarning):
    """`calibrate` has no moments for a leaf whose use may be a product that nothing recognises."""


@api_boundary
def calibrate(fn: Callable, params: PyTree, batches: Iterable[tuple], *, gram: bool = False) -> dict[str, Moments]:
    """The input moments of every product and convolution over some batches: what EVA, GPTQ, Wanda and others need.

    The program itself returns them as extra results, through scan and remat too; nothing is hooked into the model.

    Args:
        fn: ``fn(params, *batch)``.
        params: arrays or Weights.
        batches: tuples of further arguments; all of the same shapes, or one compilation each.
        gram: also the Gram matrices, ``[..., in, in]``.

    Returns:
        path -> Moments, NumPy arrays of float64: each batch is summed on the device in float32 (float64 where x is),
        batches are added up on the host. A stack that the model slices by hand counts as one weight. No moments have
        leaves that are only looked up or added, and those of a `NotMeasured` warning, which names the line: weights
        that are expanded to plain arrays, grouped convolutions, and products inside ``while`` loops, whose number of
        rounds is unknown to the compiler.

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
    seen: dict[str, str] = {}

    def observe(view, kind, x, c, eqn):
        if kind == "lookup" or (kind == "other" and not _may_be_multiplied(view, eqn)):
            return None
        name = eqn.primitive.name if eqn is not None else "the function's result"
        seen.setdefault(view.path, f"for `{name}` at {interpreters[-1].place()}")
        if kind == "other" or (kind == "conv" and c.groups != 1):
            return None
        axes = _input_axes(kind, c)
        if met.setdefault(view.path, axes) != axes:
            raise UsageError(
                f"calibrate: {view.path} is multiplied along axes {met[view.path]} and along {axes}, whose moments do "
                "not add up; calibrate a function that uses it one way"
            )
        return _moments(x, c, gram) if kind == "product" else _patches(x, c, view.weight.shape, gram)

    interpreters = []

    @jax.jit
    def step(params, batch):
        interpreters.append(Interpreter(observe=observe))
        run(fn, (watched_leaves(params), *batch), {}, interpreters[-1])
        return interpreters[-1].taps

    total = None
    for batch in batches:
        if not isinstance(batch, tuple | list):
            raise UsageError("calibrate: a batch is a tuple of the model's further arguments, such as (x,)")
        taps = jax.tree.map(lambda tap: np.asarray(tap, np.float64), step(params, tuple(batch)))
        total = taps if total is None else jax.tree.map(np.add, total, taps)
    if total is None:
        raise UsageError("calibrate: no batches; pass at least one tuple of model inputs")
    for path in seen.keys() - total.keys():
        message = f"calibrate: {path} is used {seen[path]}, where nothing is measured; it is not in the result"
        warnings.warn(message, NotMeasured, stacklevel=3)
    return total


def _may_be_multiplied(view, eqn) -> bool:
    """Whether what becomes of an expanded leaf may meet an activation in a product: all but vectors and addends."""
    if len(view.shape) < 2 or eqn is None:
        return False
    added = eqn.primitive.name in ("add", "sub", "add_any") and eqn.outvars[0].aval.shape != view.shape
    return not added and eqn.primitive.name != "concatenate"


def _input_axes(kind: str, c) -> tuple[int, ...]:
    summed = c.w.replace("o", "") if kind == "conv" else [label for label in c.w if label in c.x and label not in c.out]
    return tuple(c.w.index(label) - len(c.w) for label in summed)


def _patches(x, c, shape: tuple[int, ...], gram: bool) -> Moments:
    """Moments of what each position of a convolution's result is made of: its result with the identity as kernel."""
    channel, inner = c.w.index("o"), [n for n, label in zip(shape, c.w, strict=True) if label != "o"]
    n = math.prod(inner)
    identity = jnp.moveaxis(jnp.eye(n, dtype=x.dtype).reshape(*inner, n), -1, channel)
    rows = jnp.moveaxis(c.equation(x, identity), c.out.index("o"), -1).reshape(-1, n)
    rows = rows.astype(jnp.promote_types(rows.dtype, jnp.float32))
    total, square = rows.sum(0).reshape(inner), (rows * rows).sum(0).reshape(inner)
    return Moments(jnp.asarray(len(rows), rows.dtype), total, square, rows.T @ rows if gram else None)


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
