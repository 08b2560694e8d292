"""A decoder that goes on from its cache says what it says of the whole text, however the rows are padded or packed.

Every test calls the same few compiled programs: 9 tokens without a cache, 5 or 1 with one.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxbig.errors import UserError
from jaxbig.models.cache import append, empty_cache, place
from jaxbig.models.llama import Llama
from jaxbig.models.transformer import stack_layers

V, S, T, FIRST = 13, 12, 9, 5
SIZES = {"vocabulary": V, "width": 8, "layers": 2, "heads": 4, "kv_heads": 2, "head_width": 4, "hidden": 10}
TOKENS = np.random.default_rng(0).integers(0, V, (2, T))
ALONG, ONES = np.arange(T)[None].repeat(2, 0), np.ones((2, T), int)


@pytest.fixture(autouse=True)
def exact():
    with jax.enable_x64(True):
        yield


class Called:
    """A model, jitted with parameters none of which is zero; `traced` has the shapes that it was traced with."""

    def __init__(self, params=None, **options):
        self.model, self.traced = Llama(**SIZES, windows=(None, 3), biases=("qkv",), **options), []
        if params is None:
            random = np.random.default_rng(1)
            shapes = jax.eval_shape(self.model.init, jax.random.key(0), TOKENS)["params"]
            params = jax.tree.map(lambda leaf: jnp.asarray(random.normal(size=leaf.shape) * 0.5), shapes)
        self.params = params
        self.jitted = jax.jit(self.call)

    def call(self, tokens, positions, segments, cache):
        self.traced.append(tokens.shape)
        return self.model.apply({"params": self.params}, tokens, positions, segments, cache=cache)

    def __call__(self, tokens, positions=None, segments=None, cache=None):
        count = tokens.shape[1]
        positions = ALONG[:, :count] if positions is None else positions
        return self.jitted(tokens, positions, ONES[:, :count] if segments is None else segments, cache)

    def empty(self, length=S, **options):
        return empty_cache(self.model, 2, length, jnp.float64, **options)

    def steps(self, cache, tokens, positions):
        found = []
        for t in range(tokens.shape[1]):
            logits, cache = self(tokens[:, t : t + 1], positions[:, t : t + 1], cache=cache)
            found.append(logits)
        return jnp.concatenate(found, axis=1), cache


@pytest.fixture(scope="module")
def models():
    """Unrolled and scanned, one and the same function."""
    with jax.enable_x64(True):
        unrolled = Called()
        return {"unrolled": unrolled, "scanned": Called(stack_layers(unrolled.params), scan_layers=True)}


@pytest.fixture(scope="module")
def whole(models):
    with jax.enable_x64(True):
        return models["unrolled"](TOKENS)


def close(ours, expected, atol=1e-12):
    np.testing.assert_allclose(ours, expected, rtol=0, atol=atol)


@pytest.mark.parametrize("kind", [pytest.param("unrolled", marks=pytest.mark.slow), "scanned"])
def test_prefill_and_steps_are_the_whole(models, whole, kind):
    model = models[kind]
    first, cache = model(TOKENS[:, :FIRST], cache=model.empty())
    rest, cache = model.steps(cache, TOKENS[:, FIRST:], ALONG[:, FIRST:])
    close(jnp.concatenate([first, rest], axis=1), whole)
    assert int(cache.index) == T
    assert cache.segments.tolist() == [[1] * T + [0] * (S - T)] * 2
    assert cache.positions[:, :T].tolist() == ALONG.tolist()
    assert sorted(set(model.traced) - {(2, T)}) == [(2, 1), (2, FIRST)]  # one program for all steps
    assert len(model.traced) == len(set(model.traced))


def test_scanned_is_unrolled_and_a_cache_goes_back(models, whole):
    model = models["scanned"]
    close(model(TOKENS), whole)
    _, cache = model(TOKENS[:, :FIRST], cache=model.empty())
    _, ahead = model.steps(cache, 1 - TOKENS[:, FIRST:] % 2, ALONG[:, FIRST:])  # other tokens than these
    back = ahead._replace(index=jnp.int32(T - FIRST))
    rest, _ = model(TOKENS[:, T - FIRST :], ALONG[:, T - FIRST :], cache=back)
    close(rest, whole[:, T - FIRST :])


@pytest.mark.parametrize("side", ["left", "right"])
def test_padded_rows_are_rows_alone(models, whole, side):
    """Prompts of 5 and 3 tokens, the second padded, then two more tokens each."""
    model, lengths = models["scanned"], np.array([FIRST, 3])
    slots = np.arange(FIRST)[None]
    there = slots >= FIRST - lengths[:, None] if side == "left" else slots < lengths[:, None]
    tokens, positions = np.full((2, FIRST), 7), np.zeros((2, FIRST), int)
    for row, length in enumerate(lengths):
        tokens[row, there[row]], positions[row, there[row]] = TOKENS[row, :length], np.arange(length)
    logits, cache = model(tokens, positions, there.astype(int), model.empty())
    further = np.stack([TOKENS[row, length : length + 2] for row, length in enumerate(lengths)])
    rest, _ = model.steps(cache, further, lengths[:, None] + np.arange(2))
    for row, length in enumerate(lengths):
        close(logits[row, there[row]], whole[row, :length])
        close(rest[row], whole[row, length : length + 2])


def test_packed_texts_do_not_see_each_other(models):
    model, cut = models["scanned"], 4
    places = np.array([[*range(cut), *range(T - cut)]] * 2), np.array([[1] * cut + [2] * (T - cut)] * 2)
    logits = model(TOKENS, *places)
    alone = model(np.roll(TOKENS, -cut, axis=1))[:, : T - cut]  # what comes after it, the causal mask hides
    close(logits[:, :cut], model(TOKENS)[:, :cut])
    close(logits[:, cut:], alone)
    other = TOKENS.copy()
    other[:, :cut] = (other[:, :cut] + 1) % V
    changed = model(other, *places)
    assert np.array_equal(changed[:, cut:], logits[:, cut:])
    assert not np.array_equal(changed[:, :cut], logits[:, :cut])


def test_int8_is_off_by_its_bound(models, whole):
    model = models["scanned"]
    _, exact = model(TOKENS[:, :FIRST], cache=model.empty())
    first, cache = model(TOKENS[:, :FIRST], cache=model.empty(int8=True))
    close(first, whole[:, :FIRST])  # what is new is read as it is
    for codes, true in [(cache.keys, exact.keys), (cache.values, exact.values)]:
        assert codes.code.dtype == jnp.int8
        error = np.abs(np.asarray(codes.code) * np.asarray(codes.scale)[..., None] - true)
        assert (error <= np.abs(true).max(-1, keepdims=True) * (1 / 254 + 1e-12)).all()
        assert error.max() > 0
    rest, _ = model.steps(cache, TOKENS[:, FIRST:], ALONG[:, FIRST:])
    assert 0 < np.abs(rest - whole[:, FIRST:]).max() < 0.02 * np.abs(whole).max()


@pytest.mark.parametrize(("scan", "layers"), [(False, 0.1), (True, 2.2)])
def test_a_donated_cache_is_written_in_place(scan, layers):
    """Beside the cache a step needs next to nothing; scanned, a copy of one layer's keys and values."""
    model = Llama(**SIZES | {"head_width": 64}, scan_layers=scan)
    params = jax.eval_shape(model.init, jax.random.key(0), TOKENS)["params"]
    cache = jax.eval_shape(lambda: empty_cache(model, 2, 4096))
    step = jax.jit(lambda params, tokens, cache: model.apply({"params": params}, tokens, cache=cache), donate_argnums=2)
    memory = step.lower(params, TOKENS[:, :1], cache).compile().memory_analysis()
    assert memory.alias_size_in_bytes == sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(cache))
    keys_of_a_layer = 2 * 2 * 4096 * 64 * 4
    assert memory.temp_size_in_bytes < layers * keys_of_a_layer


def test_a_cache_that_is_full(models):
    model = models["scanned"]
    with pytest.raises(UserError, match="9 tokens do not fit 8 slots"):
        model(TOKENS, cache=model.empty(length=8))
    _, cache = model(TOKENS[:, :1], cache=model.empty()._replace(index=jnp.int32(S - 1)))
    beyond, _ = model(TOKENS[:, :1], cache=cache)
    assert jnp.isnan(beyond).all()


def test_where_tokens_stand_by_default(models):
    cache = models["scanned"].empty()._replace(index=jnp.int32(4))
    at = place(TOKENS, None, None, cache)
    assert at.positions.tolist() == (ALONG + 4).tolist()
    assert at.segments.tolist() == ONES.tolist()
    assert place(TOKENS, None, None, None).positions.tolist() == [ALONG[0].tolist()]


@pytest.mark.parametrize("value", [-1.0, 0.0, 1.0, np.nan])
def test_writing_waits_for_any_value(models, value):
    """What orders the write after the reads never moves it."""
    cache = models["unrolled"].empty()
    new = tuple(jnp.ones((2, 1, 2, 4)) for _ in range(2))
    at = place(TOKENS[:, :1], None, None, cache)
    written = append(cache, new, new, at, after=jnp.full((2, 2), value))
    assert written.keys[0][0, 0, :, 0].tolist() == [1] + [0] * (S - 1)
    assert written.segments.tolist() == [[1] + [0] * (S - 1)] * 2
