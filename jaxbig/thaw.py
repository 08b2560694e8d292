"""Gradual unfreezing inside an optimiser: which leaves are open depends on the step, not on the program."""

from collections.abc import Mapping
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import optax

Since = Mapping[str, Any]


class StagesState(NamedTuple):
    """Attributes: step: int32; stages: one state for each step at which leaves open."""

    step: jax.Array
    stages: tuple[Any, ...]


def gate(since: Since) -> optax.GradientTransformation:
    """``update[path] <- 0`` before step ``since[path]``; over dictionaries by path.

    Args:
        since: path -> first step (int or traced) at which the leaf moves; paths that are missing move always.

    Returns:
        optax transformation whose state is the step.

    Example:
        >>> closed = gate({"w": 1})
        >>> grads, state = {"w": jnp.ones(())}, closed.init({})
        >>> first, state = closed.update(grads, state)
        >>> second, state = closed.update(grads, state)
        >>> float(first["w"]), float(second["w"])
        (0.0, 1.0)
    """

    def update(updates, state, params=None):
        def opened(path, update):
            return jnp.where(state >= since[path], update, jnp.zeros_like(update)) if path in since else update

        return {path: opened(path, leaf) for path, leaf in updates.items()}, state + 1

    return optax.GradientTransformation(lambda params: jnp.zeros((), jnp.int32), update)


def in_stages(inner: optax.GradientTransformation, stages: Mapping[str, int], starts: tuple[Any, ...]) -> Any:
    """`inner`, with a state of its own for the leaves of each stage, which waits untouched until the stage starts.

    So a leaf that opens at step s begins as every leaf does at step 0: with empty moments, and with Adam's correction
    for them. With one counter for all its first step would be (1 - b1) / sqrt(1 - b2) as long: 3.2 times, by default.

    Args:
        inner: optax transformation that treats each leaf by itself.
        stages: path -> number of its stage; paths that are missing are open always.
        starts: for each stage its first step; may be traced.

    Returns:
        optax transformation over dictionaries by path.

    Example:
        >>> staged = in_stages(optax.trace(0.9), {"late": 0}, (2,))
        >>> grads = {"early": jnp.ones(()), "late": jnp.ones(())}
        >>> state = staged.init(grads)
        >>> _, state = staged.update(grads, state)
        >>> float(state.stages[0].trace["late"]), float(state.stages[1].trace["early"])
        (0.0, 1.0)
    """

    def part(tree, number):
        return {path: leaf for path, leaf in tree.items() if stages.get(path, len(starts)) == number}

    every = range(len(starts) + 1)

    def init(params):
        return StagesState(jnp.zeros((), jnp.int32), tuple(inner.init(part(params, number)) for number in every))

    def update(updates, state, params=None):
        moved: dict[str, Any] = {}
        states = []
        for number, old in zip(every, state.stages, strict=True):
            ours = None if params is None else part(params, number)
            some, new = inner.update(part(updates, number), old, ours)
            if number < len(starts):
                is_open = state.step >= starts[number]
                new = jax.tree.map(lambda a, b, is_open=is_open: jnp.where(is_open, a, b), new, old)
            moved |= cast(dict[str, Any], some)
            states.append(new)
        return {path: moved[path] for path in updates}, StagesState(state.step + 1, tuple(states))

    return optax.GradientTransformation(init, update)
