"""Optimisers: equal to optax's own, rules, freezing, schedules, clipping, errors."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxbig.errors import UsageError
from jaxbig.optim import NAMES, Optimizer

TRAIN = {
    "lora": {"dense/kernel": {"a": jnp.linspace(-1, 1, 6).reshape(2, 3), "b": jnp.ones((3, 2))}},
    "head": {"bias": jnp.ones(2)},
}


def gradients(step):
    return jax.tree.map(lambda leaf: jnp.cos(leaf + step) * 3, TRAIN)


def run(transformation, steps=4):
    @jax.jit
    def one(train, state, step):
        updates, state = transformation.update(gradients(step), state, train)
        return optax.apply_updates(train, updates), state

    train, state = TRAIN, transformation.init(TRAIN)
    for step in range(steps):
        train, state = one(train, state, step)
    return train


def close(ours, theirs, rtol=1e-6):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=1e-7), ours, theirs)


@pytest.mark.parametrize(
    ("options", "reference"),
    [
        (Optimizer("sgd", 0.1), optax.sgd(0.1)),
        (Optimizer("sgd", 0.1, momentum=0.9, nesterov=True), optax.sgd(0.1, 0.9, nesterov=True)),
        (Optimizer("adam", 0.1), optax.adam(0.1)),
        (Optimizer("adamw", 0.1, weight_decay=0.3), optax.adamw(0.1, weight_decay=0.3)),
        (Optimizer("lion", 0.1, b2=0.99, weight_decay=0.3), optax.lion(0.1, weight_decay=0.3)),
        (Optimizer("lamb", 0.1, eps=1e-6, weight_decay=0.3), optax.lamb(0.1, weight_decay=0.3)),
        (Optimizer("rmsprop", 0.1, b2=0.9), optax.rmsprop(0.1)),
        (Optimizer("adagrad", 0.1, eps=1e-7), optax.adagrad(0.1)),
        (Optimizer("sgd", 0.1, clip=0.5), optax.chain(optax.clip_by_global_norm(0.5), optax.sgd(0.1))),
        (
            Optimizer("sgd", 0.1, weight_decay=0.3, momentum=0.9),
            optax.chain(optax.add_decayed_weights(0.3), optax.sgd(0.1, 0.9)),
        ),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_each_is_the_optimiser_of_that_name_in_optax(options, reference):
    close(run(options.build()), run(reference))


def test_all_names_are_covered_above():
    assert set(NAMES) == {"sgd", "adam", "adamw", "lion", "lamb", "rmsprop", "adagrad"}


def test_the_first_rule_that_matches_scales_the_rate():
    rules = [("lora/.*/b", 16.0), ("lora/.*", 0.5)]
    updates, _ = _first_update(Optimizer("sgd", 1.0, lr_rules=rules))
    expected = jax.tree.map(jnp.negative, gradients(0))
    close(updates["lora"]["dense/kernel"]["b"], 16 * expected["lora"]["dense/kernel"]["b"])
    close(updates["lora"]["dense/kernel"]["a"], 0.5 * expected["lora"]["dense/kernel"]["a"])
    close(updates["head"], expected["head"])


def _first_update(options, grads=None):
    transformation = options.build()
    return transformation.update(grads or gradients(0), transformation.init(TRAIN), TRAIN)


def test_decay_rules_leave_biases_alone():
    zero = jax.tree.map(jnp.zeros_like, TRAIN)
    updates, _ = _first_update(Optimizer("adamw", 0.1, weight_decay=0.5, decay_rules=[(".*bias", 0.0)]), zero)
    close(updates["head"]["bias"], jnp.zeros(2))
    close(updates["lora"]["dense/kernel"]["b"], -0.05 * jnp.ones((3, 2)))


def test_frozen_leaves_have_no_state_do_not_move_and_count_not_in_the_norm():
    options = Optimizer("adam", 0.1, clip=1e-3, lr_rules=[("head/.*", 0)])
    updates, state = _first_update(options)
    assert float(jnp.abs(updates["head"]["bias"]).max()) == 0
    sizes = sorted(leaf.size for leaf in jax.tree.leaves(state) if leaf.ndim)
    assert sizes == [6, 6, 6, 6]
    huge = gradients(0) | {"head": {"bias": jnp.full(2, 1e6)}}
    same, _ = _first_update(options, huge)
    close(same["lora"], updates["lora"])


def test_a_rule_for_a_frozen_leaf_is_no_typing_mistake():
    updates, _ = _first_update(
        Optimizer("adamw", lr_rules=[("head/.*", 0)], weight_decay=0.1, decay_rules=[("head/.*", 0)])
    )
    assert float(jnp.abs(updates["head"]["bias"]).max()) == 0


@pytest.mark.parametrize(
    ("options", "reference"),
    [
        (Optimizer(lr=0.3), optax.constant_schedule(0.3)),
        (Optimizer(lr=0.3, schedule="cosine", steps=20, end=0.1), optax.cosine_decay_schedule(0.3, 20, 0.1)),
        (
            Optimizer(lr=0.3, schedule="cosine", steps=20, warmup=5),
            optax.warmup_cosine_decay_schedule(0.0, 0.3, 5, 20),
        ),
        (Optimizer(lr=0.3, schedule="linear", steps=20, end=0.5), optax.linear_schedule(0.3, 0.15, 20)),
    ],
)
def test_schedules_are_those_of_optax(options, reference):
    rate = options.learning_rate()
    for step in (0, 1, 4, 5, 11, 19, 20, 30):
        np.testing.assert_allclose(rate(step), reference(step), rtol=1e-5, atol=1e-8)


def test_a_sweep_over_learning_rates_is_a_vmap():
    def after_one(lr, decay):
        updates, _ = _first_update(Optimizer("adamw", lr, weight_decay=decay))
        return updates["head"]["bias"]

    swept = jax.jit(jax.vmap(after_one))(jnp.array([0.1, 0.2]), jnp.array([0.0, 0.5]))
    close(swept[1], after_one(0.2, 0.5))


def test_bfloat16_stays_bfloat16():
    train = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), TRAIN)
    transformation = Optimizer(weight_decay=0.1, lr_rules=[("head/.*", 0.5)]).build()
    updates, _ = transformation.update(train, transformation.init(train), train)
    assert {leaf.dtype for leaf in jax.tree.leaves(updates)} == {jnp.dtype(jnp.bfloat16)}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (Optimizer("adammw"), "did you mean 'adamw'"),
        (Optimizer(schedule="cosin"), "did you mean 'cosine'"),
        (Optimizer(schedule="cosine"), "needs steps"),
        (Optimizer(schedule="linear", steps=3, warmup=3), "steps > warmup"),
        (Optimizer(lr_rules=[("heads/.*", 0.0)]), "head/bias"),
        (Optimizer(decay_rules=[("heads/.*", 0.0)]), "head/bias"),
    ],
)
def test_errors_name_what_is_near(options, words):
    with pytest.raises(UsageError, match=r"^[^\n]*$") as caught:
        options.build().init(TRAIN)
    assert words in str(caught.value)
