"""Trainable tokens: rows replaced in look-ups and in tied heads, and PEFT's on GPT-2."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gpt2_by_hand import ours, theirs, tree

from jaxbig.compress.merge import merge
from jaxbig.compress.quantize import quantize
from jaxbig.errors import UsageError
from jaxbig.lift import lift
from jaxbig.transform import chain
from jaxbig.tune.trainable_tokens import trainable_tokens
from jaxbig.usage import usage

TOKENS = [4, 0, 6]
IDS = jnp.array([[0, 3, 6], [5, 4, 4]])
TABLE = jnp.asarray(np.random.default_rng(0).normal(size=(7, 4)), jnp.float32)


def tied(params, ids):
    return jnp.tanh(params["table"][ids]) @ params["table"].T


def one_hot(params, ids):
    """A look-up, and a product that sums over the rows."""
    return params["table"][ids] + jax.nn.one_hot(ids + 1, 7) @ params["table"]


def across(params, ids):
    """A table whose rows are its columns."""
    return jnp.take(params["table"], ids, axis=1)


def stacked(params, ids):
    return jax.vmap(lambda table: table[ids])(params["table"])


CASES = {
    "tied": (tied, TABLE, 0),
    "one hot": (one_hot, TABLE, 0),
    "across": (across, TABLE.T, 1),
    "stacked": (stacked, jnp.stack([TABLE, 2 * TABLE]), 1),
}


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] * (n in ("across", "stacked"))) for n in CASES]
)
def test_values_and_gradients_are_those_of_a_table_with_other_rows(name):
    fn, table, axis = CASES[name]
    params = {"table": table}
    method = trainable_tokens(TOKENS)
    split = method.init(None, params, usage(fn, params, IDS))
    np.testing.assert_array_equal(split.train["table"]["rows"], np.take(table, TOKENS, axis))
    assert jax.tree.leaves(split.train)[0].size == table.size // 7 * 3
    random = np.random.default_rng(1)
    train = jax.tree.map(lambda leaf: jnp.asarray(random.normal(size=leaf.shape), leaf.dtype), split.train)
    expected = np.moveaxis(np.array(table), axis, 0)
    for i, token in enumerate(TOKENS):
        expected[token] = np.moveaxis(np.asarray(train["table"]["rows"]), axis, 0)[i]
    expected = np.moveaxis(expected, 0, axis)

    def loss(train):
        y = lift(fn, strict=True)(method.apply(split._replace(train=train)), IDS)
        return (y**2).sum(), y

    grads, y = jax.grad(loss, has_aux=True)(train)
    np.testing.assert_array_equal(merge(method.apply(split._replace(train=train)))["table"], expected)
    np.testing.assert_allclose(y, fn({"table": jnp.asarray(expected)}, IDS), rtol=1e-6, atol=1e-6)
    whole = jax.grad(lambda table: (fn({"table": table}, IDS) ** 2).sum())(jnp.asarray(expected))
    np.testing.assert_allclose(grads["table"]["rows"], np.take(whole, TOKENS, axis), rtol=1e-5, atol=1e-5)


def test_no_second_table_is_formed():
    """Neither in the look-up nor in the tied head, nor in their gradients: what is held is small beside the table."""
    params = {"table": jnp.ones((4096, 64))}
    method = trainable_tokens([1, 2, 3])
    ids = jnp.array([[1, 7]])
    split = method.init(None, params, usage(tied, params, ids))
    loss = lambda train, rest: (lift(tied, strict=True)(method.apply(rest._replace(train=train)), ids) ** 2).sum()  # noqa: E731
    compiled = jax.jit(jax.grad(loss)).lower(split.train, split._replace(train=None)).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < params["table"].nbytes / 2


def test_of_two_links_the_later_hides_the_earlier_and_other_rows_stay():
    params = {"table": TABLE}
    method = chain(trainable_tokens([1, 2]), trainable_tokens([2, 3]))
    split = method.init(None, params, usage(tied, params, IDS))
    rows = lambda value: {"table": {"rows": jnp.full((2, 4), value)}}  # noqa: E731
    train = {"trainable_tokens": rows(8.0), "trainable_tokens_1": rows(9.0)}
    merged = merge(method.apply(split._replace(train=train)))["table"]
    assert merged[:5, 0].tolist() == [float(TABLE[0, 0]), 8, 9, 9, float(TABLE[4, 0])]


def test_rows_over_codes():
    params = {"table": jnp.asarray(np.random.default_rng(0).normal(size=(8, 4)), jnp.float32)}
    method = chain(quantize("int8", where="table"), trainable_tokens([1, 5]))
    split = method.init(None, params, usage(tied, params, IDS))
    codes = split.params["table"].materialise()
    train = {"quantize": {}, "trainable_tokens": {"table": {"rows": jnp.full((2, 4), 9.0)}}}
    expected = codes.at[jnp.array([1, 5])].set(9.0)
    tuned = method.apply(split._replace(train=train))
    np.testing.assert_array_equal(merge(tuned)["table"], expected)
    np.testing.assert_allclose(
        lift(tied, strict=True)(tuned, IDS), tied({"table": expected}, IDS), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: trainable_tokens([]), "tokens=[]"),
        (lambda: trainable_tokens([1, 1]), "each once"),
        (lambda: trainable_tokens([-1]), "tokens=[-1]"),
        (lambda: init(trainable_tokens([3, 7])), "table has 7 rows, and tokens has 7"),
        (lambda: init(trainable_tokens([3], where="w")), "w is never looked up"),
    ],
)
def test_errors_are_one_clear_line(make, words):
    with pytest.raises(UsageError, match=r"^[^\n]*$") as caught:
        make()
    assert words in str(caught.value)


def init(method):
    params = {"table": TABLE, "w": jnp.ones((4, 2))}
    return method.init(None, params, usage(lambda p, ids: p["table"][ids] @ p["w"], params, IDS))


@pytest.mark.parity
def test_value_and_gradient_are_peft_s_with_a_tied_head():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        peft, torch = pytest.importorskip("peft"), pytest.importorskip("torch")
        pytest.importorskip("transformers")
    base, tokens = theirs(), [2, 16, 11]
    with jax.enable_x64(True):
        params, ids = tree(base), np.array([[1, 5, 16, 2], [3, 2, 0, 9]])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = peft.get_peft_model(base, peft.TrainableTokensConfig(token_indices=tokens, target_modules=["wte"]))
        (delta,) = [value for value in model.parameters() if value.requires_grad]
        with torch.no_grad():
            delta.add_(0.3 * torch.randn(delta.shape, dtype=torch.float64))
        expected = model(torch.tensor(ids)).logits
        (expected**2).mean().backward()
        method = trainable_tokens(tokens, where="wte/weight")
        split = method.init(None, params, usage(ours, params, ids))
        train = {"wte/weight": {"rows": jnp.asarray(delta.detach().numpy())}}
        assert jax.tree.map(jnp.shape, train) == jax.tree.map(jnp.shape, split.train)

        def loss(train):
            y = lift(ours, strict=True)(method.apply(split._replace(train=train)), ids)
            return (y**2).mean(), y

        grads, y = jax.grad(loss, has_aux=True)(train)
        np.testing.assert_allclose(y, expected.detach().numpy(), rtol=1e-9, atol=1e-11)
        np.testing.assert_allclose(grads["wte/weight"]["rows"], delta.grad.numpy(), rtol=1e-9, atol=1e-11)
