"""`ia3` and the biases that PEFT scales along. Values and gradients beside PEFT's: test_matrix_adapters."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxbig import full, ia3, lift, merge, partition, quantize, usage
from jaxbig.errors import UsageError
from jaxbig.transform import chain


class Stack(nn.Module):
    """Two scanned layers, each of heads."""

    @nn.compact
    def __call__(self, x):
        class Layer(nn.Module):
            @nn.compact
            def __call__(self, x):
                heads = nn.DenseGeneral((2, 3), name="up", bias_init=nn.initializers.normal())(x)
                return nn.Dense(4, use_bias=False, name="down")(jnp.tanh(heads).reshape(-1, 6)), None

        layers = nn.scan(Layer, variable_axes={"params": 0}, split_rngs={"params": True}, length=2)
        return layers(name="layers")(x)[0]


@pytest.fixture(scope="module")
def stack():
    model, x = Stack(), jax.random.normal(jax.random.key(1), (5, 4))
    params = model.init(jax.random.key(0), x)["params"]
    fn = lambda params, x: model.apply({"params": params}, x)  # noqa: E731
    return fn, params, x, usage(fn, params, x)


def gained(split):
    keys = iter(jax.random.split(jax.random.key(2), 9))
    return split._replace(train=jax.tree.map(lambda a: a + jax.random.normal(next(keys), a.shape), split.train))


@pytest.mark.parametrize("base", ["plain", "int8"])
def test_outputs_and_their_bias_are_scaled(stack, base):
    fn, params, x, uses = stack
    technique = ia3(biases=True) if base == "plain" else chain(quantize("int8"), ia3(biases=True))
    split = gained(technique.init(jax.random.key(0), params, uses))
    train = split.train if base == "plain" else split.train["ia3"]
    assert set(train) == {"layers/up/kernel", "layers/down/kernel"}
    dense = params if base == "plain" else merge(quantize("int8").apply(quantize("int8").init(None, params, uses)))
    h = x
    for layer in range(2):
        its = jax.tree.map(lambda leaf: leaf[layer], dense["layers"])  # noqa: B023
        up = h @ its["up"]["kernel"].reshape(4, 6) + its["up"]["bias"].reshape(6)
        up = up * train["layers/up/kernel"]["gain"][layer]
        h = jnp.tanh(up) @ its["down"]["kernel"] * train["layers/down/kernel"]["gain"][layer]
    np.testing.assert_allclose(lift(fn, strict=True)(technique.apply(split), x), h, rtol=2e-5, atol=1e-6)
    merged = merge(technique.apply(split))
    assert jax.tree.map(jnp.shape, merged) == jax.tree.map(jnp.shape, params)
    np.testing.assert_allclose(fn(merged, x), h, rtol=2e-5, atol=1e-6)


def test_without_it_biases_stay(stack):
    _, params, _, uses = stack
    tree = merge(ia3().apply(gained(ia3().init(None, params, uses))))
    np.testing.assert_array_equal(tree["layers"]["up"]["bias"], params["layers"]["up"]["bias"])


FLAT = {"w": jnp.ones((4, 3)), "b": jnp.ones(3), "c": jnp.ones(3), "v": jnp.ones(3)}


def flat(p, x):
    return jnp.tanh((x @ p["w"] + p["b"]) * p["v"]) + p["c"]


WRONG = {
    "two": (lambda: ia3("w", biases=True), FLAT, "any of b, c may be w's bias; say which, biases={bias: weight}"),
    "none": (lambda: ia3("w", biases={"v": "w"}), FLAT, "v is no bias of w, which is added and has the shape (3,)"),
    "inputs": (lambda: ia3("w", "in", biases=True), FLAT, "biases=True with side='in'"),
    "another's": (
        lambda: partition({"w": ia3("w", biases={"b": "w"}), "b": full()}), FLAT, "b belongs to another part; let"
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", WRONG)
def test_what_is_wrong_is_one_clear_line(what):
    make, params, says = WRONG[what]
    with pytest.raises(UsageError) as caught:
        make().init(jax.random.key(0), params, usage(flat, params, jnp.ones((2, 4))))
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)
