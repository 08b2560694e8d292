"""Moments in bfloat16 and 8 bits: the code itself, its size, and the training it leaves (almost) as it was."""

import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from devices import on_devices

from jaxbig import slots
from jaxbig.data import load_digits
from jaxbig.errors import UsageError
from jaxbig.optim import Optimizer
from jaxbig.tree import nbytes

Auto = jax.sharding.AxisType.Auto


def dynamic_levels(signed):
    """The dynamic map from its bits (Dettmers et al. 2021, section 1.3): zeros before the first 1 are the exponent,
    the bits after it a linear fraction, at the middles of its parts of [0.1, 1]."""
    found = {0.0, 1.0}
    for byte in range(1, 128 if signed else 256):
        leading = byte.bit_length() - 1
        share = (byte - 2**leading + 0.5) / 2**leading
        exponent = leading - (6 if signed else 7)
        if exponent >= -6:
            value = (0.1 + 0.9 * share) * 10.0**exponent
            found |= {value, -value} if signed else {value}
    return np.array(sorted(found))


@pytest.mark.parametrize("signed", [True, False])
def test_the_levels_are_those_of_the_paper(signed):
    np.testing.assert_allclose(slots.levels(signed), dynamic_levels(signed), rtol=1e-6)
    assert len(slots.levels(signed)) == 256


@pytest.mark.parametrize("signed", [True, False])
def test_codes_are_the_nearest_levels_of_each_run_of_256(signed):
    array = jax.random.normal(jax.random.key(0), (3, 10, 50)) * jnp.geomspace(1e-9, 1e3, 50)
    array = array if signed else array**2
    coded = slots.encode(array, signed)
    flat, table = np.asarray(array).ravel(), np.asarray(slots.levels(signed))
    flat = flat if signed else np.sqrt(flat)
    for start in range(0, flat.size, 256):
        run, scale = flat[start : start + 256], np.abs(flat[start : start + 256]).max()
        assert coded.scale[start // 256] == scale
        nearest = table[np.abs(run[:, None] / scale - table).argmin(1)] * scale
        decoded = np.asarray(slots.decode(coded, jnp.float32, signed)).ravel()[start : start + 256]
        np.testing.assert_allclose(decoded, nearest if signed else nearest**2, rtol=1e-5)
    zero = slots.encode(jnp.zeros(5000), signed)
    assert not np.any(slots.decode(zero, jnp.float32, signed))


def test_rounding_at_random_is_right_on_average_and_exact_where_it_can_be():
    x = jnp.full((4096,), 1 + 3 * 2.0**-10)
    rounded = slots.round_randomly(x, jax.random.key(0)).astype(jnp.float32)
    assert set(rounded.tolist()) == {1.0, 1 + 2.0**-7}
    np.testing.assert_allclose(rounded.mean(), x[0], atol=4 * 2.0**-7 * 0.5 / 64)
    exact = jnp.array([0.0, -1.5, 2.0**-126, jnp.inf, -jnp.inf, jnp.nan])
    np.testing.assert_array_equal(slots.round_randomly(exact, jax.random.key(1)).astype(jnp.float32), exact)


@pytest.mark.parametrize(("state", "most"), [("int8", 2.1), pytest.param("bfloat16", 4.0, marks=pytest.mark.slow)])
def test_bytes_of_both_moments(state, most):
    train = {"large": jnp.ones((300, 301)), "small": jnp.ones(4095)}
    kept = Optimizer("adamw", state=state).build().init(train)
    moments = [leaf for leaf in jax.tree.leaves(kept) if leaf.ndim]
    small = [leaf for leaf in moments if leaf.shape == (4095,)]
    assert [leaf.dtype.name for leaf in small] == ["float32", "float32"]
    assert nbytes([leaf for leaf in moments if leaf.shape != (4095,)]) / train["large"].size <= most


def test_small_leaves_are_updated_bit_for_bit_as_ever():
    train = {"small": jnp.linspace(-1, 1, 100)}
    plain, packed = (Optimizer("adamw", 0.1, state=state).build() for state in (None, "int8"))
    states = [plain.init(train), packed.init(train)]
    for _ in range(3):
        (ours, states[1]), (theirs, states[0]) = (
            packed.update(train, states[1], train),
            plain.update(train, states[0], train),
        )
        np.testing.assert_array_equal(ours["small"], theirs["small"])


@pytest.fixture(scope="module")
def digits():
    data = load_digits()
    x, y = jnp.asarray(data["image"]).reshape(-1, 64), jnp.asarray(data["label"])
    model = nn.Sequential([nn.Dense(64), nn.relu, nn.Dense(64), nn.relu, nn.Dense(10)])
    start = model.init(jax.random.key(0), x[:1])["params"]

    def train(options, steps=150):
        optimizer = options.build()

        def loss(params, rows):
            logits = model.apply({"params": params}, x[rows])
            return optax.softmax_cross_entropy_with_integer_labels(logits, y[rows]).mean()

        def step(carry, key):
            params, state = carry
            value, grads = jax.value_and_grad(loss)(params, jax.random.randint(key, (64,), 0, len(y)))
            updates, state = optimizer.update(grads, state, params)
            return (optax.apply_updates(params, updates), state), value

        keys = jax.random.split(jax.random.key(1), steps)
        (params, _), losses = jax.jit(lambda: jax.lax.scan(step, (start, optimizer.init(start)), keys))()
        return params, losses

    def gone(params):
        return jnp.concatenate([jnp.ravel(a - b) for a, b in zip(*map(jax.tree.leaves, (params, start)), strict=True)])

    params, losses = train(Optimizer("adamw", 3e-3, weight_decay=0.01))
    assert losses[-10:].mean() < losses[0] / 20
    return train, gone, gone(params), losses


@pytest.mark.parametrize("state", [pytest.param("bfloat16", marks=pytest.mark.slow), "int8"])
def test_training_on_digits_is_that_of_float32(digits, state):
    train, gone, exact, losses = digits
    params, ours = train(Optimizer("adamw", 3e-3, weight_decay=0.01, state=state))
    # Measured: the parameters end 2% (bfloat16) and 10% (int8) of the way gone from where they end in float32.
    assert jnp.linalg.norm(gone(params) - exact) < 0.2 * jnp.linalg.norm(exact)
    np.testing.assert_allclose(ours, losses, atol=0.02)


def test_why_roots_of_second_moments_are_coded():
    """A gradient of 1e-4 beside one of 1: its square is under the smallest level, and the step would be m / eps."""
    squares = jnp.ones(4096).at[1::2].set(1e-8)
    assert not np.any(slots.decode(slots.encode(squares, True), jnp.float32, True)[1::2])
    kept = slots.decode(slots.encode(squares, False), jnp.float32, False)
    np.testing.assert_allclose(kept, squares, rtol=0.12)


@pytest.mark.slow
def test_why_the_levels_are_not_evenly_spaced(digits, monkeypatch):
    train, gone, exact, _ = digits
    even = {True: np.linspace(-1, 1, 256, dtype=np.float32), False: np.linspace(0, 1, 256, dtype=np.float32)}
    monkeypatch.setattr(slots, "levels", even.get)
    params, _ = train(Optimizer("adamw", 3e-3, weight_decay=0.01, state="int8"))
    assert not jnp.linalg.norm(gone(params) - exact) < 100 * jnp.linalg.norm(exact)


def test_another_form_is_an_error():
    with pytest.raises(UsageError, match="did you mean 'int8'"):
        slots.stored(optax.adam(0.1), "int4")


def moved(state, spec):
    """What one Adam step over eight devices moves between them: the shapes of what is gathered or exchanged."""
    mesh, P = jax.make_mesh((8,), ("fsdp",), axis_types=(Auto,)), jax.sharding.PartitionSpec
    optimizer = slots.stored(optax.adam(1e-2), state)
    w = jax.random.normal(jax.random.key(0), (64, 1024))
    of = {2: spec, 1: P("fsdp"), 0: P()}  # the scales of blocks lie where their blocks do

    def step(w, state, grads):
        updates, state = optimizer.update(grads, state, w)
        return w + updates, state

    whole = (w, optimizer.init(w), jnp.cos(w))
    spread = jax.tree.map(lambda leaf: jax.sharding.NamedSharding(mesh, of[leaf.ndim]), whole)
    compiled = jax.jit(step, in_shardings=spread, out_shardings=spread[:2]).lower(*whole).compile()
    alone, together = jax.jit(step)(*whole), compiled(*jax.device_put(whole, spread))
    jax.tree.map(np.testing.assert_array_equal, alone, together)
    text = compiled.as_text()
    return re.findall(r"= \(?\w+\[([\d,]*)\]\S* (?:all-gather|all-to-all|collective-permute)\(", text)


def over_eight_devices():
    assert jax.device_count() == 8
    P = jax.sharding.PartitionSpec
    for state in slots.FORMS:
        assert moved(state, P("fsdp")) == [], state
    assert moved("bfloat16", P(None, "fsdp")) == []
    assert moved("int8", P(None, "fsdp"))


@pytest.mark.slow
def test_over_a_mesh_the_step_is_the_same_and_moves_nothing_where_blocks_are_whole():
    done = on_devices(8, "-c", "import test_slots; test_slots.over_eight_devices()")
    assert done.returncode == 0, done.stderr[-4000:]
