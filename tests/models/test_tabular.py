"""Tabular models against the papers' equations in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxbig.errors import UserError
from jaxbig.models import FTTransformer, TabularMLP, piecewise_linear, quantile_edges

QUICK_TO_COMPILE = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
RANDOM = np.random.default_rng(0)
NUMBERS, ENCODED = RANDOM.normal(size=(4, 3)), RANDOM.normal(size=(4, 3, 2))
CODES = np.array([[0, 4], [1, 0], [2, 3], [2, 2]])
SIZES = (3, 5)
MODEL = FTTransformer(2, SIZES, width=8, layers=2, heads=2, hidden=6)


def filled(shapes):
    random = np.random.default_rng(5)
    return jax.tree.map(lambda leaf: random.normal(size=leaf.shape) * 0.5, shapes)


def parameters(model, x):
    return filled(jax.eval_shape(model.init, jax.random.key(0), x)["params"])


def applied(model, params, x):
    with jax.enable_x64(True):
        return np.asarray(jax.jit(model.apply, compiler_options=QUICK_TO_COMPILE)({"params": params}, x))


def norm(x, p):
    mean = x.mean(-1, keepdims=True)
    return (x - mean) / np.sqrt(((x - mean) ** 2).mean(-1, keepdims=True) + 1e-5) * p["scale"] + p["bias"]


def dense(x, p):
    return x @ p["kernel"] + p["bias"]


def attention(x, p):
    """softmax(Q K^T / sqrt(d)) V, head by head, row by row."""
    out = np.zeros(x.shape) + p["out"]["bias"]
    for b in range(len(x)):
        for h in range(2):
            q, k, v = (x[b] @ p[name]["kernel"][:, h] + p[name]["bias"][h] for name in ("query", "key", "value"))
            scores = np.exp(q @ k.T / np.sqrt(q.shape[-1]))
            out[b] += scores / scores.sum(1, keepdims=True) @ v @ p["out"]["kernel"][h]
    return out


def embedded(table, codes):
    return np.stack([table[codes[:, 0]], table[3 + codes[:, 1]]], 1)


def ft_transformer(p, x):
    """Section 3.3 of arXiv:2106.11959."""
    tokens, parts = p["tokens"], []
    if "numbers" in x and x["numbers"].ndim == 2:
        parts = [x["numbers"][:, j, None] * tokens["numbers"][j] for j in range(3)]
    elif "numbers" in x:
        parts = [x["numbers"][:, j] @ tokens["numbers_kernel"][j] for j in range(3)]
    if "categories" in x:
        parts += list(embedded(tokens["categories"]["table"]["embedding"], x["categories"]).transpose(1, 0, 2))
    parts = [part + bias for part, bias in zip(parts, tokens["bias"], strict=True)]
    t = np.stack([np.broadcast_to(tokens["cls"], parts[0].shape), *parts], 1)
    for i in range(2):
        layer = p[f"layer_{i}"]
        t = t + attention(t if i == 0 else norm(t, layer["attention_norm"]), layer["attention"])
        a = dense(norm(t, layer["mlp_norm"]), layer["mlp_in"])
        t = t + dense(a[..., :6] * np.maximum(a[..., 6:], 0), layer["mlp_out"])
    return dense(np.maximum(norm(t[:, 0], p["norm"]), 0), p["head"])


BOTH = {"numbers": NUMBERS, "categories": CODES}


@pytest.mark.parametrize(
    "x",
    [
        BOTH,
        {"numbers": ENCODED, "categories": CODES},
        pytest.param({"numbers": NUMBERS}, marks=pytest.mark.slow),
        pytest.param({"categories": CODES}, marks=pytest.mark.slow),
    ],
    ids=["both", "encoded", "numbers", "categories"],
)
def test_ft_transformer_is_the_papers_equations(x):
    model = MODEL if "categories" in x else MODEL.clone(categories=())
    params = parameters(model, x)
    assert "attention_norm" not in params["layer_0"]
    np.testing.assert_allclose(applied(model, params, x), ft_transformer(params, x), rtol=1e-9, atol=1e-10)


def test_the_default_size_is_the_papers():
    """929 thousand parameters for 100 numbers (appendix E), with the 255 that the authors' 4/3 of 192 was."""
    row = {"numbers": jax.ShapeDtypeStruct((1, 100), jnp.float32)}
    shapes = jax.eval_shape(FTTransformer(1, hidden=255).init, jax.random.key(0), row)
    assert round(sum(leaf.size for leaf in jax.tree.leaves(shapes)) / 1000) == 929


@pytest.mark.parametrize("x", [BOTH, {"numbers": ENCODED, "categories": CODES}], ids=["plain", "encoded"])
def test_tabular_mlp_is_the_papers_equations(x):
    model = TabularMLP(2, SIZES, (6, 5), embedding=3)
    params = parameters(model, x)
    rows = embedded(params["categories"]["table"]["embedding"], CODES)
    h = np.concatenate([x["numbers"].reshape(4, -1), rows.reshape(4, -1)], 1)
    for i in range(2):
        h = np.maximum(dense(h, params[f"dense_{i}"]), 0)
    np.testing.assert_allclose(applied(model, params, x), dense(h, params["head"]), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("code", [-1, 3])
def test_an_unknown_category_is_no_other_features(code):
    x = {"categories": np.array([[code, 0], [2, 4]])}
    model = TabularMLP(2, SIZES, (6,))
    logits = model.apply({"params": parameters(model, x)}, x)
    assert np.isnan(logits[0]).all()
    assert np.isfinite(logits[1]).all()


@pytest.mark.slow
def test_initialisation_is_uniform_in_one_over_the_root_of_the_width():
    x = {"numbers": jnp.ones((1, 50)), "categories": jnp.zeros((1, 2), int)}
    model = FTTransformer(2, SIZES, width=64, layers=1)
    params = jax.jit(model.init, compiler_options=QUICK_TO_COMPILE)(jax.random.key(0), x)["params"]
    kernels = (
        params["tokens"]["numbers"], params["tokens"]["bias"], params["layer_0"]["attention"]["query"]["kernel"],
        params["layer_0"]["mlp_in"]["kernel"],
    )  # fmt: skip
    for leaf in kernels:
        assert 0.98 / 8 < float(jnp.abs(leaf).max()) <= 1 / 8
        assert abs(float(leaf.std()) - 1 / 8 / 3**0.5) < 0.02 / 8


def test_dropout_masks_attention_weights_the_hidden_layer_and_residual_branches():
    rates = {"attention_dropout": 0.5, "hidden_dropout": 0.5, "residual_dropout": 0.5}
    model, key = MODEL.clone(layers=1, **rates), {"dropout": jax.random.key(0)}
    shapes = jax.eval_shape(model.init, jax.random.key(0), BOTH)

    def masks(train):
        jaxpr = jax.make_jaxpr(lambda variables: model.apply(variables, BOTH, train, rngs=key))(shapes)
        return list(randomness(jaxpr.jaxpr))

    assert masks(train=True) == [(4, 2, 6, 6), (4, 6, 8), (4, 6, 6), (4, 6, 8)]
    assert masks(train=False) == []


def randomness(jaxpr):
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "random_bits":
            yield eqn.outvars[0].aval.shape
        inner = eqn.params.get("jaxpr")
        if inner is not None:
            yield from randomness(getattr(inner, "jaxpr", inner))


@pytest.mark.slow
def test_remat_and_bfloat16():
    params = parameters(MODEL, BOTH)
    row = jax.tree.map(jnp.asarray, {"numbers": NUMBERS.astype(np.float32), "categories": CODES})

    def gradient(model):
        loss = lambda params: jnp.sum(model.apply({"params": params}, row) ** 2)  # noqa: E731
        return jax.jit(jax.grad(loss), compiler_options=QUICK_TO_COMPILE)(params)

    plain, again = gradient(MODEL), gradient(MODEL.clone(remat=True))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), plain, again)
    for model in (MODEL, TabularMLP(2, SIZES)):
        half = model.clone(dtype=jnp.bfloat16)
        shapes = jax.eval_shape(half.init, jax.random.key(0), row)
        assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {jnp.dtype("float32")}
        assert jax.eval_shape(half.apply, shapes, row).dtype == jnp.bfloat16


# piecewise-linear encoding


def encoded(x, edges):
    """Equation 1 of arXiv:2203.05556, one bin at a time."""
    bins = len(edges) - 1
    out = []
    for t in range(1, bins + 1):
        if x < edges[t - 1] and t > 1:
            out.append(0.0)
        elif x >= edges[t] and t < bins:
            out.append(1.0)
        else:
            out.append((x - edges[t - 1]) / (edges[t] - edges[t - 1]))
    return out


def test_piecewise_linear_is_the_papers_equation():
    train = RANDOM.normal(size=(50, 3))
    edges = quantile_edges(train, 4)
    assert edges.shape == (3, 5)
    x = np.concatenate([RANDOM.normal(size=(20, 3)) * 2, edges.T])
    expected = [[encoded(x[b, j], edges[j]) for j in range(3)] for b in range(len(x))]
    with jax.enable_x64(True):
        np.testing.assert_allclose(piecewise_linear(jnp.asarray(x), edges), expected, rtol=1e-12, atol=1e-12)


def test_bins_hold_equally_many_and_frequent_values_make_steps():
    train = np.concatenate([np.zeros(60), np.arange(1, 41)])[:, None]
    edges = quantile_edges(train, 4)
    assert edges[0, :3].tolist() == [0, 0, 0]
    y = np.asarray(piecewise_linear(jnp.array([[-1.0], [0.0], [50.0]]), edges))
    assert np.isfinite(y).all()
    assert y[:, 0, :2].tolist() == [[0, 0], [1, 1], [1, 1]]
    assert y[2, 0, 3] > 1
    missing = np.where(train == 3, np.nan, train)
    assert np.isfinite(quantile_edges(missing, 4)).all()


@pytest.mark.parametrize(
    ("act", "word"),
    [
        (lambda: MODEL.init(jax.random.key(0), NUMBERS), "'numbers'"),
        (lambda: MODEL.init(jax.random.key(0), {"number": NUMBERS}), "['number']"),
        (lambda: MODEL.init(jax.random.key(0), {"numbers": NUMBERS}), "2 sizes"),
        (lambda: MODEL.init(jax.random.key(0), {**BOTH, "categories": CODES[:, :1]}), "[batch, 2]"),
        (lambda: MODEL.init(jax.random.key(0), {**BOTH, "numbers": NUMBERS[0]}), "features"),
        (lambda: MODEL.clone(heads=3).init(jax.random.key(0), BOTH), "heads=3"),
        (lambda: quantile_edges(NUMBERS, 0), "bins=0"),
        (lambda: quantile_edges(np.full((2, 2), np.nan), 3), "[0, 1]"),
    ],
)
def test_errors_are_one_line_that_names_what_to_change(act, word):
    with pytest.raises(UserError) as caught:
        act()
    assert word in str(caught.value)
    assert "\n" not in str(caught.value)
