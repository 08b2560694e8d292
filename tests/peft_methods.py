"""Which of PEFT's tensors the parts of our adapters are, method by method, for tests that compare the two."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxbig.transform import Transform
from jaxbig.tune.dora import dora
from jaxbig.tune.fourierft import fourierft
from jaxbig.tune.hra import hra
from jaxbig.tune.ia3 import ia3
from jaxbig.tune.loha import loha
from jaxbig.tune.lokr import lokr
from jaxbig.tune.lora import lora
from jaxbig.tune.oft import oft
from jaxbig.tune.shira import shira
from jaxbig.tune.vera import vera

T = np.transpose


class Method(NamedTuple):
    """One method on both sides.

    Attributes:
        ours: ``where -> transform``.
        config, options: PEFT's class and its arguments.
        parts: our part -> (PEFT's tensor, how it is turned).
    """

    ours: Callable[[Any], Transform]
    config: str
    options: Mapping[str, Any]
    parts: Mapping[str, tuple[str, Callable]]


METHODS = {
    "lora": Method(
        lambda where: lora(rank=2, alpha=3.0, where=where), "LoraConfig", {"r": 2, "lora_alpha": 3.0},
        {"a": ("lora_A", T), "b": ("lora_B", T)},
    ),
    "dora": Method(
        lambda where: dora(rank=2, alpha=3.0, where=where), "LoraConfig", {"r": 2, "lora_alpha": 3.0, "use_dora": True},
        {"a": ("lora_A", T), "b": ("lora_B", T), "magnitude": ("lora_magnitude_vector", np.ravel)},
    ),
    "vera": Method(
        lambda where: vera(rank=3, where=where), "VeraConfig", {"r": 3},
        {"d": ("vera_lambda_d", np.ravel), "b": ("vera_lambda_b", np.ravel)},
    ),
    "loha": Method(
        lambda where: loha(rank=2, alpha=3.0, where=where), "LoHaConfig", {"r": 2, "alpha": 3.0},
        {"a1": ("hada_w1_b", T), "b1": ("hada_w1_a", T), "a2": ("hada_w2_b", T), "b2": ("hada_w2_a", T)},
    ),
    "lokr": Method(
        lambda where: lokr(rank=1, alpha=3.0, where=where), "LoKrConfig", {"r": 1, "alpha": 3.0},
        {"c": ("lokr_w1", T), "a": ("lokr_w2_b", T), "b": ("lokr_w2_a", T)},
    ),
    "lokr whole": Method(
        lambda where: lokr(rank=8, alpha=3.0, factor=3, where=where), "LoKrConfig",
        {"r": 8, "alpha": 3.0, "decompose_factor": 3}, {"c": ("lokr_w1", T), "d": ("lokr_w2", T)},
    ),
    "fourierft": Method(
        lambda where: fourierft(frequencies=7, scale=2.0, where=where), "FourierFTConfig",
        {"n_frequency": 7, "scaling": 2.0}, {"spectrum": ("fourierft_spectrum", np.ravel)},
    ),
    "shira": Method(
        lambda where: shira(rank=1, where=where), "ShiraConfig", {"r": 1}, {"values": ("shira_weight", np.ravel)}
    ),
    "ia3": Method(
        lambda where: ia3(where, biases={"bias1": "lin1"} if where == "lin1" else True), "IA3Config",
        {"feedforward_modules": []}, {"gain": ("ia3_l", np.ravel)},
    ),
    "ia3 in": Method(
        lambda where: ia3(side="in", where=where), "IA3Config", {"feedforward_modules": ["lin1"]},
        {"gain": ("ia3_l", np.ravel)},
    ),
    "oft": Method(
        lambda where: oft(block=4, where=where), "OFTConfig", {"r": 0, "oft_block_size": 4},
        {"skew": ("oft_R", np.asarray)},
    ),
    "hra": Method(lambda where: hra(rank=4, where=where), "HRAConfig", {"r": 4}, {"u": ("hra_u", np.asarray)}),
}  # fmt: skip


def tensors(model, grads: bool = False) -> dict[str, np.ndarray]:
    """PEFT's trained tensors, or their gradients: ``module:tensor``, module without PEFT's prefix."""
    found = {}
    for name, value in model.named_parameters():
        if value.requires_grad:
            parts = name.removeprefix("base_model.model.").split(".")
            parts = [part for part in parts if part not in ("default", "weight")]
            found[f"{'.'.join(parts[:-1])}:{parts[-1]}"] = (value.grad if grads else value).detach().numpy().copy()
    return found


def train_of(method: Method, given: Mapping[str, np.ndarray], modules: Mapping[str, Any]) -> dict[str, Any]:
    """The trained leaves of our split: path -> part -> array, of a stack one after the other.

    Args:
        method: of `METHODS`.
        given: what `tensors` gives.
        modules: path -> PEFT's module, or a list of them, one for each layer of a stack.
    """
    found: dict[str, Any] = {}
    for path, its in modules.items():
        one = lambda module, key, turn: turn(given[f"{module}:{key}"])  # noqa: E731
        found[path] = {
            part: jnp.asarray(
                one(its, key, turn) if isinstance(its, str) else np.stack([one(module, key, turn) for module in its])
            )
            for part, (key, turn) in method.parts.items()
        }
    return found


def frozen(state: Any, layers: Mapping[str, Any]) -> Any:
    """Our state with what PEFT has drawn at random and does not train.

    Args:
        state: of our split.
        layers: path -> PEFT's layer, or a list of them, one for each layer of a stack.
    """
    drawn = {}
    for path, its in layers.items():
        each = its if isinstance(its, list) else [its]
        if not hasattr(each[0], "shira_indices"):  # `fourierft` draws PEFT's places from the same seed
            continue
        places = [_places(layer) for layer in each]
        drawn[path] = state[path].replace(places=jnp.asarray(np.stack(places) if isinstance(its, list) else places[0]))
    first = next(iter(layers.values()))
    first = first[0] if isinstance(first, list) else first
    if hasattr(first, "vera_A"):
        shared = {"down": first.vera_A["default"].numpy().T, "up": first.vera_B["default"].numpy().T}
        return {**state, "shared": jax.tree.map(jnp.asarray, shared)}
    return {**state, **drawn} if drawn else state


def _places(layer: Any) -> np.ndarray:
    """PEFT's (row, column) of [O, I] as flat indices into [I, O]."""
    rows, columns = layer.shira_indices["default"].numpy()
    return (columns * layer.out_features + rows).astype(np.int32)
