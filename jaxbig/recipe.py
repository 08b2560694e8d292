"""Recipes: how a network for images is trained from nothing, as one record that several data sets share."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxbig.averaging import view
from jaxbig.data.array import Arrays
from jaxbig.data.augment import Augmentation
from jaxbig.data.loader import Loader
from jaxbig.evaluate import predict
from jaxbig.gradient import Accumulate
from jaxbig.history import Line
from jaxbig.job import Fitted, Run, Task, Validation
from jaxbig.objective.classify import classify
from jaxbig.optim import Optimizer
from jaxbig.step import Ways
from jaxbig.train import fit
from jaxbig.transform import Transform

PyTree = Any
_EVALUATED_AT_ONCE = 250


class Recipe(NamedTuple):
    """How a classifier is trained; the data and the seed are not part of it.

    Attributes:
        model: from images [B, H, W, C] to logits; see `jaxbig.objective.classify`.
        transform: what of it is trained; `jaxbig.full` for all.
        optimizer: its `steps` are set to the length of the run. With `ema` the average is what is evaluated.
        batch_size: images a step.
        smoothing: of the labels.
        augment: of the training images.
        threads: that make batches ahead; worth it with `augment`.
        ways: how the gradient is had.
    """

    model: nn.Module
    transform: Transform
    optimizer: Optimizer
    batch_size: int = 128
    smoothing: float = 0.0
    augment: Augmentation | None = None
    threads: int = 0
    ways: Ways = ()


def train_classifier(recipe: Recipe, train: Arrays, test: Arrays, seed: int, run: Run) -> Fitted:
    """Trains by a recipe; after each line of the history, accuracy and loss on all of `test`.

    Args:
        recipe: how.
        train, test: ``image`` floats [N, H, W, C] and ``label`` int [N].
        seed: of initialisation, order and augmentation.
        run: how it is carried out. What is returned is the run's end: nothing is chosen by `test`.

    Returns:
        what `jaxbig.train.fit` does; `trained` reads its parameters.

    Raises:
        UserError: as `fit`.

    Example:
        >>> from jaxbig.models import MLP
        >>> from jaxbig.tune.full import full
        >>> data = {"image": np.eye(4, dtype=np.float32).reshape(4, 2, 2, 1), "label": np.arange(4)}
        >>> recipe = Recipe(MLP(features=(8,), num_classes=4), full(), Optimizer("sgd", lr=1.0), batch_size=4)
        >>> fitted = train_classifier(recipe, data, data, 0, Run(epochs=20, quiet=True))
        >>> fitted.history[-1]["val_accuracy"]
        1.0
    """
    loader = Loader(train, recipe.batch_size, seed, augment=recipe.augment, threads=recipe.threads)
    steps = run.epochs * loader.steps if run.steps is None else run.steps
    optimizer = dataclasses.replace(recipe.optimizer, steps=steps)
    key = jax.random.key(seed)
    variables = dict(jax.jit(recipe.model.init)(key, jnp.asarray(train["image"][:1])))
    split = recipe.transform.init(key, variables.pop("params"), {})
    task = Task(
        classify(recipe.model, smoothing=recipe.smoothing),
        recipe.transform,
        optimizer.build(),
        loader,
        Validation(classify(recipe.model, train=False), whole(test)),
        ways=recipe.ways,
        **({} if optimizer.ema is None else {"view": view}),
    )
    return fit(task, split, key, run, variables)


class Runs(NamedTuple):
    """What several seeds ended with.

    Attributes:
        histories: ``seed I`` -> its history.
        logits_SNC: of each seed on the test set.
        variables: of the first seed, what the model is applied with.
    """

    histories: dict[str, list[Line]]
    logits_SNC: np.ndarray
    variables: PyTree


def train_seeds(recipe: Recipe, train: Arrays, test: Arrays, seeds: Sequence[int], run: Run) -> Runs:
    """`train_classifier` with one seed after the other, each in a folder of its own, and their logits on `test`.

    One after the other, because a convolution under `jax.vmap` over its kernels is slow on a CPU, and a killed run
    resumes at the seed where it was.

    Args:
        recipe, train, test: as for `train_classifier`.
        seeds: one run each.
        run: how; a seed's folder is ``workdir/seed_I``.

    Returns:
        what they ended with.

    Example:
        >>> from jaxbig.models import MLP
        >>> from jaxbig.tune.full import full
        >>> data = {"image": np.eye(4, dtype=np.float32).reshape(4, 2, 2, 1), "label": np.arange(4)}
        >>> recipe = Recipe(MLP(features=(8,), num_classes=4), full(), Optimizer("sgd", lr=1.0), batch_size=4)
        >>> runs = train_seeds(recipe, data, data, [0, 1], Run(epochs=1, quiet=True))
        >>> sorted(runs.histories), runs.logits_SNC.shape
        (['seed 0', 'seed 1'], (2, 4, 4))
    """
    histories, logits, first = {}, [], None
    for seed in seeds:
        folder = None if run.workdir is None else Path(run.workdir) / f"seed_{seed}"
        own = dataclasses.replace(run, workdir=folder, config={**run.config, "seed": seed})
        fitted = train_classifier(recipe, train, test, seed, own)
        variables = trained(recipe, fitted)
        histories[f"seed {seed}"] = fitted.history
        logits.append(predict(recipe.model.apply, variables, whole(test)))
        first = variables if first is None else first
    return Runs(histories, np.stack(logits), first)


def trained(recipe: Recipe, fitted: Fitted) -> PyTree:
    """The variables that the model is applied with: its parameters, averaged where the recipe says so, and the rest."""
    return {"params": recipe.transform.apply(fitted.split), **fitted.vars}


def in_parts(batch_size: int, part: int = 32) -> Ways:
    """On a CPU: the gradient from parts of a batch, whose activations stay in its caches; on other devices nothing.

    A convolution in such a loop wants to be `jaxbig.models.PatchConv`, as in ``CNN(patches=True)``.

    Args:
        batch_size: images a step.
        part: images at once; where they do not divide the batch, it is not divided.

    Returns:
        for `Recipe.ways`.

    Example:
        >>> in_parts(128) if jax.default_backend() == "cpu" else (Accumulate(4),)
        (Accumulate(chunks=4),)
    """
    divides = batch_size > part and batch_size % part == 0
    return (Accumulate(batch_size // part),) if divides and jax.default_backend() == "cpu" else ()


def whole(data: Arrays) -> Loader:
    """All examples in their own order, for evaluation and prediction.

    Example:
        >>> whole({"label": np.arange(3)}).steps
        1
    """
    return Loader(data, min(_EVALUATED_AT_ONCE, len(data["label"])), shuffle=False, remainder="pad")
