"""BitFit: what counts as a bias, and that nothing else moves."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from law_models import LAYERS, case

from jaxbig.errors import UsageError
from jaxbig.lift import lift
from jaxbig.tree import paths
from jaxbig.tune.bitfit import bitfit
from jaxbig.usage import usage


def test_every_bias_of_a_transformer_and_nothing_else():
    model = case("unrolled")
    uses = usage(model.apply, model.params, model.inputs)
    split = bitfit().init(None, model.params, uses)
    assert set(split.train) == {path for path in paths(model.params) if path.endswith("bias")}
    assert len(split.train) == LAYERS * 8 + 1


def test_biases_of_scanned_layers_and_convolutions():
    for name in ("scanned", "cnn"):
        model = case(name)
        split = bitfit().init(None, model.params, usage(model.apply, model.params, model.inputs))
        assert set(split.train) == {path for path in paths(model.params) if path.endswith("bias")}


def test_a_scale_and_a_position_table_are_no_biases():
    params = {"scale": jnp.ones(3), "shift": jnp.zeros(3), "position": jnp.ones((2, 3))}
    uses = usage(lambda p, x: (x + p["position"]) * p["scale"] + p["shift"], params, jnp.ones((2, 3)))
    assert set(bitfit().init(None, params, uses).train) == {"shift"}


def test_a_step_moves_the_biases_alone_and_copies_were_taken():
    model, x = nn.Dense(3), jnp.ones((2, 4))
    params = model.init(jax.random.key(0), x)["params"]
    method = bitfit()
    split = method.init(None, params, usage(lambda p, x: model.apply({"params": p}, x), params, x))
    grads = jax.grad(lambda t: lift(model.apply)({"params": method.apply(split._replace(train=t))}, x).sum())(
        split.train
    )
    np.testing.assert_allclose(grads["bias"], jnp.full(3, 2.0))
    after = method.apply(split._replace(train={"bias": split.train["bias"] - grads["bias"]}))
    np.testing.assert_array_equal(after["kernel"], params["kernel"])
    np.testing.assert_allclose(after["bias"], jnp.full(3, -2.0))
    np.testing.assert_array_equal(params["bias"], jnp.zeros(3))


def test_where_takes_what_it_names_and_a_model_without_bias_is_an_error():
    params = {"w": jnp.ones((2, 3)), "b": jnp.zeros(3)}
    assert set(bitfit(where="w").init(None, params, {}).train) == {"w"}
    with pytest.raises(UsageError, match="no parameter is of the kind"):
        bitfit().init(
            None, {"w": jnp.ones((2, 3))}, usage(lambda p, x: x @ p["w"], {"w": jnp.ones((2, 3))}, jnp.ones(2))
        )
