"""Many adapters over one base: every row as if it were alone, swaps that compile nothing, sums, and what is refused."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from law_models import case
from law_trial import jit, stir, uses_of

from jaxbig import bitfit, chain, ia3, lora, merge, quantize, vera
from jaxbig.bank import bank, mixed
from jaxbig.errors import UsageError
from jaxbig.lift import lift
from jaxbig.tree import nbytes

RANKS = {"two": 2, "five": 5, "one": 1}
KINDS = {
    "lora": lambda rank: lora(rank, alpha=3.0, where=".*(query|value|mlp_in)/kernel"),
    "qlora": lambda rank: lora(rank, alpha=float(rank)),
    "lora and biases": lambda rank: chain(lora(rank), bitfit()),
    "ia3": lambda rank: ia3(),
    "vera": lambda rank: vera(rank=3),
}


@functools.cache
def trees(kind, model="scanned"):
    """Adapters of several ranks, with trained leaves stirred, over one base, and that base."""
    tiny = case(model)
    base = tiny.params if kind != "qlora" else quantize("nf4", group=4).init(None, tiny.params, uses_of(model)).params
    made = {}
    for i, (name, rank) in enumerate(RANKS.items()):
        transform = KINDS[kind](rank)
        split = transform.init(jax.random.key(i), base, uses_of(model))
        made[name] = transform.apply(split._replace(train=stir(split.train, seed=i, size=0.3)))
    return made, base


@pytest.mark.parametrize(
    "kind", [kind if kind == "lora" else pytest.param(kind, marks=pytest.mark.slow) for kind in KINDS]
)
def test_each_row_with_its_adapter_is_that_row_alone(kind):
    made, _ = trees(kind)
    model = case("scanned")
    x = jnp.concatenate([model.inputs, model.inputs[::-1]])
    numbers = jnp.arange(len(x)) % 3
    together = jit(mixed(model.apply))(bank(made), numbers, x)
    alone = [jit(lift(model.apply))(made[name], x) for name in RANKS]
    for row, number in enumerate(numbers.tolist()):
        off = jnp.linalg.norm(together[row] - alone[number][row]) / jnp.linalg.norm(alone[number][row])
        assert off < 1e-6, (row, number)
    apart = [float(abs(alone[0] - other).max()) for other in alone[1:]]
    assert min(apart) > 1e-3


def test_the_base_is_held_and_multiplied_once():
    made, base = trees("lora")
    held = bank(made)
    own = sum(nbytes(rows) for rows in held.own.values())
    assert nbytes((held.shared, held.own)) == nbytes(base) + own
    model = case("scanned")
    x = jnp.concatenate([model.inputs] * 8)
    flops = lambda compiled: compiled.cost_analysis()["flops"]  # noqa: E731
    together = jit(mixed(model.apply)).lower(held, jnp.zeros(len(x), int), x).compile()
    one = jit(lift(model.apply)).lower(held.pick(0), x).compile()
    assert flops(together) == pytest.approx(flops(one), rel=0.1)
    assert together.memory_analysis().temp_size_in_bytes < 2 * one.memory_analysis().temp_size_in_bytes + 8 * own


def test_a_hundred_swaps_compile_nothing():
    made, _ = trees("lora")
    model, count = case("scanned"), []

    @jit
    def logits(bank, number, x):
        count.append(1)
        return lift(model.apply)(bank.pick(number), x)

    held = bank(made)
    expected = {name: jit(lift(model.apply))(tree, model.inputs) for name, tree in made.items()}
    for i in range(100):
        name = list(RANKS)[(7 * i) % 3]
        if i % 10 == 9:  # an adapter that arrives, of a lower rank than its place has
            held = held.put("five", made["one"])
            expected["five"] = expected["one"]
        np.testing.assert_allclose(logits(held, held.number(name), model.inputs), expected[name], rtol=1e-5, atol=1e-6)
    assert len(count) == 1
    assert logits._cache_size() == 1


@pytest.mark.slow
def test_a_weighted_sum_is_the_sum_of_the_merged_updates_and_zero_is_the_base():
    made, base = trees("lora", "unrolled")
    held, model, count = bank(made), case("unrolled"), []
    weights = jnp.array([0.7, -1.5, 0.0])

    @jit
    def logits(weights):
        count.append(1)
        return lift(model.apply, strict=True)(held.blend(weights), model.inputs)

    deltas = [jax.tree.map(jnp.subtract, merge(tree), base) for tree in made.values()]
    summed = jax.tree.map(lambda w, *ds: w + sum(s * d for s, d in zip(weights, ds, strict=True)), base, *deltas)
    np.testing.assert_allclose(logits(weights), model.apply(summed, model.inputs), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(logits(jnp.zeros(3)), jit(model.apply)(base, model.inputs), rtol=1e-5, atol=1e-6)
    one = lift(model.apply)(made["five"], model.inputs)
    np.testing.assert_allclose(logits(jnp.array([0.0, 1.0, 0.0])), one, rtol=1e-4, atol=1e-5)
    assert len(count) == 1
    named = lift(model.apply)(held.blend({"two": 0.7, "five": -1.5}), model.inputs)
    np.testing.assert_allclose(named, logits(weights), rtol=1e-4, atol=1e-5)


def test_a_weighted_sum_of_stacked_layers():
    made, base = trees("lora", "scanned")
    model = case("scanned")
    blended = merge(bank(made).blend({"one": 2.0}))
    delta = jax.tree.map(jnp.subtract, merge(made["one"]), base)
    for a, b in zip(
        jax.tree.leaves(blended), jax.tree.leaves(jax.tree.map(lambda w, d: w + 2 * d, base, delta)), strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
    logits = lift(model.apply, strict=True)(bank(made).blend({"one": 2.0}), model.inputs)
    np.testing.assert_allclose(logits, model.apply(blended, model.inputs), rtol=1e-4, atol=1e-5)


def test_what_has_no_place_is_refused():
    made, base = trees("lora")
    held = bank(made)
    with pytest.raises(UsageError, match="no adapter is called 'six'; there are two, five, one"):
        held.pick("six")
    with pytest.raises(UsageError, match="no adapter 3; there are 3"):
        held.pick(3)
    with pytest.raises(UsageError, match="no adapters"):
        bank({})
    with pytest.raises(UsageError, match="'b' has another structure than 'a'"):
        bank({"a": made["one"], "b": base})
    with pytest.raises(UsageError, match=r"\(2,\) weights for 3 adapters"):
        held.blend(jnp.ones(2))
    small = bank({"one": made["one"], "two": made["two"]})
    with pytest.raises(UsageError, match=r"kernel/a is \(.*5\), and there is place for \(.*2\)"):
        small.put("two", made["five"])
    with pytest.raises(UsageError, match="another structure"):
        small.put("two", base)
    with pytest.raises(UsageError, match="is shared by all adapters here"):
        small.put("two", jax.tree.map(lambda leaf: leaf + 1, made["one"]))
    with pytest.raises(UsageError, match="gain differs from adapter to adapter and is no low-rank update"):
        bank(trees("ia3")[0]).blend({"one": 1.0})
