"""Gradual unfreezing: closed leaves do not move by a bit, open ones start as if it were step 0, one trace."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxbig.optim import Optimizer

TRAIN = {"body": {"w": jnp.linspace(-1, 1, 4), "b": jnp.ones(2)}, "head": jnp.ones(3)}
THAW = [("body/b", 5), ("body/.*", 3)]


def gradients(train, step):
    return jax.tree.map(lambda leaf: jnp.cos(3 * leaf + step), train)


def run(options, steps=7, train=TRAIN, first=0):
    transformation, traces = options.build(), []

    @jax.jit
    def one(train, state, step):
        traces.append(1)
        updates, state = transformation.update(gradients(train, step), state, train)
        return optax.apply_updates(train, updates), state, updates

    seen, state = [(train, transformation.init(train), None)], None
    for step in range(first, first + steps):
        train, state, _ = seen[-1]
        seen.append(one(train, state, step))
    assert len(traces) == 1
    return seen


@pytest.mark.parametrize("name", ["adamw", "sgd", pytest.param("lamb", marks=pytest.mark.slow), "muon"])
def test_closed_leaves_and_their_state_stay_bit_for_bit(name):
    options = Optimizer(name, 0.1, weight_decay=0.1, momentum=0.9, clip=0.5, thaw=THAW)
    seen = run(options)
    for path, start in (("w", 3), ("b", 5)):
        for step, (train, _, updates) in enumerate(seen[1:]):
            still = np.array_equal(train["body"][path], TRAIN["body"][path])
            assert still == (step < start), (path, step)
            assert (not np.any(updates["body"][path])) == (step < start)
    (first, last) = (jax.tree.leaves(seen[i][1][3].stages[0]) for i in (0, 5))
    for before, after in zip(first, last, strict=True):
        np.testing.assert_array_equal(before, after)


def test_what_opens_takes_the_steps_of_a_new_run():
    """Clipping and schedule off, Adam treats each leaf by itself: so 4 steps from step 3 on are those of a new run."""
    seen = run(Optimizer("adam", 0.1, thaw=[("body/.*", 3)]))
    fresh = run(Optimizer("adam", 0.1), steps=4, train={"body": TRAIN["body"]}, first=3)
    jax.tree.map(np.testing.assert_array_equal, seen[7][0]["body"], fresh[4][0]["body"])


def test_closed_leaves_do_not_count_in_the_norm():
    alone = run(Optimizer("sgd", 0.1, clip=0.01), steps=2, train={"head": TRAIN["head"]})
    beside = run(Optimizer("sgd", 0.1, clip=0.01, thaw=[("body/.*", 9)]), steps=2)
    np.testing.assert_array_equal(alone[-1][0]["head"], beside[-1][0]["head"])


def test_the_steps_may_be_traced_numbers():
    def after_two(start):
        optimizer = Optimizer("sgd", 1.0, thaw=[("head", start)]).build()
        train, state = {"head": jnp.zeros(())}, optimizer.init({"head": jnp.zeros(())})
        for _ in range(2):
            updates, state = optimizer.update({"head": jnp.float32(-1)}, state, train)
            train = optax.apply_updates(train, updates)
        return train["head"]

    assert jax.jit(jax.vmap(after_two))(jnp.array([0, 1, 2])).tolist() == [2, 1, 0]
