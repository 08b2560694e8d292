"""LN-tuning: which leaves normalise, whatever they are called, and PEFT's choice on GPT-2."""

import warnings

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gpt2_by_hand import LAYERS, ours, theirs, tree
from law_models import case

from jaxbig.errors import UsageError
from jaxbig.lift import lift
from jaxbig.tree import paths
from jaxbig.tune.ln_tuning import ln_tuning
from jaxbig.usage import usage


def chosen(fn, params, *example, where=None):
    return set(ln_tuning(where).init(None, params, usage(fn, params, *example)).train)


@pytest.mark.parametrize("name", ["unrolled", "scanned"])
def test_the_norms_of_a_transformer_and_nothing_else(name):
    model = case(name)
    found = chosen(model.apply, model.params, model.inputs)
    assert found == {path for path in paths(model.params) if "norm" in path.rpartition("/")[0]}
    assert len(found) == (10 if name == "unrolled" else 6)


NORMS = {
    "layer": nn.LayerNorm(),
    "layer in bfloat16": nn.LayerNorm(dtype=jnp.bfloat16),
    "rms": nn.RMSNorm(),
    "group": nn.GroupNorm(num_groups=2),
    "batch": nn.BatchNorm(use_running_average=True),
    "no bias": nn.LayerNorm(use_bias=False),
}


@pytest.mark.parametrize("name", NORMS)
def test_every_kind_of_normalisation_and_no_layer_beside_it(name):
    model = nn.Sequential([nn.Dense(4), NORMS[name], nn.gelu, nn.Dense(4), nn.Dense(2)])
    x = jnp.ones((3, 5))
    variables = model.init(jax.random.key(0), x)
    fn = lambda p, x: model.apply({**variables, "params": p}, x)  # noqa: E731
    assert chosen(fn, variables["params"], x) == {f"layers_1/{leaf}" for leaf in variables["params"]["layers_1"]}


def test_names_say_nothing_a_scalar_is_no_scale_and_the_next_bias_is_the_norm_s():
    params = {"kernel": jnp.ones(4), "scale": jnp.ones((4, 4)), "other": jnp.zeros(4), "shift": jnp.zeros(4),
              "late": jnp.zeros(4), "temperature": jnp.ones(()), "twice": jnp.ones(4)}  # fmt: skip

    def fn(p, x):
        x = x @ p["scale"] + p["other"]
        x = x / jnp.std(x) * p["kernel"] + p["shift"]
        return ((x + p["late"]) * p["twice"] + p["twice"]) * p["temperature"]

    assert chosen(fn, params, jnp.ones((3, 4))) == {"kernel", "shift"}
    assert chosen(fn, params, jnp.ones((3, 4)), where="late") == {"late"}


def test_a_model_without_norms_is_an_error():
    with pytest.raises(UsageError, match="no parameter is of the kind"):
        chosen(lambda p, x: x @ p["w"], {"w": jnp.ones((2, 3))}, jnp.ones(2))


@pytest.mark.parity
def test_it_trains_what_peft_trains_with_the_same_gradients():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        peft, torch = pytest.importorskip("peft"), pytest.importorskip("torch")
        pytest.importorskip("transformers")
    base = theirs()
    with jax.enable_x64(True):
        params, ids = tree(base), np.array([[1, 5, 16, 2], [3, 3, 0, 9]])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PEFT warns of every layer norm that it is no layer it knows
            model = peft.get_peft_model(base, peft.LNTuningConfig(task_type="CAUSAL_LM"))
        (model(torch.tensor(ids)).logits ** 2).mean().backward()
        name_of = lambda name: name.split("transformer.")[1].replace("ln_tuning_layers.default.", "").replace(".", "/")  # noqa: E731
        trained = {name_of(name): p.grad.numpy() for name, p in model.named_parameters() if p.requires_grad}
        method = ln_tuning()
        split = method.init(None, params, usage(ours, params, ids))
        assert set(split.train) == set(trained)
        assert len(trained) == 2 * (2 * LAYERS + 1)
        apply = lambda train: lift(ours, strict=True)(method.apply(split._replace(train=train)), ids)  # noqa: E731
        grads = jax.grad(lambda train: (apply(train) ** 2).mean())(split.train)
        for path, grad in trained.items():
            np.testing.assert_allclose(grads[path], grad, rtol=1e-9, atol=1e-11, err_msg=path)
