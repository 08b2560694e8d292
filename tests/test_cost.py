"""What lifting adds to a compiled program: nothing. LoRA and QLoRA on an unedited linen model against plain jax."""

import jax
import numpy as np
import optax
import pytest

from benchmarks.by_hand import Linen, example, linen_loss, parameters
from benchmarks.cost import METHODS, factors, measured, programs
from benchmarks.step_overhead import programs as step_programs
from jaxbig.lift import lift
from jaxbig.models import CNN, ViT
from jaxbig.tune.full import full
from jaxbig.usage import usage


def within_one_percent(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert ours[name] == pytest.approx(theirs[name], rel=0.01), f"{name}: {ours} against {theirs}"


SLOW = (("LoRA", True), ("QLoRA", False))  # each of the two methods and of the two ways stays in the fast tier once


@pytest.mark.parametrize(
    ("name", "remat"),
    [
        pytest.param(name, remat, id=f"{name}{', remat' * remat}", marks=[pytest.mark.slow] * ((name, remat) in SLOW))
        for name in METHODS
        for remat in (False, True)
    ],
)
def test_lifting_costs_what_writing_it_by_hand_costs(name, remat):
    (ours, given), (theirs, given_) = programs(name, remat)
    (loss, grads), figures = measured(ours, *given)
    (loss_, grads_), figures_ = measured(theirs, *given_)
    np.testing.assert_allclose(loss, loss_, rtol=1e-6)
    grads = factors(name, grads)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-6), grads, grads_)
    within_one_percent(figures, figures_)


def test_training_everything_is_plain_flax_and_optax():
    ids, params = example(), parameters(jax.random.key(0))
    uses = usage(lambda p, x: Linen().apply({"params": p}, x), params, ids)
    method, optimiser = full(), optax.adamw(1e-3)
    split = method.init(jax.random.key(2), params, uses)

    def update(grads, state, train):
        updates, state = optimiser.update(grads, state, train)
        return optax.apply_updates(train, updates), state

    def ours(train, state, ids):
        return update(jax.grad(lambda train: lift(linen_loss)(method.apply(split._replace(train=train)), ids))(train),
                      state, train)  # fmt: skip

    def theirs(params, state, ids):
        return update(jax.grad(linen_loss)(params, ids), state, params)

    (train, _), figures = measured(ours, split.train, optimiser.init(split.train), ids)
    (plain, _), figures_ = measured(theirs, params, optimiser.init(params), ids)
    assert figures == figures_
    jax.tree.map(np.testing.assert_array_equal, method.apply(split._replace(train=train)), plain)


STEPS = {
    "cnn": CNN(channels=(8, 16), hidden=32),
    "vit": ViT(num_classes=10, patch=7, width=32, layers=2, heads=2),
}


@pytest.mark.parametrize("model", STEPS.values(), ids=STEPS)
def test_the_trainer_s_step_is_the_step_one_would_write(model):
    """All of `step_fn`: objective, metrics, technique, optimiser from options, update and reset."""
    (ours, given), (theirs, given_) = step_programs(model, size=16)
    within_one_percent(measured(ours, *given)[1], measured(theirs, *given_)[1])
