"""Computing in bfloat16 over float32 parameters: what is cast, what stays, and how near the result is."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxbig import chain, full, lora, quantize
from jaxbig.lift import lift
from jaxbig.models import MLP
from jaxbig.objective import classify, computed_in
from jaxbig.step import init_state, make_step
from jaxbig.usage import usage

KEY = jax.random.key(0)
RANDOM = np.random.default_rng(0)
BATCH = {"image": RANDOM.normal(size=(16, 6)).astype(np.float32), "label": RANDOM.integers(0, 3, 16)}


class Normed(nn.Module):
    """Knows nothing of dtypes."""

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.BatchNorm(use_running_average=not train)(nn.Dense(8)(x))
        return nn.Dense(3)(nn.relu(x))


def test_the_trained_tree_its_optimiser_and_the_statistics_stay_float32():
    model, optimizer = Normed(), optax.adam(1e-2)
    variables = model.init(KEY, BATCH["image"])
    split = full().init(KEY, variables["params"], {})
    base, state = init_state(split, optimizer, KEY, {"batch_stats": variables["batch_stats"]})
    shapes = jax.tree.map(lambda leaf: leaf.dtype, state)
    step = make_step(computed_in(classify(model), "bfloat16"), full(), optimizer)
    losses = []
    for _ in range(30):
        state, metrics = step(base, state, BATCH)
        losses.append(float(metrics["loss"][0]) / 16)
    assert jax.tree.map(lambda leaf: leaf.dtype, state) == shapes
    assert step._cache_size() == 1
    assert losses[-1] < 0.7 * losses[0]


def test_every_product_is_in_the_small_dtype():
    model = MLP(3, (8,))
    params = model.init(KEY, BATCH["image"])["params"]
    objective = computed_in(classify(model), jnp.bfloat16)
    jaxpr = jax.make_jaxpr(lambda params: objective(params, {}, BATCH, None)[0])(params)
    products = [line for line in str(jaxpr).splitlines() if "dot_general" in line]
    assert len(products) == 2
    assert all("bf16[" in line.split("=")[0] for line in products)


@pytest.mark.parametrize(
    "transform",
    [full(), pytest.param(lora(rank=2), marks=pytest.mark.slow), chain(quantize("int8"), lora(rank=2))],
    ids=["full", "lora", "qlora"],
)
def test_the_gradient_is_the_float32_one_to_the_small_dtype_s_precision(transform):
    model = MLP(3, (32,))
    params = model.init(KEY, BATCH["image"])["params"]
    uses = usage(lambda p, x: model.apply({"params": p}, x), params, BATCH["image"])
    split = transform.init(KEY, params, uses)
    split = split._replace(train=jax.tree.map(lambda leaf: leaf + 0.05, split.train))

    def grads(objective):
        value = lambda train: lift(objective)(transform.apply(split._replace(train=train)), {}, BATCH, None)[0]  # noqa: E731
        return jax.jit(jax.grad(value))(split.train)

    exact, small = grads(classify(model)), grads(computed_in(classify(model), "bfloat16"))
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(small))
    distance = optax.tree.norm(optax.tree.sub(exact, small)) / optax.tree.norm(exact)
    assert 0 < float(distance) < 8 * 2**-8  # a few roundings to 8 bits of mantissa, and not none
