"""PEFT's low-rank methods: LoRA (and rsLoRA), DoRA, AdaLoRA, VeRA."""

import math
from typing import Any

import numpy as np

from jaxbig.errors import UserError
from jaxbig.hub.peft_codec import Codec, by_kind, keys_of
from jaxbig.hub.peft_tensors import Part

_PATTERNS = {"r": "rank_pattern", "lora_alpha": "alpha_pattern"}
# What a LoRA config may say that makes it another method, and the values that do not.
_ONLY = {
    "use_qalora": (False,), "lora_bias": (False,), "layer_replication": (None,), "target_parameters": (None,),
    "trainable_token_indices": (None,), "bias": ("none",), "use_bdlora": (None,), "arrow_config": (None,),
    "alora_invocation_tokens": (None,), "kasa_config": (None,), "monteclora_config": (None,),
    # Other inits change the base, so that the tensors belong to another one than the model's.
    "init_lora_weights": (True, False, "gaussian", "orthogonal", "eva", "mica"),
}  # fmt: skip
_CONFIG = {
    "r": 8, "lora_alpha": 8, "lora_dropout": 0.0, "use_rslora": False, "use_dora": False, "rank_pattern": {},
    "alpha_pattern": {}, "bias": "none", "fan_in_fan_out": False, "exclude_modules": None, "init_lora_weights": True,
    "layers_to_transform": None, "layers_pattern": None, "megatron_config": None, "megatron_core": "megatron.core",
    "trainable_token_indices": None, "loftq_config": {}, "eva_config": None, "corda_config": None,
    "lora_ga_config": None, "velora_config": None, "alora_invocation_tokens": None, "use_qalora": False,
    "qalora_group_size": 16, "monteclora_config": None, "layer_replication": None, "lora_bias": False,
    "target_parameters": None, "use_bdlora": None, "arrow_config": None, "kasa_config": None,
    "ensure_weight_tying": False,
}  # fmt: skip
_PAIR = {
    "product": (Part("a", "lora_A.weight", "Ir", "rI"), Part("b", "lora_B.weight", "rO", "or")),
    "conv": (Part("a", "lora_A.weight", "Ir", "rI"), Part("b", "lora_B.weight", "rO", "ors")),
    "lookup": (Part("a", "lora_embedding_A", "Ir", "rI"), Part("b", "lora_embedding_B", "rO", "or")),
}


def _rank(about, tensors) -> int:
    """That of the tensors; PEFT's patterns may name it otherwise than by module."""
    of = [array.shape[0] for key, array in tensors.items() if key in ("lora_A.weight", "lora_embedding_A")]
    return of[0] if of else about["r"]


def _lora_says(arguments, layer, arrays) -> dict[str, Any]:
    rank, alpha = arrays["a"].shape[-1], arguments["alpha"]
    return {
        "r": rank,
        "lora_alpha": rank if alpha is None else alpha,
        "lora_dropout": arguments["dropout"],
        "use_rslora": arguments["stabilised"],
    }


def _lora_takes(about, layer, tensors) -> dict[str, Any]:
    return {
        "rank": _rank(about, tensors),
        "alpha": float(about["lora_alpha"]),
        "dropout": about["lora_dropout"],
        "uses": "lookup" if layer.tied else "all",
        "stabilised": bool(about["use_rslora"]),
    }


LORA = Codec(
    "lora", "LORA", by_kind(_PAIR), keys_of(_PAIR), _lora_says, _lora_takes, _CONFIG,
    only=_ONLY | {"use_dora": (False,)}, patterns=_PATTERNS, mapped=("rank", "alpha"),
)  # fmt: skip

_TRIPLE = {
    kind: (*_PAIR[kind], Part("magnitude", "lora_magnitude_vector", "O", "1os" if kind == "conv" else "o"))
    for kind in _PAIR
}


def _dora_says(arguments, layer, arrays) -> dict[str, Any]:
    rank, alpha = arrays["a"].shape[-1], arguments["alpha"]
    return {"r": rank, "lora_alpha": rank if alpha is None else alpha}


def _dora_takes(about, layer, tensors) -> dict[str, Any]:
    rank = _rank(about, tensors)
    return {"rank": rank, "alpha": about["lora_alpha"] * (math.sqrt(rank) if about["use_rslora"] else 1.0)}


DORA = Codec(
    "dora", "LORA", by_kind(_TRIPLE), keys_of(_TRIPLE), _dora_says, _dora_takes, _CONFIG | {"use_dora": True},
    marks={"use_dora": True}, only=_ONLY, patterns=_PATTERNS,
)  # fmt: skip

_SVD = {
    kind: (Part("a", "lora_A", "Ir", "ri"), Part("e", "lora_E", "r", "r1"), Part("b", "lora_B", "rO", "or"))
    for kind in ("product", "conv")
}
# PEFT's fields of the same number.
_ADALORA = {
    "target_r": "target", "tinit": "t_init", "tfinal": "t_final", "deltaT": "delta_t", "beta1": "beta1",
    "beta2": "beta2", "total_step": "steps",
}  # fmt: skip


def _adalora_says(arguments, layer, arrays) -> dict[str, Any]:
    rank, alpha = arguments["rank"], arguments["alpha"]
    return {
        "init_r": rank,
        "lora_alpha": rank if alpha is None else alpha,
        "rank_pattern": {f"{layer.stem}.lora_E": arrays["kept"].tolist()},
        **{theirs: arguments[name] for theirs, name in _ADALORA.items()},
    }


def _adalora_takes(about, layer, tensors) -> dict[str, Any]:
    if not about["total_step"]:
        raise UserError("adalora: the config's total_step says no number of steps, which PEFT's own does")
    alpha = float(about["lora_alpha"])
    rest = {name: about[theirs] for theirs, name in _ADALORA.items()}
    return {"rank": about["init_r"], "alpha": alpha if alpha > 0 else None, **rest}


def _thinned(arrays, arguments, layer) -> dict[str, Any]:
    """Without the triplets that were taken away, as PEFT saves them; one that came to life again since is none."""
    kept = arrays["kept"] | (arrays["e"] != 0)
    return {"a": arrays["a"][..., kept], "e": arrays["e"][kept], "b": arrays["b"][kept], "kept": kept}


def _spread(arrays, about, layer) -> dict[str, Any]:
    """With zeros in the places of triplets that were taken away."""
    pattern = (about["rank_pattern"] or {}).get(f"{layer.stem}.lora_E") or [True] * about["init_r"]
    kept = np.asarray(pattern, bool)
    if kept.sum() != len(arrays["e"]):
        raise UserError(
            f"{layer.stem}.lora_E holds {len(arrays['e'])} triplets, and the config's rank_pattern {kept.sum()}"
        )

    def placed(array, axis):
        whole = np.zeros((*array.shape[:axis], len(kept), *array.shape[axis + 1 :]), array.dtype)
        whole[(slice(None),) * axis + (kept,)] = array
        return whole

    last = arrays["a"].ndim - 1
    return {"a": placed(arrays["a"], last), "e": placed(arrays["e"], 0), "b": placed(arrays["b"], 0), "kept": kept}


ADALORA = Codec(
    "adalora", "ADALORA", by_kind(_SVD), keys_of(_SVD), _adalora_says, _adalora_takes,
    _CONFIG | {"init_r": 12, "orth_reg_weight": 0.5, "rank_pattern": None, "total_step": None, "target_r": 8,
               "tinit": 0, "tfinal": 0, "deltaT": 1, "beta1": 0.85, "beta2": 0.85},
    only=_ONLY, joined=("rank_pattern",), renewed=("rank_pattern",), before=_thinned, after=_spread,
    frozen=lambda link, path: {"kept": link.state["kept"][path]},
    settle=lambda state, arrays, shared: {**state, "kept": {path: its["kept"] for path, its in arrays.items()}},
)  # fmt: skip

_VECTORS = {"product": (Part("d", "vera_lambda_d", "r", "r"), Part("b", "vera_lambda_b", "o", "o"))}


def _vera_says(arguments, layer, arrays) -> dict[str, Any]:
    return {"r": arguments["rank"], "d_initial": arguments["d_initial"], "projection_prng_key": arguments["seed"]}


def _vera_takes(about, layer, tensors) -> dict[str, Any]:
    return {"rank": about["r"], "d_initial": about["d_initial"], "seed": about["projection_prng_key"]}


def _vera_settled(state, arrays, shared) -> dict[str, Any]:
    for name, array in shared.items():
        needed = state["shared"][name].shape
        if any(n < m for n, m in zip(array.shape, needed, strict=True)):
            raise UserError(f"vera: the shared matrix of shape {array.shape} is smaller than {needed}, as it is used")
    return {**state, "shared": dict(shared)}


VERA = Codec(
    "vera", "VERA", by_kind(_VECTORS), keys_of(_VECTORS), _vera_says, _vera_takes,
    {"r": 256, "d_initial": 0.1, "projection_prng_key": 0, "save_projection": True, "vera_dropout": 0.0,
     "fan_in_fan_out": False, "bias": "none", "init_weights": True, "layers_to_transform": None,
     "layers_pattern": None},
    only={"save_projection": (True,), "bias": ("none",)}, settle=_vera_settled,
    shared=(("down", "base_model.vera_A"), ("up", "base_model.vera_B")),
)  # fmt: skip
