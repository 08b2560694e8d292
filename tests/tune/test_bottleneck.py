"""Bottleneck adapters against the layers written out, where they go, and what they refuse."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from law_models import case
from law_trial import uses_of

from jaxbig import bottleneck, usage
from jaxbig.errors import UsageError
from jaxbig.lift import MaterialiseWarning, lift

D, F, R = 6, 10, 3


def model(p, x):
    """Attention's place is taken by a mixing of rows; each of the two products ends in the stream."""
    x = x + (x.mean(-2, keepdims=True) * x) @ p["mix"]["kernel"] + p["mix"]["bias"]
    return x + jax.nn.gelu(x @ p["up"]["kernel"]) @ p["down"]["kernel"] + p["down"]["bias"]


def written_out(p, train, x, parallel=False):
    def after(name, read, y):
        its = train.get(f"{name}/kernel")
        if its is None:
            return y
        # an adapter of the paper reads y + b; its down bias here is d + D b there
        return y + 2.0 * (jax.nn.silu(read @ its["down"] + its["down_bias"]) @ its["up"] + its["up_bias"])

    read = x.mean(-2, keepdims=True) * x
    y = read @ p["mix"]["kernel"]
    x = x + after("mix", read if parallel else y, y) + p["mix"]["bias"]
    read = jax.nn.gelu(x @ p["up"]["kernel"])
    y = read @ p["down"]["kernel"]
    return x + after("down", read if parallel else y, y) + p["down"]["bias"]


@pytest.mark.parametrize("placement", ["houlsby", "pfeiffer", "parallel"])
def test_values_and_gradients_are_those_of_the_layers_written_out(placement):
    with jax.enable_x64(True):
        random = np.random.default_rng(0)
        shapes = {"mix": {"kernel": (D, D), "bias": (D,)}, "up": {"kernel": (D, F)},
                  "down": {"kernel": (F, D), "bias": (D,)}}  # fmt: skip
        draw = lambda shape: jnp.asarray(random.normal(size=shape))  # noqa: E731
        params = jax.tree.map(draw, shapes, is_leaf=lambda x: isinstance(x, tuple))
        x = draw((2, 4, D))
        technique = bottleneck(R, placement, activation="silu", scale=2.0)
        split = technique.init(jax.random.key(0), params, usage(model, params, x))
        assert list(split.train) == (["down/kernel", "mix/kernel"] if placement == "houlsby" else ["down/kernel"])
        np.testing.assert_array_equal(technique.wrap(split, model)(params, x), model(params, x))
        train = jax.tree.map(lambda leaf: draw(leaf.shape), split.train)

        def ours(train):
            now = split._replace(train=train)
            y = lift(technique.wrap(now, model), strict=True)(technique.apply(now), x)
            return (y**2).mean(), y

        def theirs(train):
            y = written_out(params, train, x, placement == "parallel")
            return (y**2).mean(), y

        (grads, y), (expected_grads, expected) = (jax.grad(fn, has_aux=True)(train) for fn in (ours, theirs))
        np.testing.assert_allclose(y, expected, rtol=1e-12)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12), grads, expected_grads)


def test_reading_before_the_bias_is_the_paper_s_adapter_with_another_down_bias():
    """Houlsby's adapter of h = x W + b with (D, d): ours with d + D b."""
    random = np.random.default_rng(1)
    w, b, down, d, up, u = (random.normal(size=size) for size in ((D, D), (D,), (D, R), (R,), (R, D), (D,)))
    x = random.normal(size=(5, D))
    h = x @ w + b
    papers = x + h + np.maximum(h @ down + d, 0) @ up + u
    fn = lambda p, x: x + (x @ p["w"] + p["b"])  # noqa: E731
    with jax.enable_x64(True):
        params = {"w": jnp.asarray(w), "b": jnp.asarray(b)}
        technique = bottleneck(R)
        split = technique.init(jax.random.key(0), params, usage(fn, params, x))
        parts = {"down": down, "down_bias": d + b @ down, "up": up, "up_bias": u}
        split = split._replace(train={"w": jax.tree.map(jnp.asarray, parts)})
        np.testing.assert_allclose(technique.wrap(split, fn)(params, jnp.asarray(x)), papers, rtol=1e-12)


@pytest.mark.parametrize("scanned", [False, True])
def test_they_go_where_the_program_adds_to_the_stream(scanned):
    name, prefix = ("scanned", "blocks/") if scanned else ("unrolled", "block_0/")
    split = bottleneck().init(jax.random.key(0), case(name).params, uses_of(name))
    mine = {path for path in split.train if path.startswith(prefix)}
    assert mine == {f"{prefix}attention/out/kernel", f"{prefix}down/kernel"}
    only = bottleneck(placement="pfeiffer").init(jax.random.key(0), case(name).params, uses_of(name))
    assert {path for path in only.train if path.startswith(prefix)} == {f"{prefix}down/kernel"}
    assert split.train[f"{prefix}down/kernel"]["down"].shape[-1] == 1  # a sixteenth of 12, at least 1


def test_what_it_cannot_do_is_an_error():
    x = jnp.ones((2, D))
    params = {"w": jnp.ones((D, D))}
    fn = lambda p, x: x @ p["w"]  # noqa: E731
    with pytest.raises(UsageError, match="no parameter is of the kind"):
        bottleneck().init(jax.random.key(0), params, usage(fn, params, x))
    normed = lambda p, x: x @ (p["w"] / jnp.linalg.norm(p["w"]))  # noqa: E731
    split = bottleneck(where="w").init(jax.random.key(0), params, usage(fn, params, x))
    with (
        pytest.warns(MaterialiseWarning, match="w: Bottleneck"),
        pytest.raises(UsageError, match="stands for no array"),
    ):
        bottleneck(where="w").wrap(split, normed)(params, x)
    for wrong, said in (
        ({"placement": "behind"}, "one of houlsby, pfeiffer, parallel"),
        ({"activation": "swish"}, "one of relu, gelu, silu, tanh, none"),
        ({"size": 0}, "a whole number of at least 1"),
    ):
        with pytest.raises(UsageError, match=said):
            bottleneck(**wrong)
