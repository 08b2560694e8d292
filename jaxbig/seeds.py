"""Several seeds as one program: the training step under `jax.vmap`, the frozen base shared."""

from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxbig.data.array import Arrays, select
from jaxbig.data.loader import Loader
from jaxbig.errors import UsageError
from jaxbig.objective.base import Objective
from jaxbig.step import TrainState, init_state, step_fn
from jaxbig.transform import Split, Transform
from jaxbig.tree import PyTree


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

    if not len(keys):
        raise UsageError("init_seeds: no keys; give one for each seed")

    def split_of(key) -> Split:
        first, second = jax.random.split(key)
        return transform.init(first, params_of(second), uses)

    base = split_of(keys[0]).params
    states = jax.vmap(lambda key: init_state(split_of(key), optimizer, key)[1])(keys)
    return base, states


def fit_seeds(
    objective: Objective,
    transform: Transform,
    optimizer: optax.GradientTransformation,
    start: tuple[PyTree, TrainState],
    batches: Iterable[Any],
) -> tuple[TrainState, jax.Array]:
    """Trains all seeds at once.

    Args:
        objective, transform, optimizer: as for `jaxbig.step.step_fn`.
        start: what `init_seeds` returned; the state is donated.
        batches: each a tree of arrays [S, B, ...], one batch a seed.

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
    base, states = start
    step = jax.jit(jax.vmap(step_fn(objective, transform, optimizer), in_axes=(None, 0, 0)), donate_argnums=1)
    losses = []
    for batch in batches:
        states, metrics = step(base, states, batch)
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
