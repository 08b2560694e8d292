"""`lift`: any function of parameters, on trees that hold Weights.

The function is traced once, with plain arrays standing in for the Weights, to a jaxpr; the jaxpr is then evaluated
with the Weights in their places. A rule per primitive says what becomes of them: structural primitives (transpose,
reshape, slice, concatenate, cast) make a *view*, products, look-ups and convolutions ask the Weight, control flow
carries Weights into its bodies. What no rule covers becomes a plain array, and a `MaterialiseWarning` says which
parameter, why, and on which line of the user's code. This package and `usage` are the only ones that know primitives.
"""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from flax import traceback_util
from jax.extend import source_info_util

from jaxbig.lift import control, products, structure
from jaxbig.lift.interpreter import Interpreter, MaterialiseError, MaterialiseWarning, View
from jaxbig.tree import path_of
from jaxbig.weight import is_weight

__all__ = ["MaterialiseError", "MaterialiseWarning", "control", "lift", "products", "run", "structure"]

# an error or a warning about the user's model shows the user's lines, not ours
_HERE = Path(__file__).parent
for _file in (
    *_HERE.glob("*.py"),
    *(_HERE.parent / f"{name}.py" for name in ("weight", "contraction", "usage", "calibrate")),
):
    traceback_util.register_exclusion(str(_file))
    source_info_util.register_exclusion(str(_file))


def run(fn: Callable, args: tuple, kwargs: dict, interpreter: Interpreter) -> tuple[Any, Any]:
    """``fn(*args, **kwargs)`` by the interpreter, and the jaxpr it evaluated. All Weights in the arguments count."""
    leaves, treedef = jax.tree_util.tree_flatten_with_path((args, kwargs), is_leaf=is_weight)
    views = [View.of(leaf, path_of(keys[2:])) for keys, leaf in leaves if is_weight(leaf)]

    @functools.wraps(fn)  # what jax says of results that are no arrays, it says of the user's function
    def flat(*arrays):
        rest = iter(arrays)
        filled = [next(rest) if is_weight(leaf) else leaf for _, leaf in leaves]
        args, kwargs = jax.tree.unflatten(treedef, filled)
        return fn(*args, **kwargs)

    stand_ins = [jax.ShapeDtypeStruct(view.shape, view.dtype) for view in views]
    jaxpr, out = jax.make_jaxpr(flat, return_shape=True)(*stand_ins)
    outputs = interpreter.evaluate(jaxpr, views)
    return jax.tree.unflatten(jax.tree.structure(out), [interpreter.dense(o, None) for o in outputs]), jaxpr


def lift(fn: Callable, *, strict: bool = False) -> Callable:
    """Makes a function of parameters accept trees whose leaves may be Weights.

    Nothing in `fn` is edited: a `flax.linen` module's ``apply``, an ``nnx`` model behind split and merge, plain
    ``jnp`` code. Without Weights in the arguments `fn` is called as it is.

    Args:
        fn: a traceable function; Weights may be anywhere in its arguments. Everything else in them may be anything.
            Messages give a weight's path in its argument: lift ``lambda p, x: model.apply({"params": p}, x)`` to read
            those that `where` knows; of ``model.apply`` itself they begin with ``params/``.
        strict: raise a `MaterialiseError` where a Weight would have to be expanded to a plain array.

    Returns:
        a function with the same signature that may be called under jit, grad, vmap, scan, remat and shard_map.

    Raises:
        MaterialiseError: see `strict`.

    Example:
        >>> import flax.linen as nn
        >>> import jax.numpy as jnp
        >>> from jaxbig.weight import Scaled
        >>> model, x = nn.Dense(3), jnp.ones((2, 4))
        >>> params = model.init(jax.random.key(0), x)["params"]
        >>> half = {**params, "kernel": Scaled(params["kernel"], jnp.float32(0.5))}
        >>> y = lift(model.apply)({"params": half}, x)
        >>> bool(jnp.allclose(y, model.apply({"params": params}, x) / 2))
        True

    Cost: the function is traced twice (once to a jaxpr, once through the rules); the compiled program has nothing
    added to it.
    """

    @functools.wraps(fn)
    def lifted(*args, **kwargs):
        if not any(is_weight(leaf) for leaf in jax.tree.leaves((args, kwargs), is_leaf=is_weight)):
            return fn(*args, **kwargs)
        return run(fn, args, kwargs, Interpreter(strict))[0]

    return traceback_util.api_boundary(lifted)
