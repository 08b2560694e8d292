"""Curves over the number of labels: methods x shots x seeds -> points with intervals; seeds run as one program."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxbig.data.array import Arrays, k_shot
from jaxbig.lift import lift
from jaxbig.objective.base import Objective
from jaxbig.seeds import fit_seeds, init_seeds, seed_batches
from jaxbig.significance import t_interval
from jaxbig.transform import Transform
from jaxbig.tree import PyTree

Point = dict[str, Any]


class Method(NamedTuple):
    """One way to learn from few labels.

    Attributes:
        transform: the technique.
        optimizer: over what it trains.
        params_of: ``key -> params``; leaves that stay frozen have to be the same for every key.
    """

    transform: Transform
    optimizer: optax.GradientTransformation
    params_of: Callable[[jax.Array], PyTree]


class Labels(NamedTuple):
    """How labels are drawn and used.

    Attributes:
        shots: numbers of labels a class.
        batch_size: at most the smallest number of labels in all.
        steps: of each run.
        seeds: number of runs a point; run i draws its labels with ``seed + i``.
        seed: of everything.
    """

    shots: Sequence[int]
    batch_size: int
    steps: int
    seeds: int = 5
    seed: int = 0


class Problem(NamedTuple):
    """What is learned, and how well it is known afterwards.

    Attributes:
        objective: what is minimised.
        fn: ``(params, x) -> logits [N, classes]``, the model in evaluation.
        uses: of the model, see `jaxbig.usage.usage`.
        train, test: ``image`` [N, ...] and ``label`` [N]; labels are drawn from `train`.
    """

    objective: Objective
    fn: Callable
    uses: Any
    train: Arrays
    test: Arrays


def label_curve(methods: Mapping[str, Method], labels: Labels, problem: Problem) -> Iterator[Point]:
    """Trains every method on every number of labels, and yields each point when it is measured.

    Args:
        methods: name -> method.
        labels: how many, and how they are used.
        problem: what is learned.

    Yields:
        ``{"method", "labels", "accuracy", "low", "high", "trained"}``, as `jaxbig.plots.labels_curve` takes them: the
        mean of the test accuracy over the seeds, its 95% interval, and how many numbers are trained.

    Example:
        >>> import flax.linen as nn, jax.numpy as jnp
        >>> from jaxbig.objective import classify
        >>> from jaxbig.tune.full import full
        >>> model, eye = nn.Dense(2), {"image": np.eye(2, dtype=np.float32), "label": np.arange(2)}
        >>> params_of = lambda key: {"kernel": jnp.zeros((2, 2)), "bias": jnp.zeros(2)}
        >>> fn = lambda params, x: model.apply({"params": params}, x)
        >>> problem = Problem(classify(model), fn, {}, eye, eye)
        >>> labels = Labels(shots=[1], batch_size=2, steps=1, seeds=2)
        >>> list(label_curve({"full": Method(full(), optax.sgd(1.0), params_of)}, labels, problem))
        [{'method': 'full', 'labels': 1, 'accuracy': 1.0, 'low': 1.0, 'high': 1.0, 'trained': 6}]
    """
    keys = jax.random.split(jax.random.key(labels.seed), labels.seeds)
    for name, method in methods.items():
        transform, optimizer = method.transform, method.optimizer
        accuracy = _accuracies(problem, transform)
        for shots in labels.shots:
            rows = [k_shot(problem.train["label"], shots, labels.seed + i) for i in range(labels.seeds)]
            batches = seed_batches(problem.train, rows, labels.batch_size, labels.steps, labels.seed)
            start = init_seeds(transform, optimizer, keys, method.params_of, problem.uses)
            base = start[0]
            states, _ = fit_seeds(problem.objective, transform, optimizer, start, batches)
            trained = sum(leaf[0].size for leaf in jax.tree.leaves(states.split.train))
            yield {"method": name, "labels": shots, **_interval(accuracy(base, states.split)), "trained": trained}


def _accuracies(problem: Problem, transform: Transform) -> Callable[[PyTree, Any], np.ndarray]:
    """(base, splits of several seeds) -> test accuracy of each seed."""
    x, y = jnp.asarray(problem.test["image"]), jnp.asarray(problem.test["label"])

    def one(base, split, x):
        whole = split._replace(params=base)
        logits = lift(transform.wrap(whole, problem.fn))(transform.apply(whole), x)
        return (logits.argmax(-1) == y).mean()

    every = jax.jit(jax.vmap(one, in_axes=(None, 0, None)))
    return lambda base, splits: np.asarray(every(base, splits, x), np.float64)


def _interval(values: np.ndarray) -> dict[str, float]:
    """Mean over the seeds and its 95% interval; of one seed, which has none, the value itself."""
    mean, low, high = t_interval(values)
    return (
        {"accuracy": mean, "low": low, "high": high}
        if len(values) > 1
        else dict.fromkeys(("accuracy", "low", "high"), mean)
    )
