"""Ways to get a gradient: chunks of a batch are the batch, and SAM is its paper's algorithm."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxbig.errors import UserError
from jaxbig.gradient import SAM, Accumulate, Penalty, gradient_fn
from jaxbig.models import MLP
from jaxbig.objective import classify
from jaxbig.step import init_state, make_step
from jaxbig.tune.full import full
from jaxbig.tune.lora import lora
from jaxbig.usage import usage

MODEL = MLP(3, (16,))
RANDOM = np.random.default_rng(0)
BATCH = {
    "image": RANDOM.normal(size=(12, 6)).astype(np.float32),
    "label": RANDOM.integers(0, 3, 12),
    "mask": np.array([1, 1, 1, 0, 1, 1, 0, 0, 1, 1, 1, 1], np.float32),
}
KEY = jax.random.key(0)


def split_of(transform, model=MODEL):
    params = jax.jit(model.init)(KEY, BATCH["image"])["params"]
    return transform.init(KEY, params, usage(lambda p, x: model.apply({"params": p}, x), params, BATCH["image"]))


@pytest.mark.parametrize(
    ("transform", "chunks"),
    [
        pytest.param(full(), 1, marks=pytest.mark.slow),
        (full(), 3),
        pytest.param(full(), 12, marks=pytest.mark.slow),
        (lora(rank=2), 3),
    ],
    ids=lambda value: getattr(value, "name", value),
)
def test_chunks_are_the_batch(transform, chunks):
    split = split_of(transform)
    split = split._replace(train=jax.tree.map(lambda leaf: leaf + 0.1, split.train))
    whole = gradient_fn(classify(MODEL), transform)
    grads, metrics, _ = jax.jit(whole)(split, {}, BATCH, KEY)
    parts, sums, _ = jax.jit(Accumulate(chunks)(whole))(split, {}, BATCH, KEY)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), parts, grads)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), sums, metrics)
    assert float(sums["loss"][1]) == BATCH["mask"].sum()


def test_chunks_hand_the_statistics_on():
    class Normed(nn.Module):
        @nn.compact
        def __call__(self, x, train=False):
            return nn.Dense(3)(nn.BatchNorm(use_running_average=not train, momentum=0.5)(x))

    model = Normed()
    variables = model.init(KEY, BATCH["image"])
    split, rest = full().init(KEY, variables["params"], {}), {"batch_stats": variables["batch_stats"]}
    _, _, after = Accumulate(2)(gradient_fn(classify(model), full()))(split, rest, BATCH, KEY)
    mean = np.zeros(6)
    for part in (BATCH["image"][0::2], BATCH["image"][1::2]):
        mean = 0.5 * mean + 0.5 * part.mean(0)
    np.testing.assert_allclose(after["batch_stats"]["BatchNorm_0"]["mean"], mean, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_chunks_draw_dropout_of_their_own():
    model = MLP(3, (16,), dropout=0.5)
    way, split = Accumulate(2)(gradient_fn(classify(model), full())), split_of(full(), model)
    twice = {name: np.repeat(array[:6], 2, axis=0) for name, array in BATCH.items()}  # both chunks hold the same rows
    grads, metrics, _ = way(split, {}, twice, KEY)
    half, half_metrics, _ = gradient_fn(classify(model), full())(
        split, {}, {name: array[:6] for name, array in BATCH.items()}, jax.random.fold_in(KEY, 0)
    )
    assert float(jnp.abs(grads["head/kernel"] - half["head/kernel"]).max()) > 1e-4
    assert float(metrics["loss"][1]) == 2 * float(half_metrics["loss"][1])


def test_chunks_need_the_memory_of_one():
    model = MLP(10, (512, 512))
    batch = {"image": jnp.ones((1024, 64)), "label": jnp.zeros(1024, jnp.int32)}
    split = full().init(KEY, jax.jit(model.init)(KEY, batch["image"][:1])["params"], {})
    whole = gradient_fn(classify(model), full())

    def temporaries(gradient):
        compiled = jax.jit(gradient).lower(split, {}, batch, KEY).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    activations = 4 * 1024 * (512 + 512)
    parameters = 4 * sum(leaf.size for leaf in jax.tree.leaves(split.train))
    assert temporaries(whole) > activations
    # the batch laid out by chunks, the sum of the gradients, one chunk's gradient
    assert temporaries(Accumulate(16)(whole)) < activations / 2 + 2 * parameters + batch["image"].nbytes
    assert temporaries(Accumulate(16)(whole)) < temporaries(whole)


def test_chunks_that_do_not_divide_are_told():
    with pytest.raises(UserError, match=r"chunks=5 do not divide a batch of 12"):
        Accumulate(5)(gradient_fn(classify(MODEL), full()))(split_of(full()), {}, BATCH, KEY)
    with pytest.raises(UserError, match="chunks=0"):
        Accumulate(0)(gradient_fn(classify(MODEL), full()))


def softmax_regression(weights, x, y):
    """Loss and gradient in NumPy."""
    z = x @ weights
    p = np.exp(z - z.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    q = np.eye(3)[y]
    return -np.log(p[np.arange(len(y)), y]).mean(), x.T @ (p - q) / len(y)


@pytest.mark.parametrize("radius", [0.05, 2.0])
def test_sam_is_the_paper_s_algorithm(radius):
    model = nn.Dense(3, use_bias=False)
    weights = RANDOM.normal(size=(6, 3))
    split = full().init(KEY, {"kernel": jnp.asarray(weights, jnp.float32)}, {})
    batch = {"image": BATCH["image"], "label": BATCH["label"]}
    found, metrics, _ = SAM(radius)(gradient_fn(classify(model), full()))(split, {}, batch, KEY)
    x, y = BATCH["image"].astype(np.float64), BATCH["label"]
    loss, first = softmax_regression(weights, x, y)
    _, second = softmax_regression(weights + radius * first / np.sqrt((first**2).sum()), x, y)
    np.testing.assert_allclose(found["kernel"], second, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(metrics["loss"][0] / 12, loss, rtol=1e-6)
    assert np.abs(first - second).max() > 1e-4


def test_ways_compose_in_the_step():
    split, optimizer = split_of(full()), optax.sgd(0.1)
    trained = []
    for ways in [(SAM(0.5),), (Accumulate(3), SAM(0.5))]:
        base, state = init_state(split, optimizer, KEY)
        state, _ = make_step(classify(MODEL), full(), optimizer, ways)(base, state, BATCH)
        trained.append(state.split.train)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), *trained)
    plain = init_state(split, optimizer, KEY)
    plain, _ = make_step(classify(MODEL), full(), optimizer)(*plain, BATCH)
    moved = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), trained[0], plain.split.train)
    assert max(jax.tree.leaves(moved)) > 1e-4


def test_a_penalty_adds_its_gradient_once_whatever_the_chunks_and_leaves_metrics_alone():
    split = split_of(full())
    whole = gradient_fn(classify(MODEL), full())
    cubes = Penalty(lambda train: sum((leaf**3).sum() for leaf in jax.tree.leaves(train)), 0.5)
    grads, metrics, _ = whole(split, {}, BATCH, KEY)
    more, same, _ = jax.jit(cubes(Accumulate(3)(whole)))(split, {}, BATCH, KEY)
    expected = jax.tree.map(lambda grad, leaf: grad + 1.5 * leaf**2, grads, split.train)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), more, expected)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), same, metrics)
