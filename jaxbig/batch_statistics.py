"""BatchNorm's statistics measured anew: for weights that were never trained with, such as an average of many steps'."""

from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp

from jaxbig.data.loader import Position
from jaxbig.errors import UsageError, UserError
from jaxbig.job import Fitted, Task
from jaxbig.lift import lift
from jaxbig.tree import PyTree, paths

COLLECTION = "batch_stats"


def with_batch_statistics(task: Task, fitted: Fitted, steps: int | None = None, key: Any = None) -> Fitted:
    """A finished run whose running statistics are the plain mean of its batches' statistics, for its own weights.

    A running statistic is v <- m v + (1 - m) s_i, s_i that of batch i and m the momentum. A model that nobody edited
    does not say what m is, but one step from v = 0 and one from v = 1 do: m = f(1) - f(0), s_i = f_i(0) / (1 - m). The
    result is (1/n) Σ_i s_i.

    Args:
        task: what the run was given; its data and objective are used, in training mode.
        fitted: what it ended with; `jaxbig.averaging.view` as ``task.view`` has put averaged weights there.
        steps: n, how many batches of the first epoch; None: all of them.
        key: typed PRNG key for the model's dropout; None: ``jax.random.key(0)``.

    Returns:
        `fitted` with other ``vars["batch_stats"]``; its ``state`` stays, to go on from.

    Raises:
        UsageError: the model has no collection ``batch_stats``, or fewer than one step is asked for.
        UserError: what is in it is no running mean.

    Cost: a forward pass a batch, and three for the first.

    Example:
        >>> import flax.linen as nn, numpy as np, optax
        >>> from jaxbig.data import Loader
        >>> from jaxbig.objective import classify
        >>> from jaxbig.train import fit
        >>> from jaxbig.job import Run
        >>> from jaxbig.tune.full import full
        >>> model = nn.BatchNorm(momentum=0.9)
        >>> data = Loader({"image": np.arange(8, dtype=np.float32).reshape(4, 2), "label": np.arange(4) % 2}, 4)
        >>> variables = model.init(jax.random.key(0), jnp.ones((1, 2)), use_running_average=True)
        >>> split = full().init(jax.random.key(0), variables["params"], {})
        >>> task = Task(classify(model), full(), optax.sgd(0.0), data)
        >>> rest = {"batch_stats": variables["batch_stats"]}
        >>> fitted = fit(task, split, jax.random.key(0), Run(epochs=1, quiet=True), rest)
        >>> [round(float(mean), 2) for mean in fitted.vars["batch_stats"]["mean"]]
        [0.3, 0.4]
        >>> [round(float(mean), 2) for mean in with_batch_statistics(task, fitted).vars["batch_stats"]["mean"]]
        [3.0, 4.0]

    Reference:
        Izmailov et al. (2018), arXiv:1803.05407, section 3.2; torch.optim.swa_utils.update_bn. Deviation: variances are
        flax's, of the batch; torch's running ones are the unbiased n / (n - 1) of them.
    """
    if COLLECTION not in fitted.vars:
        raise UsageError(
            f"with_batch_statistics: the model has no collection {COLLECTION!r}; there is nothing to measure"
        )
    count = task.data.steps if steps is None else steps
    if count < 1:
        raise UsageError(f"with_batch_statistics: steps={steps}; use at least 1")
    params, key = task.transform.apply(fitted.split), jax.random.key(0) if key is None else key
    objective = lift(task.transform.wrap(fitted.split, task.objective))

    @jax.jit
    def updated(params: PyTree, start: PyTree, batch: Any, key: jax.Array) -> PyTree:
        return objective(params, {**fitted.vars, COLLECTION: start}, batch, key)[1].vars[COLLECTION]

    filled = lambda value: jax.tree.map(lambda leaf: jnp.full_like(leaf, value), fitted.vars[COLLECTION])  # noqa: E731
    total, momentum = None, None
    for i, batch in enumerate(_first(task, count)):
        of = lambda value, batch=batch, i=i: updated(params, filled(value), batch, jax.random.fold_in(key, i))  # noqa: E731
        at_0 = of(0.0)
        if momentum is None:
            momentum = _momentum(at_0, of(1.0), of(2.0))
        total = at_0 if total is None else jax.tree.map(jnp.add, total, at_0)
    mean = jax.tree.map(lambda leaf, m: (leaf / count / (1 - m)).astype(leaf.dtype), total, momentum)
    return fitted._replace(vars={**fitted.vars, COLLECTION: mean})


def _first(task: Task, count: int) -> Iterable[Any]:
    """The first batches of the training data, epoch after epoch where one has too few."""
    epochs = -(-count // task.data.steps)
    for _, batch in zip(range(count), task.data.stream(Position(0, 0), epochs), strict=False):
        yield batch


def _momentum(at_0: PyTree, at_1: PyTree, at_2: PyTree) -> PyTree:
    momentum = jax.tree.map(jnp.subtract, at_1, at_0)
    again, first = paths(jax.tree.map(jnp.subtract, at_2, at_1)), paths(momentum)
    for path, m in first.items():
        if not (bool(jnp.allclose(m, again[path], atol=1e-3)) and bool(jnp.all((m >= 0) & (m < 1)))):
            raise UserError(
                f"with_batch_statistics: {COLLECTION}/{path} is no running mean: from 0, 1 and 2 a step leads to "
                f"{', '.join(f'{float(jnp.ravel(paths(at)[path])[0]):.4g}' for at in (at_0, at_1, at_2))}; measure "
                "such a model's statistics by training on with a learning rate of 0"
            )
    return momentum
