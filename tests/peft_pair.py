"""One small model twice, in torch under a PEFT adapter and as a function of our tree, both in float64."""

import warnings
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest

LAYERS = {"lin1": (12, 9), "lin2": (9, 5), "lin3": (5, 3)}
ROWS = 6


def ours(params, x):
    """What the torch model computes; a path is a layer's name and the kernel's."""
    for name in LAYERS:
        x = x @ params[name]["kernel"] + params[name]["bias"]
        x = jnp.tanh(x) if name != "lin3" else x
    return x


def pair(config: str, double: bool = True, **options) -> SimpleNamespace:
    """PEFT's model over a base drawn from seed 0.

    Args:
        config: name of PEFT's class; options: its arguments, `target_modules` apart (all but the last layer).
        double: whether the base is made float64 before PEFT sees it; some of its inits refuse that.

    Returns:
        torch, peft, model (PEFT's, in float64), tree (our parameters of the base before PEFT, NumPy) and x.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what importing and building say is not ours to mend
        peft = pytest.importorskip("peft")
        torch = pytest.importorskip("torch")
        torch.manual_seed(0)
        base = torch.nn.Sequential()
        for name, size in LAYERS.items():
            base.add_module(name, torch.nn.Linear(*size))
            if name != "lin3":
                base.add_module(f"tanh_{name}", torch.nn.Tanh())
        base = base.double() if double else base
        tree = tree_of(base)
        options = {"target_modules": ["lin1", "lin2"], **options}
        model = peft.get_peft_model(base, getattr(peft, config)(**options)).double()
    x = np.random.default_rng(1).normal(size=(ROWS, LAYERS["lin1"][0]))
    return SimpleNamespace(torch=torch, peft=peft, model=model, tree=tree, x=x)


def tree_of(model) -> dict:
    """Our tree of a torch model's base layers as they are now, float64."""
    tree: dict = {name: {} for name in LAYERS}
    for name, value in model.named_parameters():
        parts = name.split(".")
        layer = next((part for part in parts if part in LAYERS), None)
        if layer is not None and not any("lora" in part or part == "ranknum" for part in parts):
            array = value.detach().numpy().astype(np.float64)
            tree[layer]["kernel" if parts[-1] == "weight" else "bias"] = array.T if parts[-1] == "weight" else array
    return tree


def parameters(model) -> dict:
    """What PEFT trains. Of AdaLoRA's rank it is said that it is no parameter, but it lets itself be trained."""
    return {name: value for name, value in model.named_parameters() if value.requires_grad and "ranknum" not in name}


def trained(model, grads: bool = False) -> dict:
    """PEFT's trained tensors, or their gradients: path -> {"a": [in, r], "b": [r, out]} and for AdaLoRA "e": [r]."""
    found: dict = {}
    for name, value in parameters(model).items():
        layer = next(part for part in name.split(".") if part in LAYERS)
        part = next(part for part in name.split(".") if part.startswith("lora_"))
        array = (value.grad if grads else value).detach().numpy().copy()
        array = array.ravel() if part == "lora_E" else array.T
        found.setdefault(f"{layer}/kernel", {})[part.removeprefix("lora_").lower()] = array
    return found


def stir(the: SimpleNamespace) -> None:
    """Moves what PEFT trains off its initial values, of which many are zero."""
    with the.torch.no_grad():
        for parameter in parameters(the.model).values():
            parameter.add_(0.3 * the.torch.randn(parameter.shape, dtype=parameter.dtype))


def theirs(the: SimpleNamespace) -> np.ndarray:
    """PEFT's outputs; afterwards its parameters hold the gradients of their mean square."""
    y = the.model(the.torch.tensor(the.x))
    (y**2).mean().backward()
    return y.detach().numpy()
