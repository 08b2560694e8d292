"""What lifting adds to a compiled program: nothing. LoRA and QLoRA on an unedited linen model against plain jax."""

import jax
import numpy as np
import optax
import pytest

from benchmarks.by_hand import ALPHA, R, example, Linen, linen_loss, loss_by_hand, nest, parameters  # isort: skip
from jaxbig.compress.quantize import Quantized, quantize
from jaxbig.lift import lift
from jaxbig.transform import chain
from jaxbig.tune.full import full
from jaxbig.tune.lora import lora
from jaxbig.usage import usage
from jaxbig.weight import is_weight

KERNELS = "layers/.*kernel"
METHODS = {
    "lora": lora(rank=R, alpha=ALPHA, where=KERNELS),
    "qlora": chain(quantize("nf4", where=KERNELS), lora(rank=R, alpha=ALPHA, where=KERNELS)),
}


@pytest.fixture(scope="module")
def model():
    ids, params = example(), parameters(jax.random.key(0))
    return ids, params, usage(lambda p, x: Linen().apply({"params": p}, x), params, ids)


def measured(function, *arguments):
    """Result, FLOPs, bytes accessed and temporary bytes of one compiled program."""
    compiled = jax.jit(function).lower(*arguments).compile()
    cost, memory = compiled.cost_analysis(), compiled.memory_analysis()
    figures = {"flops": cost["flops"], "bytes": cost["bytes accessed"], "temporaries": memory.temp_size_in_bytes}
    return compiled(*arguments), figures


def within_one_percent(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert ours[name] == pytest.approx(theirs[name], rel=0.01), f"{name}: {ours} against {theirs}"


@pytest.mark.parametrize("remat", [False, True], ids=["plain", "remat"])
@pytest.mark.parametrize("name", METHODS)
def test_lifting_costs_what_writing_it_by_hand_costs(model, name, remat):
    ids, params, uses = model
    method = METHODS[name]
    split = method.init(jax.random.key(2), params, uses)

    def ours(train, frozen, ids):
        adapted = lambda train: method.apply(frozen._replace(train=train))  # noqa: E731
        return jax.value_and_grad(lambda train: lift(linen_loss, strict=True)(adapted(train), ids, remat))(train)

    def theirs(train, frozen, ids):
        return jax.value_and_grad(lambda train: loss_by_hand(frozen, train, ids, remat))(train)

    codes = jax.tree.map(
        lambda leaf: {"codes": leaf.codes, "scale": leaf.scale} if isinstance(leaf, Quantized) else leaf,
        split.params,
        is_leaf=is_weight,
    )
    low = split.train["lora"] if name == "qlora" else split.train
    (loss, grads), figures = measured(ours, split.train, split._replace(train=None), ids)
    (loss_, grads_), figures_ = measured(theirs, nest(low), codes, ids)
    np.testing.assert_allclose(loss, loss_, rtol=1e-6)
    grads = nest(grads["lora"] if name == "qlora" else grads)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-6), grads, grads_)
    within_one_percent(figures, figures_)


def test_training_everything_is_plain_flax_and_optax(model):
    ids, params, uses = model
    method, optimiser = full(), optax.adamw(1e-3)
    split = method.init(jax.random.key(2), params, uses)

    def update(grads, state, train):
        updates, state = optimiser.update(grads, state, train)
        return optax.apply_updates(train, updates), state

    def ours(train, state, ids):
        return update(jax.grad(lambda train: lift(linen_loss)(method.apply(split._replace(train=train)), ids))(train),
                      state, train)  # fmt: skip

    def theirs(params, state, ids):
        return update(jax.grad(linen_loss)(params, ids), state, params)

    (train, _), figures = measured(ours, split.train, optimiser.init(split.train), ids)
    (plain, _), figures_ = measured(theirs, params, optimiser.init(params), ids)
    assert figures == figures_
    jax.tree.map(np.testing.assert_array_equal, method.apply(split._replace(train=train)), plain)
