"""Adapters of matrices against PEFT in float64: outputs, and gradients of all that is trained."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from peft_methods import METHODS, frozen, tensors, train_of

from jaxbig.compress.merge import merge
from jaxbig.lift import lift
from jaxbig.usage import usage

INPUTS, OUTPUTS, ROWS = 12, 9, 5


def ours(params, x):
    return jnp.tanh(x @ params["lin1"] + params["bias1"]) @ params["lin2"] + params["bias2"]


@pytest.mark.parity
@pytest.mark.parametrize("name", METHODS)
def test_outputs_and_gradients_are_peft_s(name, torch):
    import peft

    method = METHODS[name]
    transform = method.ours("lin1")
    torch.manual_seed(0)
    base = torch.nn.Sequential()
    for layer, (inputs, outputs) in {"lin1": (INPUTS, OUTPUTS), "lin2": (OUTPUTS, 3)}.items():
        base.add_module(layer, torch.nn.Linear(inputs, outputs, bias=True))
        if layer == "lin1":
            base.add_module("tanh", torch.nn.Tanh())
    base = base.double()
    of = {key: value.detach().numpy().copy() for key, value in base.state_dict().items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = peft.get_peft_model(
            base, getattr(peft, method.config)(target_modules=["lin1"], **method.options)
        ).double()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:  # many start at zero, where gradients vanish
                parameter.add_(0.3 * torch.randn(parameter.shape, dtype=torch.float64))
    x = torch.randn(ROWS, INPUTS, dtype=torch.float64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a sparse tensor, by torch
        expected = model(x)
        (expected**2).mean().backward()
    theirs, grads = tensors(model), tensors(model, grads=True)

    with jax.enable_x64(True):
        biases = [of.get(f"{layer}.bias", np.zeros(n)) for layer, n in (("lin1", OUTPUTS), ("lin2", 3))]
        params = {"lin1": of["lin1.weight"].T, "bias1": biases[0], "lin2": of["lin2.weight"].T, "bias2": biases[1]}
        params = jax.tree.map(jnp.asarray, params)
        x = jnp.asarray(x.numpy())
        split = transform.init(jax.random.key(0), params, usage(ours, params, x))
        assert list(split.train) == ["lin1"]
        assert set(split.train["lin1"]) == set(method.parts)
        layer = next(module for key, module in model.named_modules() if key.endswith("lin1"))
        split = split._replace(state=frozen(split.state, {"lin1": layer}))
        train = train_of(method, theirs, {"lin1": "lin1"})
        assert jax.tree.map(jnp.shape, train) == jax.tree.map(jnp.shape, split.train)

        def loss(train):
            y = lift(ours, strict=True)(transform.apply(split._replace(train=train)), x)
            return (y**2).mean(), y

        found, y = jax.grad(loss, has_aux=True)(train)
        rtol = 2e-5 if name == "fourierft" else 1e-9  # whose transform PEFT computes in float32
        np.testing.assert_allclose(y, expected.detach().numpy(), rtol, atol=rtol / 1000)
        merged = ours(merge(transform.apply(split._replace(train=train))), x)
        np.testing.assert_allclose(merged, y, rtol=1e-9, atol=1e-12)
        expected = train_of(method, grads, {"lin1": "lin1"})["lin1"]
        for part, grad in expected.items():
            np.testing.assert_allclose(found["lin1"][part], grad, 10 * rtol, atol=rtol / 100, err_msg=part)
