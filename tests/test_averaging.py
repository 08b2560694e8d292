"""Averages of what is trained: the recursions in NumPy, torch's own, and where they are found."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxbig import checkpoint
from jaxbig.averaging import Average, averaged, view
from jaxbig.errors import UsageError
from jaxbig.optim import Optimizer
from jaxbig.step import TrainState
from jaxbig.transform import Split

TRAIN = {"full": {"dense/kernel": jnp.linspace(-1, 1, 6).reshape(2, 3)}, "head": jnp.ones(2)}


def run(transformation, steps=9, train=TRAIN):
    """What is trained after each step, and the last state."""

    @jax.jit
    def one(train, state, step):
        grads = jax.tree.map(lambda leaf: jnp.cos(3 * leaf + step).astype(leaf.dtype), train)
        updates, state = transformation.update(grads, state, train)
        return optax.apply_updates(train, updates), state

    trains, state = [train], transformation.init(train)
    for step in range(steps):
        train, state = one(trains[-1], state, step)
        trains.append(train)
    return trains, state


def weights(average: Average, count: int) -> np.ndarray:
    """The closed form: how much each of `count` averaged parameters weighs."""
    ages = np.arange(count)[::-1]
    if average.rule == "uniform":
        return np.full(count, 1 / count)
    if average.rule == "debiased":
        powers = average.decay**ages
        return powers / powers.sum()
    decays = np.full(count, average.decay)
    if average.rule == "warmup":
        decays = np.minimum(decays, (1 + np.arange(count)) / (10 + np.arange(count)))
    shares = np.where(np.arange(count) == 0, 1.0, 1 - decays)
    return shares * np.append(np.cumprod((1 - shares)[::-1])[::-1][1:], 1)


@pytest.mark.parametrize(
    "average",
    [Average(0.8), Average(0.8, "warmup"), Average(0.8, "debiased"), Average(rule="uniform", every=3, start=2)],
    ids=lambda average: average.rule,
)
def test_the_average_is_the_weighted_sum_of_what_came_after_each_update(average):
    trains, state = run(Optimizer("sgd", 0.3, ema=average).build())
    counted = trains[1 + average.start :: average.every]
    shares = weights(average, len(counted))
    np.testing.assert_allclose(shares.sum(), 1, rtol=1e-12)
    expected = jax.tree.map(lambda *leaves: np.tensordot(shares, np.stack(leaves), 1), *counted)
    mean = averaged(state, trains[-1])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-6, atol=1e-6), mean, expected)
    assert jax.tree.structure(mean) == jax.tree.structure(TRAIN)


def test_an_average_changes_no_bit_of_the_training_and_is_found_in_any_state():
    plain, _ = run(Optimizer("adamw", 0.1, weight_decay=0.1).build())
    beside, state = run(Optimizer("adamw", 0.1, weight_decay=0.1, ema=0.9).build())
    jax.tree.map(np.testing.assert_array_equal, plain[-1], beside[-1])
    several = optax.chain(optax.clip(1e9), optax.MultiSteps(Optimizer("sgd", 0.1, ema=0.5).build(), 2))
    trains, deep = run(several, steps=2)
    jax.tree.map(np.testing.assert_array_equal, averaged(deep, trains[-1]), trains[-1])
    with pytest.raises(UsageError, match="keeps 2 averages"):
        averaged((state, deep), trains[-1])


def test_before_the_start_it_is_the_first_parameters_and_frozen_leaves_are_their_own():
    options = Optimizer("sgd", 0.1, ema=Average(start=5), lr_rules=[("head", 0)])
    trains, state = run(options.build(), steps=3)
    jax.tree.map(np.testing.assert_array_equal, averaged(state, trains[-1]), TRAIN)


def test_bfloat16_parameters_have_a_float32_average():
    train = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), TRAIN)
    _, state = run(Optimizer("sgd", 0.1, ema=0.9).build(), steps=1, train=train)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(state) if leaf.ndim} == {"float32"}
    assert {leaf.dtype.name for leaf in jax.tree.leaves(averaged(state, train))} == {"bfloat16"}


def test_a_checkpoint_holds_it_bit_for_bit(tmp_path):
    transformation = Optimizer("adam", 0.1, ema=Average(0.9, "debiased"), state="int8", thaw=[("head", 2)]).build()
    train = TRAIN | {"large": jnp.linspace(-1, 1, 5000)}
    _, state = run(transformation, steps=3, train=train)
    checkpoint.save(tmp_path, 3, state)
    restored = checkpoint.restore(tmp_path, jax.eval_shape(transformation.init, train))
    assert jax.tree.structure(restored) == jax.tree.structure(state)
    jax.tree.map(np.testing.assert_array_equal, restored, state)


def test_a_state_is_seen_with_its_average_and_its_other_parts():
    trains, opt_state = run(Optimizer("sgd", 0.1, ema=0.9).build(), steps=2)
    state = TrainState(jnp.int32(2), Split(None, trains[-1], {}), {"seen": 1}, opt_state, jax.random.key(0))
    seen = view(state)
    jax.tree.map(np.testing.assert_array_equal, seen.split.train, averaged(opt_state, trains[-1]))
    assert seen.vars is state.vars
    assert seen.opt_state is opt_state


@pytest.mark.parity
@pytest.mark.parametrize("average", [Average(0.8), Average(rule="uniform")], ids=lambda average: average.rule)
def test_it_is_the_one_of_torch(average):
    import torch
    from torch.optim import swa_utils

    trains, state = run(Optimizer("sgd", 0.3, ema=average).build())
    model = torch.nn.Linear(3, 2)
    kind = swa_utils.get_ema_avg_fn(0.8) if average.rule == "ema" else swa_utils.get_swa_avg_fn()
    theirs = swa_utils.AveragedModel(model, avg_fn=kind)
    for train in trains[1:]:
        with torch.no_grad():
            model.weight.copy_(torch.tensor(np.asarray(train["full"]["dense/kernel"])))
            model.bias.copy_(torch.tensor(np.asarray(train["head"])))
        theirs.update_parameters(model)
    ours = averaged(state, trains[-1])
    np.testing.assert_allclose(ours["full"]["dense/kernel"], theirs.module.weight.detach().numpy(), rtol=2e-6)
    np.testing.assert_allclose(ours["head"], theirs.module.bias.detach().numpy(), rtol=2e-6)
