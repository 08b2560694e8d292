"""One compiled program for a technique on a model, from which several laws are read."""

import functools
import json
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from law_models import Case, case, loss_of

from jaxbig.compress.merge import merge
from jaxbig.lift import lift
from jaxbig.registry import REGISTRY, build
from jaxbig.transform import Split, Transform
from jaxbig.tree import paths
from jaxbig.usage import usage

# the programs are tiny: most of a test is compiling them, and half of that is LLVM's optimisation
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})

# every entry, alone, with each of the arguments that it names
ALONE = [
    (name, i) for name, entry in REGISTRY.items() for i in range(len(entry.arguments))
]  # fmt: skip
# Techniques that find nothing to do in the CNN: no last input axis but the head's is divided by 4, nothing is added to
# a residual stream, no tokens are read, and it has neither a norm nor a table.
NOT_ON_CNN = ("2:4", "bottleneck", "prompt", "prefix", "ln_tuning", "trainable_tokens")
# One technique of each way to change a tree: the fast tier puts these through every law. The others, which are built of
# the same parts, it puts through a chain each (test_law_chains); `make slow` through all.
BASIC = ("full", "freeze", "bitfit", "lora", "int8", "int4", "nf4", "prune", "2:4")
# Of the others, one of each kind of Weight: the fast tier has each of them in the middle of a chain.
KINDS = ("dora", "oft", "bottleneck", "prompt")


def tiers(items, fast=lambda item: item[0] in BASIC):
    """Items for `parametrize`, those that are not for the fast tier marked slow."""
    return [item if fast(item) else pytest.param(item, marks=pytest.mark.slow) for item in items]


def entry_of(alone) -> tuple[Any, Transform]:
    """The registry's entry and the transform of one item of ALONE."""
    name, i = alone
    entry = REGISTRY[name]
    return entry, entry.factory(**entry.arguments[i])


def rebuilt(transform: Transform) -> Transform:
    """The transform after its config went through JSON, as a manifest's does."""
    return build(json.loads(json.dumps(transform.config)))


def stir(train, seed: int = 7, size: float = 0.1):
    """Trained leaves moved off their initial values: what the init makes zero is zero no more."""
    random = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: leaf + jnp.asarray(size * random.normal(size=leaf.shape), leaf.dtype), train)


class Result(NamedTuple):
    """What the compiled program gives: logits through Weights and through merged arrays, both losses' gradients."""

    factored: Any
    merged: Any
    grads: Any
    merged_grads: Any
    tree: Any


class Trial(NamedTuple):
    """A technique that was tried on a model at its init, and once more with its trained leaves stirred."""

    transform: Transform
    model: Case
    uses: Any
    split: Split
    at_init: Result
    stirred: Result
    stirred_train: Any
    traces: int
    base_before: Any


@functools.cache
def uses_of(name: str):
    model = case(name)
    return usage(model.apply, model.params, model.inputs)


@functools.cache
def base_logits(name: str):
    model = case(name)
    return jit(model.apply)(model.params, model.inputs)


def called(transform: Transform, split: Split, fn, key=None):
    """The model of a split, as the trainer calls it: a function of the inputs."""
    return functools.partial(lift(transform.wrap(split, fn), strict=True), transform.apply(split, key))


def program(transform: Transform, model: Case, plain: Case, count: list):
    """``(train, rest, inputs) -> Result``: `model` reads the Weights, `plain` the merged arrays."""

    def run(train, rest, inputs):
        count.append(1)

        def factored(train):
            logits = called(transform, rest._replace(train=train), model.apply)(inputs)
            return loss_of(logits), logits

        def merged(train):
            split = rest._replace(train=train)
            tree = merge(transform.apply(split))
            logits = lift(transform.wrap(split, plain.apply))(tree, inputs)
            return loss_of(logits), (logits, tree)

        grads, logits = jax.grad(factored, has_aux=True)(train)
        merged_grads, (merged_logits, tree) = jax.grad(merged, has_aux=True)(train)
        return Result(logits, merged_logits, grads, merged_grads, tree)

    return jit(run)


@functools.cache
def trial(alone, name: str) -> Trial:
    """Runs one entry on a model; the scanned model is read through remat, and compared to itself without."""
    transform = entry_of(alone)[1]
    model, plain = case(name, remat=name == "scanned"), case(name)
    return run_trial(transform, model, plain, uses_of(name))


def run_trial(transform: Transform, model: Case, plain: Case, uses) -> Trial:
    before = jax.tree.map(np.array, model.params)
    split = transform.init(jax.random.key(5), model.params, uses)
    count = []
    run = program(transform, model, plain, count)
    rest, train = split._replace(train=None), stir(split.train)
    at_init, stirred = run(split.train, rest, model.inputs), run(train, rest, model.inputs)
    return Trial(transform, model, uses, split, at_init, stirred, train, len(count), before)


def check_factored_is_merged(tried: Trial, atol: float = 2e-5):
    """Law 2."""
    base = tried.model.params
    for result in (tried.at_init, tried.stirred):
        np.testing.assert_allclose(result.factored, result.merged, rtol=1e-4, atol=atol)
        compare = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=atol)  # noqa: E731
        jax.tree.map(compare, result.grads, result.merged_grads)
        assert jax.tree.structure(result.tree) == jax.tree.structure(base)
        assert shapes(result.tree) == shapes(base)


def check_base_is_safe(tried: Trial):
    """Law 3: not changed, not aliased, not donated away. Donates this trial's own trained leaves."""
    train = jax.tree.map(jnp.array, tried.split.train)
    fresh = tried.transform.init(jax.random.key(5), tried.model.params, tried.uses).train
    gone = jax.jit(lambda train: jax.tree.map(lambda leaf: leaf + 1, train), donate_argnums=0)(fresh)
    jax.block_until_ready(gone)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(fresh))
    jax.tree.map(np.testing.assert_array_equal, tried.model.params, tried.base_before)
    jax.tree.map(np.testing.assert_array_equal, train, tried.split.train)


def check_every_leaf_learns(tried: Trial):
    """Law 3: a gradient for every trained leaf, once it is off its initial values."""
    for path, grad in paths(tried.stirred.grads).items():
        if path.endswith("key/bias"):  # softmax does not see what is added to all scores of a query: a true zero
            continue
        assert float(jnp.abs(grad).max()) > 0, f"{path} gets no gradient"


def shapes(tree):
    return {path: (leaf.shape, str(leaf.dtype)) for path, leaf in paths(tree).items()}
