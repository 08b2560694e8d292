"""Floating-point operations of a program's products, counted from its trace: nothing is compiled or allocated."""

import math
from collections.abc import Callable
from typing import Any

import jax


def flops(fn: Callable, *args: Any, **kwargs: Any) -> int:
    """FLOPs of every product and convolution of ``fn(*args, **kwargs)``, a multiply-add as 2.

    A product [M, K] x [K, N] is 2 M K N, whatever else the program does; loops over layers count every round (XLA's own
    estimate counts a loop's body once), recomputation under remat counts again, of a `cond` the dearest branch counts.

    Args:
        fn: traceable.
        *args, **kwargs: arrays or `jax.ShapeDtypeStruct`; trees of them.

    Returns:
        the number. Rounds of a ``while`` whose number is not known to the compiler count once.

    Example:
        >>> x = jax.ShapeDtypeStruct((8, 64), "float32")
        >>> w = jax.ShapeDtypeStruct((3, 64, 64), "float32")
        >>> fn = lambda x, w: jax.lax.scan(lambda x, w: (x @ w, None), x, w)[0].sum()
        >>> flops(fn, x, w) == 3 * 2 * 8 * 64 * 64
        True
        >>> flops(jax.grad(fn, argnums=(0, 1)), x, w) == 3 * flops(fn, x, w)
        True
    """
    return _of(jax.make_jaxpr(fn)(*args, **kwargs).jaxpr)


def _of(jaxpr: Any) -> int:
    # What no result needs is not computed: XLA drops it, and so does this.
    needed = {id(v) for v in jaxpr.outvars}
    total = 0
    for eqn in reversed(jaxpr.eqns):
        if not eqn.effects and not any(id(v) in needed for v in eqn.outvars):
            continue
        needed |= {id(v) for v in eqn.invars}
        total += _equation(eqn)
    return total


def _equation(eqn: Any) -> int:
    name, p = eqn.primitive.name, eqn.params
    if name == "dot_general":
        (summed, _), _ = p["dimension_numbers"]
        return 2 * eqn.outvars[0].aval.size * math.prod(eqn.invars[0].aval.shape[i] for i in summed)
    if name == "conv_general_dilated":
        kernel, out = eqn.invars[1].aval, p["dimension_numbers"].rhs_spec[0]
        # Each result is a sum over the kernel's inputs of its own group; a dilated input's zeros are no operands.
        return 2 * eqn.outvars[0].aval.size * (kernel.size // kernel.shape[out]) // math.prod(p["lhs_dilation"])
    if name == "cond":
        return max(_of(branch.jaxpr) for branch in p["branches"])
    inner = [body for value in p.values() for body in _bodies(value)]
    rounds = p["length"] if name == "scan" else 1
    return rounds * sum(map(_of, inner))


def _bodies(value: Any) -> list[Any]:
    found = [getattr(one, "jaxpr", one) for one in (value if isinstance(value, tuple | list) else (value,))]
    return [one for one in found if hasattr(one, "eqns")]
