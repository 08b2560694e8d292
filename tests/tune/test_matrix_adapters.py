"""Adapters of matrices against PEFT in float64: outputs, and gradients of all that is trained."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxbig.compress.merge import merge
from jaxbig.lift import lift
from jaxbig.tune.dora import dora
from jaxbig.tune.fourierft import fourierft
from jaxbig.tune.hra import hra
from jaxbig.tune.ia3 import ia3
from jaxbig.tune.loha import loha
from jaxbig.tune.lokr import lokr
from jaxbig.tune.oft import oft
from jaxbig.tune.shira import shira
from jaxbig.tune.vera import vera
from jaxbig.usage import usage

INPUTS, OUTPUTS, ROWS = 12, 9, 5
T = np.transpose


def swapped(places):
    """PEFT's (row, column) of [O, I] as a flat index into [I, O]."""
    return places[1] * OUTPUTS + places[0]


# name -> our transform, PEFT's config class and arguments, and which of its tensors our parts are, turned how
CASES = {
    "dora": (
        dora(rank=2, alpha=3.0), "LoraConfig", {"r": 2, "lora_alpha": 3.0, "use_dora": True},
        {"a": ("lora_A", T), "b": ("lora_B", T), "magnitude": ("lora_magnitude_vector", np.ravel)},
    ),
    "vera": (
        vera(rank=3), "VeraConfig", {"r": 3},
        {"d": ("vera_lambda_d", np.ravel), "b": ("vera_lambda_b", np.ravel)},
    ),
    "loha": (
        loha(rank=2, alpha=3.0), "LoHaConfig", {"r": 2, "alpha": 3.0},
        {"a1": ("hada_w1_b", T), "b1": ("hada_w1_a", T), "a2": ("hada_w2_b", T), "b2": ("hada_w2_a", T)},
    ),
    "lokr": (
        lokr(rank=1, alpha=3.0), "LoKrConfig", {"r": 1, "alpha": 3.0},
        {"c": ("lokr_w1", T), "a": ("lokr_w2_b", T), "b": ("lokr_w2_a", T)},
    ),
    "lokr whole": (
        lokr(rank=8, alpha=3.0, factor=3), "LoKrConfig", {"r": 8, "alpha": 3.0, "decompose_factor": 3},
        {"c": ("lokr_w1", T), "d": ("lokr_w2", T)},
    ),
    "fourierft": (
        fourierft(frequencies=7, scale=2.0), "FourierFTConfig", {"n_frequency": 7, "scaling": 2.0},
        {"spectrum": ("fourierft_spectrum", np.ravel)},
    ),
    "shira": (shira(rank=1), "ShiraConfig", {"r": 1}, {"values": ("shira_weight", np.ravel)}),
    "ia3": (ia3(), "IA3Config", {"feedforward_modules": []}, {"gain": ("ia3_l", np.ravel)}),
    "ia3 in": (ia3(side="in"), "IA3Config", {"feedforward_modules": ["lin1"]}, {"gain": ("ia3_l", np.ravel)}),
    "oft": (oft(block=4), "OFTConfig", {"r": 0, "oft_block_size": 4}, {"skew": ("oft_R", np.asarray)}),
    "hra": (hra(rank=4), "HRAConfig", {"r": 4}, {"u": ("hra_u", np.asarray)}),
}  # fmt: skip


def ours(params, x):
    return jnp.tanh(x @ params["lin1"] + params["bias1"]) @ params["lin2"] + params["bias2"]


def tensors(model, grads: bool) -> dict[str, np.ndarray]:
    """PEFT's trained tensors, or their gradients, by the part of the name that says which they are."""
    found = {}
    for name, value in model.named_parameters():
        if value.requires_grad:
            parts = [part for part in name.split(".") if part not in ("default", "weight")]
            found[parts[-1]] = (value.grad if grads else value).detach().numpy()
    return found


@pytest.fixture(scope="module")
def torch():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what importing it says is not ours to mend
        pytest.importorskip("peft")
    return pytest.importorskip("torch")


@pytest.mark.parity
@pytest.mark.parametrize("name", CASES)
def test_outputs_and_gradients_are_peft_s(name, torch):
    import peft

    transform, config, options, mapping = CASES[name]
    torch.manual_seed(0)
    base = torch.nn.Sequential()
    for layer, (inputs, outputs) in {"lin1": (INPUTS, OUTPUTS), "lin2": (OUTPUTS, 3)}.items():
        base.add_module(layer, torch.nn.Linear(inputs, outputs, bias=name != "ia3"))  # PEFT scales the bias too
        if layer == "lin1":
            base.add_module("tanh", torch.nn.Tanh())
    base = base.double()
    of = {key: value.detach().numpy().copy() for key, value in base.state_dict().items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = peft.get_peft_model(base, getattr(peft, config)(target_modules=["lin1"], **options)).double()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:  # many start at zero, where gradients vanish
                parameter.add_(0.3 * torch.randn(parameter.shape, dtype=torch.float64))
    x = torch.randn(ROWS, INPUTS, dtype=torch.float64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a sparse tensor, by torch
        expected = model(x)
        (expected**2).mean().backward()
    theirs, grads = tensors(model, False), tensors(model, True)

    with jax.enable_x64(True):
        biases = [of.get(f"{layer}.bias", np.zeros(n)) for layer, n in (("lin1", OUTPUTS), ("lin2", 3))]
        params = {"lin1": of["lin1.weight"].T, "bias1": biases[0], "lin2": of["lin2.weight"].T, "bias2": biases[1]}
        params = jax.tree.map(jnp.asarray, params)
        x = jnp.asarray(x.numpy())
        split = transform.init(jax.random.key(0), params, usage(ours, params, x))
        assert list(split.train) == ["lin1"]
        assert set(split.train["lin1"]) == set(mapping)
        layer = next(module for key, module in model.named_modules() if key.endswith("lin1"))
        split = split._replace(state=frozen(split.state, layer))
        train = {"lin1": {part: jnp.asarray(turn(theirs[key])) for part, (key, turn) in mapping.items()}}
        assert jax.tree.map(jnp.shape, train) == jax.tree.map(jnp.shape, split.train)

        def loss(train):
            y = lift(ours, strict=True)(transform.apply(split._replace(train=train)), x)
            return (y**2).mean(), y

        found, y = jax.grad(loss, has_aux=True)(train)
        rtol = 2e-5 if name == "fourierft" else 1e-9  # whose transform PEFT computes in float32
        np.testing.assert_allclose(y, expected.detach().numpy(), rtol, atol=rtol / 1000)
        merged = ours(merge(transform.apply(split._replace(train=train))), x)
        np.testing.assert_allclose(merged, y, rtol=1e-9, atol=1e-12)
        for part, (key, turn) in mapping.items():
            np.testing.assert_allclose(found["lin1"][part], turn(grads[key]), 10 * rtol, atol=rtol / 100, err_msg=part)


def frozen(state, layer):
    """Our state with what PEFT has drawn at random and does not train."""
    if hasattr(layer, "shira_indices"):
        places = swapped(layer.shira_indices["default"].numpy()).astype(np.int32)
        return {"lin1": state["lin1"].replace(places=jnp.asarray(places))}
    if hasattr(layer, "fourierft_spectrum"):
        places = swapped(layer.indices["default"].numpy()).astype(np.int32)
        return {"lin1": state["lin1"].replace(places=jnp.asarray(places))}
    if hasattr(layer, "vera_A"):
        shared = {"down": layer.vera_A["default"].numpy().T, "up": layer.vera_B["default"].numpy().T}
        return {"lin1": state["lin1"], "shared": jax.tree.map(jnp.asarray, shared)}
    return state
