"""What is published for `Gemma`: Gemma 1, 2 and 3, the text models; their configs and the tensors of their files."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from jaxbig.errors import UserError
from jaxbig.models.decoder import head_tensors, task_fields
from jaxbig.models.family import Family, Tensor, field, refuse
from jaxbig.models.gemma import Gemma
from jaxbig.models.rope import BASE, Rope, rope_of

GLOBAL_BASE = 1e6  # theta of Gemma 3's layers without a window
ONE, TWO, THREE = "gemma", "gemma2", "gemma3_text"  # transformers' model_type


def _module(kind: str, config: Mapping[str, Any], task: str, **options: Any) -> Gemma:
    """The module that a ``config.json`` describes; fields that a file leaves out mean transformers' defaults."""
    refuse(config, use_bidirectional_attention=(False, None))
    if kind == THREE:
        refuse(config, attn_logit_softcapping=None)  # which transformers reads and does not compute
    layers, head_width = field(config, "num_hidden_layers"), config.get("head_dim", 256)
    rope, local_rope = _ropes(config, kind)
    activation = config.get("hidden_act" if kind == ONE else "hidden_activation") or "gelu_pytorch_tanh"
    if kind == ONE and activation == "gelu":  # so the first files of Gemma 1, which mean the approximation
        activation = "gelu_pytorch_tanh"
    caps = {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0} if kind == TWO else {}
    known = {} if kind == ONE else caps | dict(config)
    return Gemma(
        vocabulary=field(config, "vocab_size"),
        width=field(config, "hidden_size"),
        layers=layers,
        heads=field(config, "num_attention_heads"),
        kv_heads=field(config, "num_key_value_heads"),
        head_width=head_width,
        hidden=field(config, "intermediate_size"),
        rope=rope,
        local_rope=local_rope,
        scale=(head_width if kind == ONE else config.get("query_pre_attn_scalar", 256)) ** -0.5,
        attention_softcap=known.get("attn_logit_softcapping"),
        logit_softcap=known.get("final_logit_softcapping"),
        post_norms=kind != ONE,
        qk_norm=kind == THREE,
        windows=() if kind == ONE else _windows(config, kind, layers),
        biases=("out", "qkv") if config.get("attention_bias") else (),
        activation=activation,
        eps=config.get("rms_norm_eps", 1e-6),
        tied=config.get("tie_word_embeddings", True),
        attention_dropout=config.get("attention_dropout") or 0.0,
        std=config.get("initializer_range", 0.02),
        **task_fields({"pad_token_id": 0, **config}, task, options.pop("num_classes", None), kind),
        **options,
    )


def _ropes(config: Mapping[str, Any], kind: str) -> tuple[Rope, Rope | None]:
    """The rotations of layers without and with a window."""
    if kind != THREE:
        return rope_of(config), None
    given = config.get("rope_parameters") or {}
    if given and not given.keys() & {"full_attention", "sliding_attention"}:
        raise UserError(
            "config.json: rope_parameters has no entry 'full_attention' or 'sliding_attention'; jaxbig's gemma3_text "
            "reads one of each"
        )
    plain = {key: value for key, value in config.items() if not key.startswith("rope_")}
    full = {"rope_parameters": given.get("full_attention"), "rope_scaling": config.get("rope_scaling")}
    local = {"rope_parameters": given.get("sliding_attention")}
    bases = config.get("rope_theta", GLOBAL_BASE), config.get("rope_local_base_freq", BASE)
    return rope_of(plain | full, bases[0]), rope_of(plain | local, bases[1])


def _windows(config: Mapping[str, Any], kind: str, layers: int) -> tuple[int | None, ...]:
    """Each layer's window: of every second layer, or of all but every sixth, where the file does not say."""
    window, every = config.get("sliding_window", 4096), 2
    if kind == THREE:
        every = config.get("sliding_window_pattern", 6)
    types = config.get("layer_types") or [
        "sliding_attention" if (i + 1) % every else "full_attention" for i in range(layers)
    ]
    if unknown := set(types) - {"sliding_attention", "full_attention"}:
        raise UserError(f"config.json: layer_types has {sorted(unknown)}; jaxbig's {kind} has no such layers")
    if window is None and "sliding_attention" in types:
        raise UserError("config.json: has layers of sliding_attention, and sliding_window is null; give a window")
    return tuple(window if each == "sliding_attention" else None for each in types)


def _tensors(module: Gemma) -> list[Tensor]:
    """Every tensor of a module under the names that the whole line shares."""
    ours, theirs = "layer_{}/", "model.layers.{}."
    products = {f"attention/{name}": f"self_attn.{name[0]}_proj" for name in ("query", "key", "value", "out")}
    products |= {f"mlp/{name}": f"mlp.{name}_proj" for name in ("gate", "up", "down")}
    norms = {"attention_norm": "input_layernorm", "mlp_norm": "post_attention_layernorm"}
    if module.post_norms:
        norms |= {"attention_post_norm": "post_attention_layernorm", "mlp_norm": "pre_feedforward_layernorm"}
        norms |= {"mlp_post_norm": "post_feedforward_layernorm"}
    if module.qk_norm:
        norms |= {"attention/query_norm": "self_attn.q_norm", "attention/key_norm": "self_attn.k_norm"}
    found = [Tensor("embed/embedding", "model.embed_tokens.weight"), Tensor("norm/scale", "model.norm.weight")]
    found += [Tensor(f"{ours}{norm}/scale", f"{theirs}{name}.weight") for norm, name in norms.items()]
    for path, name in products.items():
        found.append(Tensor(f"{ours}{path}/kernel", f"{theirs}{name}.weight", "matrix"))
        if path.startswith("attention") and ("out" if path.endswith("out") else "qkv") in module.biases:
            found.append(Tensor(f"{ours}{path}/bias", f"{theirs}{name}.bias"))
    return found + head_tensors(module, "score")


def _example(module: Gemma) -> tuple[Any, ...]:
    return (jax.ShapeDtypeStruct((1, 8), jnp.int32),)


def _family(kind: str, name: str, heads: Mapping[str, str]) -> Family:
    architectures = {name + suffix: task for suffix, task in heads.items()}
    return Family(kind, architectures, partial(_module, kind), _tensors, "model", _example)


_HEADS = {"ForCausalLM": "causal_lm", "ForSequenceClassification": "sequence_classification"}
_HEADS |= {"ForTokenClassification": "token_classification", "Model": "features"}
GEMMA = _family(ONE, "Gemma", _HEADS)
GEMMA2 = _family(TWO, "Gemma2", _HEADS)
GEMMA3 = _family(
    THREE, "Gemma3",
    {"ForCausalLM": "causal_lm", "TextForSequenceClassification": "sequence_classification", "TextModel": "features"},
)  # fmt: skip
