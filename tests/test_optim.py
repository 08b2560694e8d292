"""Optimisers: equal to optax's own, rules, freezing, schedules, clipping, errors."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optax import contrib

from jaxbig.averaging import Average
from jaxbig.directions import Adafactor, Muon
from jaxbig.errors import UsageError
from jaxbig.optim import NAMES, Optimizer
from jaxbig.schedule import Schedule

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
        pytest.param(Optimizer("adam", 0.1), optax.adam(0.1), marks=pytest.mark.slow),
        (Optimizer("adamw", 0.1, weight_decay=0.3), optax.adamw(0.1, weight_decay=0.3)),
        (Optimizer("lion", 0.1, b2=0.99, weight_decay=0.3), optax.lion(0.1, weight_decay=0.3)),
        (Optimizer("lamb", 0.1, eps=1e-6, weight_decay=0.3), optax.lamb(0.1, weight_decay=0.3)),
        (Optimizer("rmsprop", 0.1, b2=0.9), optax.rmsprop(0.1)),
        pytest.param(Optimizer("adagrad", 0.1, eps=1e-7), optax.adagrad(0.1), marks=pytest.mark.slow),
        pytest.param(Optimizer("nadam", 0.1), optax.nadam(0.1), marks=pytest.mark.slow),
        (Optimizer("nadamw", 0.1, weight_decay=0.3), optax.nadamw(0.1, weight_decay=0.3)),
        pytest.param(
            Optimizer("adabelief", 0.1), optax.adabelief(0.1, eps=1e-8, eps_root=1e-8), marks=pytest.mark.slow
        ),
        (
            Optimizer("adafactor", 0.1, adafactor=Adafactor(smallest=2)),
            optax.adafactor(0.1, min_dim_size_to_factor=2),
        ),
        (
            Optimizer("muon", 0.1, weight_decay=0.3, decay_rules=[("head/.*", 0.0)], muon=Muon(nesterov=False)),
            contrib.muon(0.1, weight_decay=0.3, consistent_rms=0.2, nesterov=False),
        ),
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
    covered = "adabelief adafactor adagrad adam adamw lamb lion muon nadam nadamw rmsprop sgd"
    assert sorted(NAMES) == covered.split()


def test_muon_takes_named_stacks_layer_by_layer():
    options = Optimizer("muon", 0.1, muon=Muon(where="layers", rms=None))
    flat = jnp.cos(jnp.arange(24.0)).reshape(2, 3, 4)
    train = {"layers": flat, "table": flat[0]}
    ours, _ = options.build().update(train, options.build().init(train), train)
    reference = contrib.muon(0.1)
    for layer in range(2):
        theirs, _ = reference.update({"w": flat[layer]}, reference.init({"w": flat[layer]}), {"w": flat[layer]})
        close(ours["layers"][layer], theirs["w"], rtol=1e-5)
    close(ours["table"], -0.1 * jnp.sign(flat[0]), rtol=1e-5)  # Adam's first step
    with pytest.raises(UsageError, match="head/bias has shape"):
        Optimizer("muon", muon=Muon(where=".*bias")).build().init(TRAIN)


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
        (
            Optimizer(lr=0.3, schedule=Schedule("step", milestones=(4, 11), gamma=0.5)),
            optax.piecewise_constant_schedule(0.3, {4: 0.5, 11: 0.5}),
        ),
        (
            Optimizer(lr=0.3, schedule=Schedule("wsd", steps=20, warmup=4, cooldown=9)),
            optax.join_schedules(
                [optax.linear_schedule(0, 0.3, 4), optax.constant_schedule(0.3), optax.linear_schedule(0.3, 0, 9)],
                [4, 11],
            ),
        ),
        (
            Optimizer(lr=0.3, schedule=Schedule("rsqrt", warmup=4)),
            lambda step: 0.3 * min(step / 4, (4 / max(step, 1)) ** 0.5),  # Vaswani et al., peak at the warm-up's end
        ),
    ],
)
def test_schedules_are_those_of_optax_or_the_formula(options, reference):
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
        (Optimizer(thaw=[("heads/.*", 3)]), "head/bias"),
        (Optimizer(lr_rules=[("head/.*", np.ones(3))]), "head/bias has shape (2,)"),
        (Optimizer(schedule=Schedule("onecycle", steps=3)), "warmup > 0"),
        (Optimizer(schedule=Schedule("wsd", steps=3, warmup=1, cooldown=3)), "cooldown <= steps - warmup"),
        (Optimizer(schedule=Schedule("step")), "milestones"),
        (Optimizer(schedule=Schedule("rsqrt"), warmup=3), "to the Schedule"),
        (Optimizer(state="bfloat"), "did you mean 'bfloat16'"),
        (Optimizer(ema=1.5), "from 0 to 1"),
        (Optimizer(ema=Average(rule="uniformly")), "did you mean 'uniform'"),
        (Optimizer(ema=Average(every=0)), "every >= 1"),
    ],
)
def test_errors_name_what_is_near(options, words):
    with pytest.raises(UsageError, match=r"^[^\n]*$") as caught:
        options.build().init(TRAIN)
    assert words in str(caught.value)


@pytest.mark.parity
@pytest.mark.parametrize("shape", ["cosine", "linear", "onecycle", "step"])
def test_schedules_are_those_of_torch(shape):
    import torch
    from torch.optim import lr_scheduler

    options, theirs = {
        "onecycle": (
            Schedule("onecycle", steps=19, warmup=5, end=0.04 / 1e4),
            lambda o: lr_scheduler.OneCycleLR(o, 0.3, total_steps=20, pct_start=0.3, cycle_momentum=False),
        ),
        "step": (Schedule("step", milestones=(4, 11)), lambda o: lr_scheduler.MultiStepLR(o, [4, 11], 0.1)),
        "cosine": (Schedule("cosine", steps=19, end=0.1), lambda o: lr_scheduler.CosineAnnealingLR(o, 19, 0.03)),
        "linear": (Schedule("linear", steps=19), lambda o: lr_scheduler.PolynomialLR(o, 19)),
    }[shape]
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.3)
    schedule, rate = theirs(optimizer), Optimizer(lr=0.3, schedule=options).learning_rate()
    for step in range(19):
        np.testing.assert_allclose(rate(step), optimizer.param_groups[0]["lr"], rtol=1e-5, atol=1e-8)
        optimizer.step()
        schedule.step()


@pytest.mark.parametrize("decay", [np.array([1.0, 0.0]), 0.5])
def test_an_array_is_a_factor_for_each_layer_of_a_stack(decay):
    train = {"stack": jnp.ones((2, 3)), "bias": jnp.ones(3)}
    grads = {"stack": jnp.arange(6.0).reshape(2, 3), "bias": jnp.ones(3)}
    options = Optimizer(
        "adamw", 1.0, weight_decay=0.5, lr_rules=[("stack", [0.25, 1.0])], decay_rules=[("stack", decay)]
    )
    updates, _ = options.build().update(grads, options.build().init(train), train)
    direction = np.sign(np.arange(6.0).reshape(2, 3)) + 0.5 * np.broadcast_to(decay, 2)[:, None]
    close(updates["stack"], -np.array([[0.25], [1.0]]) * direction, rtol=1e-5)
