"""The next token's cross-entropy: against its equation, in chunks, and without cross-talk in packed rows."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxbig import lift, lora, quantize, usage
from jaxbig.data import Example, one_a_row, packed
from jaxbig.errors import UserError
from jaxbig.gradient import Accumulate, gradient_fn
from jaxbig.models.bert import Bert
from jaxbig.models.gemma import Gemma
from jaxbig.models.gpt2 import GPT2
from jaxbig.models.llama import Llama
from jaxbig.objective import next_token
from jaxbig.transform import chain
from jaxbig.tune.full import full

LLAMA = Llama(vocabulary=19, width=16, layers=1, heads=4, kv_heads=2, head_width=4, hidden=24)
MODELS = {
    "llama": LLAMA,
    "tied": LLAMA.clone(layers=2, tied=True, scan_layers=True, remat=True),
    "gpt2": GPT2(vocabulary=19, width=16, layers=1, heads=2, hidden=24, length=16),
}
SIZES = (5, 3, 8, 2, 6)


def examples():
    rng = np.random.default_rng(0)
    return [Example(rng.integers(1, 19, n), np.r_[False, rng.random(n - 1) < 0.7]) for n in SIZES]


def drawn(model):
    return jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 4), int))["params"]


def logits_of(model, params, each):
    """Of an example by itself; what follows it, zeros up to one length for all, no token sees."""
    rows = np.zeros((1, max(SIZES)), each.ids.dtype)
    rows[0, : len(each.ids)] = each.ids
    return jax.jit(lambda params, rows: model.apply({"params": params}, rows))(params, rows)[0, : len(each.ids)]


def by_hand(model, params, each):
    """(sum over targets of -log p, number of right guesses, targets), an example by itself, in NumPy."""
    logits = np.asarray(logits_of(model, params, each), np.float64)
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    places = [(t, each.ids[t + 1]) for t in range(len(each.ids) - 1) if each.answers[t + 1]]
    right = sum(logits[t].argmax() == token for t, token in places)
    return -sum(log_p[t, token] for t, token in places), right, len(places)


@pytest.mark.parametrize("name", [n if n == "tied" else pytest.param(n, marks=pytest.mark.slow) for n in MODELS])
def test_packed_rows_are_the_examples_by_themselves(name):
    model = MODELS[name]
    params = drawn(model)
    rows = packed(examples(), 10, padding=3)
    assert len(rows["ids"]) < len(SIZES)
    loss, aux = jax.jit(next_token(model, chunk=4))(params, {}, rows, None)
    sums = np.sum([by_hand(model, params, each) for each in examples()], axis=0)
    np.testing.assert_allclose(aux.metrics["loss"][0], sums[0], rtol=1e-5)
    assert (aux.metrics["accuracy"][0], aux.metrics["loss"][1]) == (sums[1], sums[2])
    np.testing.assert_allclose(loss, sums[0] / sums[2], rtol=1e-5)


def test_gradients_of_packed_rows_are_those_of_single_rows():
    model = MODELS["tied"]
    params = drawn(model)
    gradient = jax.jit(jax.grad(lambda params, rows: next_token(model, chunk=4)(params, {}, rows, None)[0]))
    one, other = (gradient(params, rows) for rows in (packed(examples(), 10), one_a_row(examples(), 10)))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), one, other)


def test_logits_of_a_packed_row_are_those_of_single_rows():
    params = drawn(LLAMA)
    rows = packed(examples(), 10)
    apply = jax.jit(lambda rows: LLAMA.apply({"params": params}, rows["ids"], rows["positions"], rows["segments"]))
    together = apply(rows)
    own = [together[r][rows["segments"][r] == s] for r in range(len(together)) for s in (1, 2, 3)]
    alone = {tuple(each.ids.tolist()): logits_of(LLAMA, params, each) for each in examples()}
    ids = [rows["ids"][r][rows["segments"][r] == s] for r in range(len(together)) for s in (1, 2, 3)]
    found = [(tuple(i.tolist()), logits) for i, logits in zip(ids, own, strict=True) if len(i)]
    assert len(found) == len(SIZES)
    for key, logits in found:
        np.testing.assert_allclose(logits, alone[key], rtol=1e-4, atol=1e-5)


# A cap so low that it matters at random weights.
GEMMA = Gemma(
    vocabulary=19, width=16, layers=1, heads=2, kv_heads=1, head_width=4, hidden=24, logit_softcap=0.05, std=0.2
)


@pytest.mark.parametrize("model", [LLAMA, GEMMA], ids=["llama", "gemma"])
@pytest.mark.parametrize("chunk", [3, *(pytest.param(chunk, marks=pytest.mark.slow) for chunk in (1, 10, 99))])
def test_chunks_are_the_whole(chunk, model):
    params, rows = drawn(model), packed(examples(), 10)
    both = (next_token(model, chunk=size) for size in (chunk, None))
    one, other = (
        jax.jit(lambda params, each=each: jax.value_and_grad(each, has_aux=True)(params, {}, rows, None))(params)
        for each in both
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), one, other)


def test_chunks_hold_fewer_logits():
    model = LLAMA.clone(vocabulary=16384, layers=1)
    params = jax.eval_shape(lambda: drawn(model))
    rows = {name: np.zeros((2, 128), np.int32) for name in ("ids", "positions", "segments", "answers")}

    def temporary(chunk):
        gradient = jax.grad(lambda params: next_token(model, chunk=chunk)(params, {}, rows, None)[0])
        return jax.jit(gradient).lower(params).compile().memory_analysis().temp_size_in_bytes

    logits = 2 * 128 * 16384 * 4
    assert temporary(None) > logits > 2 * temporary(16)


@pytest.mark.slow
def test_over_codes_only_the_adapter_has_a_gradient():
    params = drawn(LLAMA)
    technique = chain(quantize("int4", group=4), lora(rank=2))
    shapes = (jax.ShapeDtypeStruct((1, 4), jnp.int32),)
    uses = usage(lambda params, ids: LLAMA.apply({"params": params}, ids), params, *shapes)
    split = technique.init(jax.random.key(1), params, uses)
    grads, metrics, _ = jax.jit(gradient_fn(next_token(LLAMA, chunk=4), technique))(
        split, {}, packed(examples(), 10), jax.random.key(2)
    )
    assert all(float(jnp.abs(leaf).max()) > 0 for path, leaf in _leaves(grads) if path.endswith("'b']"))
    plain = lift(next_token(LLAMA, train=False))(technique.apply(split), {}, packed(examples(), 10), None)[0]
    np.testing.assert_allclose(metrics["loss"][0] / metrics["loss"][1], plain, rtol=1e-5)


def _leaves(tree):
    return [(jax.tree_util.keystr(path), leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)]


def test_accumulated_chunks_of_a_batch_are_the_batch():
    rows = one_a_row(examples()[:4], 10)
    split = full().init(jax.random.key(0), drawn(LLAMA), {})
    whole = gradient_fn(next_token(LLAMA), full())
    one, other = (jax.jit(each)(split, {}, rows, jax.random.key(0))[0] for each in (whole, Accumulate(2)(whole)))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), one, other)


class Bigram(nn.Module):
    @nn.compact
    def __call__(self, ids_BT):
        return nn.Embed(19, 19)(ids_BT)


def test_any_module_and_all_tokens():
    model, ids = Bigram(), np.array([[1, 2, 3], [4, 5, 6]])
    params = model.init(jax.random.key(0), ids)["params"]
    batch = {"ids": ids, "mask": np.array([1, 0])}
    objective = next_token(model, inputs="ids", answers=None, chunk=None, train=False)
    _, aux = objective(params, {}, batch, None)
    total, _, count = by_hand(model, params, Example(ids[0], np.ones(3, bool)))
    np.testing.assert_allclose(aux.metrics["loss"], (total, count), rtol=1e-5)
    np.testing.assert_allclose(aux.outputs["log_p"][0], -total, rtol=1e-5)
    assert aux.outputs["tokens"].tolist() == [2, 2]
    with pytest.raises(UserError, match="chunk=8 for a Bigram"):
        next_token(model, inputs="ids", answers=None, chunk=8)(params, {}, batch, None)
    bert = Bert(vocabulary=19, width=16, layers=1, heads=2, hidden=24, length=8)
    with pytest.raises(UserError, match="chunk=8 for a Bert with the task 'masked_lm'"):
        next_token(bert, inputs="ids", answers=None, chunk=8)({}, {}, batch, None)
    with pytest.raises(UserError, match="no 'answers' in the batch, only ids, mask"):
        next_token(model, inputs="ids", chunk=None)(params, {}, batch, None)


def test_half_precision_is_summed_in_whole():
    model = LLAMA.clone(dtype=jnp.bfloat16)
    loss, aux = jax.eval_shape(lambda: next_token(model)(drawn(model), {}, packed(examples(), 10), None))
    assert loss.dtype == aux.metrics["accuracy"][0].dtype == jnp.float32
