"""What went wrong in a training step: which of its inputs, parameters or gradients are not finite."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxbig.gradient import Gradient
from jaxbig.step import TrainState
from jaxbig.transform import Split
from jaxbig.tree import PyTree, paths
from jaxbig.weight import is_weight


@jax.jit
def is_finite(tree: PyTree) -> jax.Array:
    """Whether all floating arrays of a tree are finite, a boolean scalar.

    Example:
        >>> bool(is_finite({"w": jnp.ones(2), "n": jnp.arange(3)})), bool(is_finite([jnp.inf]))
        (True, False)
    """
    floats = [leaf for leaf in jax.tree.leaves(tree) if jnp.issubdtype(jnp.result_type(leaf), jnp.inexact)]
    return jnp.stack([jnp.ones((), bool), *(jnp.isfinite(leaf).all() for leaf in floats)]).all()


def first_bad_step(step: Callable, base: PyTree, state: TrainState, batches: Any) -> tuple[TrainState, Any] | None:
    """Repeats a run's steps until one gives a loss or parameters that are not finite.

    Args:
        step: compiled; it may donate its state.
        base: the frozen base.
        state: where to begin; it is not donated.
        batches: from there on.

    Returns:
        the state before that step and its batch; None if no step was bad.
    """
    for batch in batches:
        new, metrics = step(base, jax.tree.map(jnp.copy, state), batch)
        if not is_finite((metrics["loss"][0], new.split.train, new.vars)):
            return state, batch
        state = new
    return None


def explain(gradient: Gradient, split: Split, variables: PyTree, batch: Mapping[str, Any], key: jax.Array) -> str:
    """Why one step does not work, in words: the first of batch, parameters, loss and gradient that is not finite.

    Args:
        gradient: of the step.
        split, variables, batch, key: what the step was given.

    Returns:
        a clause such as ``the gradient of head/bias is not finite``.

    Example:
        >>> import flax.linen as nn
        >>> from jaxbig.gradient import gradient_fn
        >>> from jaxbig.objective import classify
        >>> from jaxbig.tune.full import full
        >>> split = full().init(jax.random.key(0), {"kernel": jnp.zeros((2, 3)), "bias": jnp.zeros(3)}, {})
        >>> batch = {"image": np.array([[1, 2], [3, np.nan]], np.float32), "label": np.zeros(2, int)}
        >>> explain(gradient_fn(classify(nn.Dense(3)), full()), split, {}, batch, jax.random.key(0))
        'image of the batch has nan in row 1'
    """
    for name, array in batch.items():
        array = np.asarray(array)
        if np.issubdtype(array.dtype, np.inexact) or array.dtype.name == "bfloat16":
            bad = np.flatnonzero(~np.isfinite(array.astype(np.float64)).reshape(len(array), -1).all(axis=1))
            if len(bad):
                what = "nan" if np.isnan(array[bad[0]].astype(np.float64)).any() else "inf"
                return f"{name} of the batch has {what} in row {bad[0]}" + _and_more(len(bad) - 1, "rows")
    trees = {"frozen": split.params, "trained": split.train, "state": split.state, "vars": variables}
    for kind, tree in trees.items():
        if names := not_finite(tree):
            return f"{kind} {names[0]} is not finite{_and_more(len(names) - 1)}"
    grads, metrics, _ = jax.jit(gradient)(split, variables, batch, key)
    names = not_finite(grads)
    loss = float(metrics["loss"][0])
    what = f"the loss is {loss:.4g}" if not np.isfinite(loss) else f"the loss is finite ({loss:.4g})"
    if names:
        return f"{what}, and the gradient of {names[0]} is not finite{_and_more(len(names) - 1)}"
    largest = max(paths(grads).items(), key=lambda item: float(jnp.abs(item[1]).max()), default=None)
    size = "" if largest is None else f"; its largest entry, in {largest[0]}, is {float(jnp.abs(largest[1]).max()):.4g}"
    return f"{what}, and the gradient is finite{size}"


def not_finite(tree: PyTree) -> list[str]:
    """The paths of a tree's leaves that hold nan or inf."""
    return [path for path, leaf in paths(tree).items() if not is_finite(leaf if not is_weight(leaf) else [leaf])]


def _and_more(count: int, what: str = "leaves") -> str:
    return f" (and {count} more {what})" if count > 0 else ""
