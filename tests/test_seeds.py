"""Seeds as one vmapped program equal the seeds one by one."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxbig import chain, full, inject_hyperparams, lora, usage
from jaxbig.data import Loader
from jaxbig.errors import UsageError
from jaxbig.gradient import SAM, Accumulate
from jaxbig.objective import classify
from jaxbig.optim import Optimizer
from jaxbig.seeds import fit_seeds, fit_sweep, grid, init_seeds, init_sweep, seed_batches
from jaxbig.step import init_state, make_step

MODEL = nn.Sequential([nn.Dense(16), nn.relu, nn.Dense(3)])
DATA = {
    "image": np.asarray(jax.random.normal(jax.random.key(0), (24, 8))),
    "label": np.arange(24, dtype=np.int32) % 3,
}
ROWS = [np.arange(0, 12), np.arange(6, 18), np.arange(12, 24)]
TECHNIQUE = chain(lora(rank=2, where="layers_0/kernel"), full(where="layers_2/.*"))
ADAM = optax.adam(1e-2)


def test_vmapped_equals_one_by_one_and_the_base_is_shared():
    params = MODEL.init(jax.random.key(1), DATA["image"])["params"]
    uses = usage(lambda p, x: MODEL.apply({"params": p}, x), params, DATA["image"])
    keys = jax.random.split(jax.random.key(2), 3)
    start = init_seeds(TECHNIQUE, ADAM, keys, lambda key: params, uses)
    base = start[0]
    assert base["layers_0"]["kernel"].shape == (8, 16)
    states, losses = fit_seeds(classify(MODEL), TECHNIQUE, ADAM, start, seed_batches(DATA, ROWS, 4, 5, seed=7))
    assert losses.shape == (5, 3)
    step = make_step(classify(MODEL), TECHNIQUE, ADAM)
    for i, key in enumerate(keys):
        first, _ = jax.random.split(key)
        alone, state = init_state(TECHNIQUE.init(first, params, uses), ADAM, key)
        loader = Loader({"row": ROWS[i]}, 4, seed=7 + i)
        for number in range(5):
            epoch, at = divmod(number, loader.steps)
            chosen = ROWS[i][loader.index(epoch)[0][at]]
            state, metrics = step(alone, state, {name: array[chosen] for name, array in DATA.items()})
            assert float(metrics["loss"][0] / metrics["loss"][1]) == pytest.approx(float(losses[number, i]), rel=1e-5)
        mine = jax.tree.map(lambda leaf, i=i: leaf[i], states.split.train)
        for a, b in zip(jax.tree.leaves(mine), jax.tree.leaves(state.split.train), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def test_seeds_differ():
    params_of = lambda key: MODEL.init(key, jnp.ones((1, 8)))["params"]  # noqa: E731
    _, states = init_seeds(full(), ADAM, jax.random.split(jax.random.key(0), 2), params_of, {})
    first, second = states.split.train["layers_0/kernel"]
    assert not jnp.array_equal(first, second)


def test_a_sweep_is_one_program_and_equals_its_runs_one_by_one():
    params = MODEL.init(jax.random.key(1), DATA["image"])["params"]
    uses = usage(lambda p, x: MODEL.apply({"params": p}, x), params, DATA["image"])
    traces = []

    def objective(*arguments):
        traces.append(1)
        return classify(MODEL)(*arguments)

    def build(numbers):
        tuned = inject_hyperparams(lora)(rank=2, where="layers_0/kernel", alpha=numbers["alpha"])
        options = Optimizer("adamw", numbers["lr"], weight_decay=numbers["decay"], ema=0.5)
        return chain(tuned, full(where="layers_2/.*")), options.build()

    runs = grid(lr=[1e-3, 3e-2], alpha=[1.0, 8.0], key=jax.random.split(jax.random.key(2), 2))
    runs["decay"] = 10 * runs["lr"]
    keys, numbers = runs.pop("key"), runs
    batches = list(seed_batches(DATA, [np.arange(24)] * 8, 4, 3))
    start = init_sweep(build, numbers, keys, lambda key: params, uses)
    assert start[0]["layers_0"]["kernel"].shape == (8, 16)
    states, losses = fit_sweep(objective, build, numbers, start, batches)
    assert losses.shape == (3, 8)
    assert len(traces) == 1
    for i in (0, 5, 7):
        transform, optimizer = build({name: float(values[i]) for name, values in numbers.items()})
        split = transform.init(jax.random.split(keys[i])[0], params, uses)
        base, state = init_state(split, optimizer, keys[i])
        step = make_step(classify(MODEL), transform, optimizer)
        for batch in batches:
            state, _ = step(base, state, {name: array[i] for name, array in batch.items()})
        mine = jax.tree.map(lambda leaf, i=i: leaf[i], (states.split, states.opt_state))
        for a, b in zip(jax.tree.leaves(mine), jax.tree.leaves((state.split, state.opt_state)), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_ways_to_the_gradient_are_those_of_single_runs():
    params = MODEL.init(jax.random.key(1), DATA["image"])["params"]
    uses = usage(lambda p, x: MODEL.apply({"params": p}, x), params, DATA["image"])
    keys, ways = jax.random.split(jax.random.key(2), 2), (Accumulate(2), SAM(0.5))
    batches = list(seed_batches(DATA, ROWS[:2], 4, 3))
    found = {}
    for how in (ways, ()):
        start = init_seeds(TECHNIQUE, ADAM, keys, lambda key: params, uses)
        found[how], _ = fit_seeds(classify(MODEL), TECHNIQUE, ADAM, start, batches, how)
    base, state = init_state(TECHNIQUE.init(jax.random.split(keys[1])[0], params, uses), ADAM, keys[1])
    step = make_step(classify(MODEL), TECHNIQUE, ADAM, ways)
    for batch in batches:
        state, _ = step(base, state, {name: array[1] for name, array in batch.items()})
    mine, plain = (jax.tree.leaves(jax.tree.map(lambda leaf: leaf[1], found[how].split.train)) for how in (ways, ()))
    for a, b in zip(mine, jax.tree.leaves(state.split.train), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
    assert any(float(abs(a - b).max()) > 1e-4 for a, b in zip(mine, plain, strict=True))


def test_a_sweep_needs_a_number_for_each_run():
    with pytest.raises(UsageError, match="3 numbers for 'lr', but 2 keys"):
        init_sweep(lambda numbers: (full(), ADAM), {"lr": jnp.ones(3)}, jax.random.split(jax.random.key(0), 2), str, {})
