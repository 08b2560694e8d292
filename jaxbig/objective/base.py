"""What an objective is, and the forward pass of a linen module that objectives share."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, cast

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxbig.errors import UserError

PyTree = Any
Inputs = str | Mapping[str, str] | Sequence[str]
Metrics = dict[str, tuple[jax.Array, jax.Array]]


class Aux(NamedTuple):
    """What an objective gives beside the loss.

    Attributes:
        metrics: name -> (sum, count), float32; the mean over any set of batches is Σ sum / Σ count. Counts are scalars,
            sums may be arrays: `jaxbig.metrics.sums` says what becomes of those.
        vars: what is neither trained nor frozen, after the batch (BatchNorm statistics, ...); {} if there is nothing.
        outputs: name -> array [B, ...] of what the model said and what was right, in evaluation mode; None in training,
            where nothing but metrics and vars leaves a step.
    """

    metrics: Metrics
    vars: PyTree
    outputs: Mapping[str, jax.Array] | None = None


Objective = Callable[[PyTree, PyTree, Mapping[str, Any], "jax.Array | None"], tuple[jax.Array, Aux]]


def picked(batch: Mapping[str, Any], inputs: Inputs) -> Any:
    """What a module is called with, out of a batch.

    Args:
        batch: name -> array.
        inputs: the name of an array; or the module's name -> the batch's name, for a module that takes a mapping; or
            a sequence of names, for one that takes several arguments.

    Returns:
        the array, a dictionary of arrays, or a tuple of arrays.

    Raises:
        UserError: the batch has no such array.

    Example:
        >>> batch = {"number": 1, "category": 2, "length": 3}
        >>> picked(batch, "length"), picked(batch, ("number", "length")), picked(batch, {"numbers": "number"})
        (3, (1, 3), {'numbers': 1})
    """

    def one(name: str) -> Any:
        if name not in batch:
            raise UserError(f"inputs: no {name!r} in the batch, only {', '.join(sorted(batch))}; give inputs=NAME")
        return batch[name]

    if isinstance(inputs, str):
        return one(inputs)
    if isinstance(inputs, Mapping):
        return {theirs: one(name) for theirs, name in inputs.items()}
    return tuple(one(name) for name in inputs)


def forward(
    module: nn.Module, params: PyTree, variables: PyTree, x: Any, key: jax.Array | None, train: bool
) -> tuple[jax.Array, PyTree]:
    """Output of a linen module, and its other collections after the pass.

    Whatever flag the module has for training (``train``, ``training``, ``is_training``, ``deterministic``,
    ``use_running_average``) is set; a module without one is called with `x` alone.

    Args:
        module: linen module whose first argument is the input.
        params: its "params" collection.
        variables: its other collections, e.g. {"batch_stats": ...}; {} if there are none.
        x: input; a tuple is several, one an argument.
        key: typed PRNG key for dropout, or None.
        train: whether dropout is on and collections are updated.

    Returns:
        (output, variables after the pass; those that were given where `train` is False).

    Example:
        >>> dense = nn.Dense(2)
        >>> params = dense.init(jax.random.key(0), jnp.ones((1, 3)))["params"]
        >>> forward(dense, params, {}, jnp.ones((5, 3)), None, train=True)[0].shape
        (5, 2)
    """
    names = inspect.signature(type(module).__call__).parameters
    options: dict[str, Any] = {name: train for name in ("train", "training", "is_training") if name in names}
    options |= {name: not train for name in ("deterministic", "use_running_average") if name in names}
    options["rngs"] = {"dropout": key} if train and key is not None else None
    collections = {"params": params, **(variables or {})}
    args = x if isinstance(x, tuple) else (x,)
    if train and variables:
        output, after = module.apply(collections, *args, mutable=list(variables), **options)
        return output, after
    return cast(jax.Array, module.apply(collections, *args, **options)), variables


def example_weights(batch: Mapping[str, Any], size: int) -> jax.Array:
    """How much each example counts: the product of the batch's ``mask`` and ``weight`` where it has them, else 1.

    Args:
        batch: may hold ``mask`` and ``weight``, each [B].
        size: B.

    Returns:
        float32 [B].

    Example:
        >>> example_weights({"mask": jnp.array([1, 0])}, 2).tolist()
        [1.0, 0.0]
    """
    weights_B = jnp.ones(size, jnp.float32)
    for name in ("mask", "weight"):
        if name in batch:
            weights_B = weights_B * jnp.asarray(batch[name], jnp.float32)
    return weights_B


def collected(batch: Mapping[str, Any], train: bool, **outputs: Any) -> dict[str, Any] | None:
    """`Aux.outputs` of an objective: what is given, and the batch's ``weight`` where it has one; None in training.

    Example:
        >>> sorted(collected({"weight": 1}, train=False, logits=2)), collected({}, train=True, logits=2)
        (['logits', 'weight'], None)
    """
    weight = {"weight": batch["weight"]} if "weight" in batch else {}
    return None if train else outputs | weight


def weighted_mean(metric: tuple[jax.Array, jax.Array]) -> jax.Array:
    """sum / count, and 0 for a batch in which nothing counts.

    Example:
        >>> [float(weighted_mean((jnp.float32(total), jnp.float32(count)))) for total, count in ((3, 2), (0, 0))]
        [1.5, 0.0]
    """
    total, count = metric
    return total / jnp.where(count == 0, 1, count)
