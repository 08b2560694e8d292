"""Task arithmetic, TIES, DARE and SLERP against the papers' equations in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxbig.combine import sparsify
from jaxbig.combine.arithmetic import task_arithmetic
from jaxbig.combine.dare import dare
from jaxbig.combine.slerp import slerp
from jaxbig.combine.ties import ties
from jaxbig.compress.merge import merge
from jaxbig.compress.quantize import quantize
from jaxbig.errors import UsageError
from jaxbig.usage import usage

WEIGHTS = [0.7, -0.4, 1.3]


def tree(seed: int):
    random = np.random.default_rng(seed)
    return {"a": {"w": random.normal(size=(4, 6))}, "b": random.normal(size=(7,)), "n": np.array([seed])}


BASE, TUNED = tree(0), [tree(seed) for seed in (1, 2, 3)]


def flat(tree) -> np.ndarray:
    """The floating entries of a tree as the papers' one vector."""
    return np.concatenate([np.ravel(tree["a"]["w"]), np.ravel(tree["b"])]).astype(np.float64)


def cast(tree, dtype):
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype if leaf.dtype.kind != "i" else None), tree)


def check(combine, expected):
    """`combine(base, tuned)` in float64 and in float32."""
    for dtype, rtol in ((jnp.float64, 1e-12), (jnp.float32, 2e-6)):
        with jax.enable_x64(dtype == jnp.float64):
            found = combine(cast(BASE, dtype), [cast(other, dtype) for other in TUNED])
            assert found["a"]["w"].dtype == dtype
            assert found["n"].tolist() == [0]
            np.testing.assert_allclose(flat(found), expected, rtol, atol=rtol)


def trimmed(vector, density):
    """Equation of TIES's first step: all but the top share of magnitudes are 0."""
    kept = np.argsort(-np.abs(vector))[: int(density * vector.size)]
    return np.where(np.isin(np.arange(vector.size), kept), vector, 0)


def disjoint(vectors, weights, by="total"):
    """TIES's second and third step, entry by entry."""
    merged = np.zeros(vectors[0].size)
    for p in range(merged.size):
        entries = [vector[p] for vector in vectors]
        gamma = np.sign(sum(entries) if by == "total" else sum(np.sign(entries))) or 1
        agree = [w * x for w, x in zip(weights, entries, strict=True) if np.sign(x) == gamma]
        merged[p] = sum(agree) / len(agree) if agree else 0
    return merged


VECTORS = [flat(other) - flat(BASE) for other in TUNED]


def test_task_arithmetic_adds_and_takes_away():
    expected = flat(BASE) + sum(w * v for w, v in zip(WEIGHTS, VECTORS, strict=True))
    check(lambda base, tuned: task_arithmetic(base, tuned, WEIGHTS), expected)
    check(task_arithmetic, flat(BASE) + sum(VECTORS))


TIES = [(density, by) for density in (0.2, 0.5, 1.0) for by in ("total", "frequency")]
TIES_FAST = [(0.2, "frequency"), (1.0, "total")]


@pytest.mark.parametrize(
    ("density", "by"), [pytest.param(*case, marks=[pytest.mark.slow] * (case not in TIES_FAST)) for case in TIES]
)
def test_ties_trims_the_whole_vector_elects_and_averages(density, by):
    vectors = [trimmed(vector, density) for vector in VECTORS]
    expected = flat(BASE) + disjoint(vectors, WEIGHTS, by)
    check(lambda base, tuned: ties(base, tuned, WEIGHTS, density, by), expected)
    plain = flat(BASE) + disjoint(vectors, [1, 1, 1], by)
    assert np.abs(plain - expected).max() > 0.1
    check(lambda base, tuned: ties(base, tuned, density=density, signs=by), plain)


def test_ties_that_keeps_nothing_is_the_base_and_draws_go_to_plus():
    check(lambda base, tuned: ties(base, tuned, density=0.0), flat(BASE))
    one, other = {"w": jnp.array([2.0, -3.0])}, {"w": jnp.array([-2.0, -1.0])}
    assert ties({"w": jnp.zeros(2)}, [one, other], density=1.0)["w"].tolist() == [2.0, -2.0]


@pytest.mark.parametrize("signs", [None, "total", "frequency"])
def test_dare_is_its_equation_on_the_masks_that_it_draws(signs, monkeypatch):
    random = np.random.default_rng(5)
    # In the order of drawing: each task's leaves.
    drawn = [random.random(shape) < 0.6 for _ in TUNED for shape in ((4, 6), (7,))]
    masks = [np.concatenate([drawn[2 * i].ravel(), drawn[2 * i + 1]]) for i in range(3)]
    waiting = []

    def next_mask(key, shape, density):
        assert density == 0.6
        waiting[:] = waiting or drawn
        assert waiting[0].shape == shape
        return jnp.asarray(waiting.pop(0))

    monkeypatch.setattr(sparsify, "mask", next_mask)
    vectors = [np.where(m, v / 0.6, 0) for m, v in zip(masks, VECTORS, strict=True)]
    summed = sum(w * v for w, v in zip(WEIGHTS, vectors, strict=True))
    expected = flat(BASE) + (disjoint(vectors, WEIGHTS, signs) if signs else summed)
    check(lambda base, tuned: dare(jax.random.key(0), base, tuned, WEIGHTS, 0.6, signs), expected)


def test_dare_keeps_its_share_with_the_right_mean_and_leaves_draw_apart():
    base = {"a": jnp.zeros((100, 100)), "b": jnp.zeros((100, 100))}
    ones = jax.tree.map(jnp.ones_like, base)
    both = dare(jax.random.key(0), base, [ones, ones], [1, 3], 0.3)
    # of 10,000 draws at 0.3 the share has a standard deviation of 0.0046
    for leaf in both.values():
        shares = [np.mean(np.isclose(leaf, x / 0.3)) for x in (0, 1, 3, 4)]
        np.testing.assert_allclose(shares, [0.49, 0.21, 0.21, 0.09], atol=0.02)
        np.testing.assert_allclose(leaf.mean(), 4, atol=0.25)
    assert 0.3 < float((both["a"] == both["b"]).mean()) < 0.4  # 0.49^2 + 2 * 0.21^2 + 0.09^2 where independent
    again = dare(jax.random.key(0), base, [ones, ones], [1, 3], 0.3)
    jax.tree.map(np.testing.assert_array_equal, again, both)
    assert bool((dare(jax.random.key(1), base, [ones], density=0.3)["a"] != both["a"]).any())


def arc(u, v, t):
    """Shoemake's formula."""
    omega = np.arccos(np.sum(u * v) / np.linalg.norm(u) / np.linalg.norm(v))
    return (np.sin((1 - t) * omega) * u + np.sin(t * omega) * v) / np.sin(omega)


@pytest.mark.parametrize("t", [0.0, 0.3, 1.0])
def test_slerp_is_the_formula_leaf_by_leaf(t):
    first, second = ([tree["a"]["w"], tree["b"]] for tree in (BASE, TUNED[0]))
    expected = np.concatenate([arc(u, v, t).ravel() for u, v in zip(first, second, strict=True)])
    check(lambda base, tuned: slerp(base, tuned[0], t), expected)


def test_slerp_of_unit_vectors_keeps_length_and_angle():
    u = np.array([1.0, 0.0, 0.0])
    for angle in (1e-2, 1e-3, 1.5, 3.1):
        v = np.array([np.cos(angle), np.sin(angle), 0.0])
        found = np.asarray(slerp({"w": jnp.asarray(u, jnp.float32)}, {"w": jnp.asarray(v, jnp.float32)}, 0.25)["w"])
        np.testing.assert_allclose(np.linalg.norm(found), 1, rtol=2e-6)
        np.testing.assert_allclose(np.arctan2(found[1], found[0]), angle / 4, rtol=2e-4)


@pytest.mark.parametrize("factor", [1.0, 2.0, 1 + 1e-7, -1.0, 0.0])
def test_slerp_without_an_arc_is_the_straight_line(factor):
    u = np.array([0.6, -0.8, 0.3], np.float32)
    found = slerp({"w": jnp.asarray(u)}, {"w": jnp.asarray(factor * u)}, 0.25)["w"]
    np.testing.assert_allclose(found, (0.75 + 0.25 * factor) * u, rtol=1e-6)
    grads = jax.grad(lambda v: slerp({"w": jnp.asarray(u)}, {"w": v}, 0.25)["w"].sum())(jnp.asarray(factor * u + 1e-3))
    assert np.isfinite(grads).all()


def test_slerp_turns_each_scanned_layer_by_itself():
    first, second = ({"w": jnp.asarray(np.random.default_rng(i).normal(size=(3, 4, 4)))} for i in (0, 1))
    uses = usage(lambda p, x: jax.lax.scan(lambda x, w: (x @ w, None), x, p["w"])[0], first, jnp.ones((2, 4)))
    apart = [slerp({"w": first["w"][i]}, {"w": second["w"][i]}, 0.3)["w"] for i in range(3)]
    np.testing.assert_allclose(slerp(first, second, 0.3, uses)["w"], np.stack(apart), rtol=1e-6)
    assert float(jnp.abs(slerp(first, second, 0.3)["w"] - np.stack(apart)).max()) > 1e-3


COMBINE = {
    "task_arithmetic": lambda base, tuned: task_arithmetic(base, tuned, [0.3] * len(tuned)),
    "ties": lambda base, tuned: ties(base, tuned, density=0.5),
    "dare": lambda base, tuned: dare(jax.random.key(0), base, tuned, density=0.5),
    "slerp": lambda base, tuned: slerp(base, tuned[0]),
}


@pytest.mark.parametrize("name", COMBINE)
def test_sums_are_in_float32_and_rounded_once(name):
    half, whole = ([cast(other, dtype) for other in (BASE, *TUNED)] for dtype in (jnp.bfloat16, jnp.float32))
    widened = [cast(trees, jnp.float32) for trees in half]
    found = COMBINE[name](half[0], half[1:])
    expected = COMBINE[name](widened[0], widened[1:])
    for leaf, exact in zip(jax.tree.leaves(found)[:2], jax.tree.leaves(expected)[:2], strict=True):
        assert leaf.dtype == jnp.bfloat16
        np.testing.assert_array_equal(leaf, exact.astype(jnp.bfloat16))
    assert COMBINE[name](half[0], whole[1:])["b"].dtype == jnp.float32


@pytest.mark.parametrize("name", COMBINE)
def test_weights_are_merged_nothing_is_shared_and_jit_is_the_same(name):
    base, *tuned = (cast(other, jnp.float32) for other in (BASE, *TUNED))
    codes = quantize("int8", where="a/w").init(None, tuned[0], {}).params
    found = COMBINE[name](base, [codes, tuned[1]])
    plain = COMBINE[name](base, [merge(codes), tuned[1]])
    jax.tree.map(np.testing.assert_array_equal, found, plain)
    jitted = jax.jit(COMBINE[name])(base, [codes, tuned[1]])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), jitted, found)
    jax.block_until_ready(jax.jit(lambda t: jax.tree.map(lambda a: a + 1, t), donate_argnums=0)(found))
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves((base, codes, tuned)))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: task_arithmetic(BASE, []), "task_arithmetic: no trees"),
        (lambda: task_arithmetic(BASE, TUNED, [1]), "3 trees but 1 weights"),
        (lambda: ties(BASE, TUNED, density=1.5), "density=1.5"),
        (lambda: ties(BASE, TUNED, signs="loudest"), "signs='loudest'"),
        (lambda: dare(None, BASE, TUNED), "a/w: its values are drawn at random; give a key"),
        (lambda: dare(jax.random.key(0), BASE, TUNED, density=0), "density=0 keeps nothing"),
        (lambda: slerp({"w": jnp.ones(2)}, {"w": jnp.ones(3)}), "slerp: w is (2,) in tree 0 and (3,) in tree 1"),
        (lambda: ties(BASE, [BASE | {"more": np.ones(1)}]), "more is None in tree 0 and (1,) in tree 1"),
    ],
)
def test_errors_are_one_clear_line(make, words):
    with pytest.raises(UsageError, match=r"^[^\n]*$") as caught:
        make()
    assert words in str(caught.value)
