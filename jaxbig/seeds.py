"""Several runs as one program: the training step under `jax.vmap`, the frozen base shared.

Runs differ in their seeds (`init_seeds`, `fit_seeds`), or in numbers of the technique and the optimiser too
(`init_sweep`, `fit_sweep`): learning rates, decays, LoRA's alpha. One program is compiled for all.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxbig.data.array import Arrays, select
from jaxbig.data.loader import Loader
from jaxbig.errors import UsageError
from jaxbig.objective.base import Objective
from jaxbig.step import TrainState, Ways, init_state, step_fn
from jaxbig.transform import Split, Transform
from jaxbig.tree import PyTree

Build = Callable[[Mapping[str, jax.Array]], tuple[Transform, optax.GradientTransformation]]


def init_seeds(
    transform: Transform, optimizer: optax.GradientTransformation, keys: jax.Array, params_of: Callable, uses: Any
) -> tuple[PyTree, TrainState]:
    """The shared base and one training state for each key.

    Args:
        transform: what is trained; everything that differs from seed to seed has to be in its `train` or `state`.
        optimizer: over ``split.train``.
        keys: typed PRNG keys [S].
        params_of: ``key -> params``; leaves that stay frozen have to be the same for every key.
        uses: of the model, see `jaxbig.usage.usage`.

    Returns:
        the base without a seed axis, and a state whose arrays have a leading axis S.

    Example:
        >>> from jaxbig.tune.full import full
        >>> keys = jax.random.split(jax.random.key(0), 3)
        >>> params_of = lambda key: {"w": jax.random.normal(key, (2,)), "frozen": jnp.ones(4)}
        >>> base, states = init_seeds(full(where="w"), optax.sgd(0.1), keys, params_of, {})
        >>> base["frozen"].shape, states.split.train["w"].shape
        ((4,), (3, 2))
    """

    return init_sweep(lambda numbers: (transform, optimizer), {}, keys, params_of, uses)


def fit_seeds(
    objective: Objective,
    transform: Transform,
    optimizer: optax.GradientTransformation,
    start: tuple[PyTree, TrainState],
    batches: Iterable[Any],
    ways: Ways = (),
) -> tuple[TrainState, jax.Array]:
    """Trains all seeds at once.

    Args:
        objective, transform, optimizer: as for `jaxbig.step.step_fn`.
        start: what `init_seeds` returned; the state is donated.
        batches: each a tree of arrays [S, B, ...], one batch a seed.
        ways: how the gradient is had, as for `jaxbig.step.step_fn`.

    Returns:
        the states, and the mean training loss of each step and seed, float32 [steps, S].

    Example:
        >>> from jaxbig.objective.base import Aux
        >>> from jaxbig.tune.full import full
        >>> def objective(params, variables, batch, key):
        ...     loss = jnp.mean((params["w"] - batch) ** 2)
        ...     return loss, Aux({"loss": (loss, jnp.float32(1))}, variables)
        >>> keys = jax.random.split(jax.random.key(0), 2)
        >>> start = init_seeds(full(), optax.sgd(0.5), keys, lambda key: {"w": jnp.zeros(())}, {})
        >>> states, losses = fit_seeds(objective, full(), optax.sgd(0.5), start, [jnp.ones((2, 3))])
        >>> states.split.train["w"].tolist(), losses.shape
        ([1.0, 1.0], (1, 2))
    """
    return fit_sweep(objective, lambda numbers: (transform, optimizer), {}, start, batches, ways)


def grid(**axes: Any) -> dict[str, jax.Array]:
    """Every combination of some values, as numbers (and keys) of a sweep.

    Args:
        **axes: name -> values, a sequence or an array of one axis (keys too).

    Returns:
        name -> array [S], S the product of the lengths; the last name varies fastest.

    Example:
        >>> runs = grid(lr=[0.1, 0.2], key=jax.random.split(jax.random.key(0), 3))
        >>> [round(float(lr), 1) for lr in runs["lr"]], runs["key"].shape
        ([0.1, 0.1, 0.1, 0.2, 0.2, 0.2], (6,))
    """
    values = {name: jnp.asarray(axis) for name, axis in axes.items()}
    places = jnp.indices([len(axis) for axis in values.values()]).reshape(len(values), -1)
    return {name: axis[place] for (name, axis), place in zip(values.items(), places, strict=True)}


def init_sweep(
    build: Build, numbers: Mapping[str, jax.Array], keys: jax.Array, params_of: Callable, uses: Any
) -> tuple[PyTree, TrainState]:
    """The shared base and one training state for each run of a sweep.

    Args:
        build: ``numbers of one run -> (transform, optimizer)``; the numbers are traced scalars, so they may be what
            computes (rates, decays, alpha, steps to thaw at), not what shapes the program (ranks, a schedule's steps).
        numbers: name -> array [S], one number a run; {} if only the keys differ. See `grid`.
        keys: typed PRNG keys [S].
        params_of: ``key -> params``; leaves that stay frozen have to be the same for every key.
        uses: of the model, see `jaxbig.usage.usage`.

    Returns:
        the base without an axis of runs, and a state whose arrays have a leading axis S.

    Raises:
        UsageError: no keys, or numbers of another length than the keys.

    Example:
        >>> from jaxbig.optim import Optimizer
        >>> from jaxbig.tune.full import full
        >>> build = lambda numbers: (full(), Optimizer("sgd", numbers["lr"]).build())
        >>> runs = grid(lr=[0.1, 0.2], key=jax.random.split(jax.random.key(0), 3))
        >>> base, states = init_sweep(build, runs, runs.pop("key"), lambda key: {"w": jnp.ones(2)}, {})
        >>> states.split.train["w"].shape
        (6, 2)
    """
    if not len(keys):
        raise UsageError("sweep: no keys; give one for each run")
    for name, values in numbers.items():
        if len(values) != len(keys):
            raise UsageError(f"sweep: {len(values)} numbers for {name!r}, but {len(keys)} keys; give one of each a run")

    def split_of(key, own) -> Split:
        first, second = jax.random.split(key)
        return build(own)[0].init(first, params_of(second), uses)

    base = split_of(keys[0], {name: values[0] for name, values in numbers.items()}).params
    states = jax.vmap(lambda key, own: init_state(split_of(key, own), build(own)[1], key)[1])(keys, dict(numbers))
    return base, states


def fit_sweep(
    objective: Objective,
    build: Build,
    numbers: Mapping[str, jax.Array],
    start: tuple[PyTree, TrainState],
    batches: Iterable[Any],
    ways: Ways = (),
) -> tuple[TrainState, jax.Array]:
    """Trains all runs of a sweep at once.

    Args:
        objective: as for `jaxbig.step.step_fn`.
        build, numbers: as for `init_sweep`.
        start: what `init_sweep` returned; the state is donated.
        batches: each a tree of arrays [S, B, ...], one batch a run.
        ways: how the gradient is had, as for `jaxbig.step.step_fn`.

    Returns:
        the states, and the mean training loss of each step and run, float32 [steps, S]. A run whose numbers are in its
        transform alone is read with its own: ``build(numbers of run i)[0].apply(split of run i)``.

    Example:
        >>> from jaxbig.objective.base import Aux
        >>> from jaxbig.tune.full import full
        >>> def objective(params, variables, batch, key):
        ...     loss = jnp.mean((params["w"] - batch) ** 2)
        ...     return loss, Aux({"loss": (loss, jnp.float32(1))}, variables)
        >>> build = lambda numbers: (full(), optax.sgd(numbers["lr"]))
        >>> numbers, keys = {"lr": jnp.array([0.25, 0.5])}, jax.random.split(jax.random.key(0), 2)
        >>> start = init_sweep(build, numbers, keys, lambda key: {"w": jnp.zeros(())}, {})
        >>> fit_sweep(objective, build, numbers, start, [jnp.ones((2, 3))])[0].split.train["w"].tolist()
        [0.5, 1.0]
    """
    base, states = start

    def one(base, state, batch, own):
        return step_fn(objective, *build(own), ways=ways)(base, state, batch)

    step = jax.jit(jax.vmap(one, in_axes=(None, 0, 0, 0)), donate_argnums=1)
    losses = []
    for batch in batches:
        states, metrics = step(base, states, batch, dict(numbers))
        total, count = metrics["loss"]
        losses.append(total / count)
    return states, jnp.stack(losses)


def seed_batches(arrays: Arrays, rows: list[Any], batch_size: int, steps: int, seed: int = 0) -> Iterable[dict]:
    """Batches for `fit_seeds`: each seed draws from rows of its own, epoch after epoch.

    Args:
        arrays: the dataset.
        rows: for each seed the positions it may train on, all of one length.
        batch_size: B; at most that many rows.
        steps: number of batches.
        seed: seed i shuffles with ``seed + i``.

    Returns:
        iterator over dictionaries of arrays [S, B, ...].

    Example:
        >>> import numpy as np
        >>> batch, = seed_batches({"x": np.arange(6)}, [np.arange(3), np.arange(3, 6)], batch_size=3, steps=1)
        >>> np.sort(batch["x"]).tolist()
        [[0, 1, 2], [3, 4, 5]]
    """
    rows = [np.asarray(own) for own in rows]
    loaders = [Loader({"row": own}, batch_size, seed + i) for i, own in enumerate(rows)]
    for step in range(steps):
        epoch, at = divmod(step, loaders[0].steps)
        chosen = [own[loader.index(epoch)[0][at]] for own, loader in zip(rows, loaders, strict=True)]
        parts = [select(arrays, own) for own in chosen]
        yield {name: jnp.stack([part[name] for part in parts]) for name in arrays}
