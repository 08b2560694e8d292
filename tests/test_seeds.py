"""Seeds as one vmapped program equal the seeds one by one."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxbig import chain, full, lora, usage
from jaxbig.data import Loader
from jaxbig.objective import classify
from jaxbig.seeds import fit_seeds, init_seeds, seed_batches
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
