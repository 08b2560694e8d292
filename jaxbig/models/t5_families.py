"""The published families that are a `T5`: T5 1.0, T5 1.1, Flan-T5 and ByT5 (all "t5"), and mT5.

T5 1.0 has one table for embedding and head, and scales the last states before it; T5 1.1 has a head of its own and no
scale. A ``config.json`` says the second by ``tie_word_embeddings: false``; transformers 5 writes true there, whatever
the head, and tells the scale as ``scale_decoder_outputs``: then the files say whether there is a head.
"""

from collections.abc import Collection, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from jaxbig.errors import UserError
from jaxbig.models.family import Family, Tensor, field, refuse
from jaxbig.models.t5 import T5, TASKS

HEAD = "lm_head.weight"


def _module(kind: str, config: Mapping[str, Any], task: str, **options: Any) -> T5:
    """The module that a ``config.json`` describes; fields that it leaves out are transformers' defaults."""
    if task not in TASKS:
        raise UserError(f"{kind}: no head for the task {task!r}; there are {', '.join(TASKS)}")
    if options.pop("num_classes", None) is not None:
        raise UserError(f"{kind}: num_classes is for models with classes, and this one has none; leave it out")
    refuse(config, is_decoder=False)
    layers = field(config, "num_layers")
    activation, gated = _hidden(config, "relu" if kind == "t5" else "gated-gelu")
    tied = config.get("tie_word_embeddings", True) is not False
    starts = (config.get(name) for name in ("decoder_start_token_id", "pad_token_id"))
    return T5(
        vocabulary=field(config, "vocab_size"),
        width=field(config, "d_model"),
        layers=layers,
        heads=field(config, "num_heads"),
        head_width=field(config, "d_kv"),
        hidden=field(config, "d_ff"),
        decoder_layers=_count(config.get("num_decoder_layers"), layers),
        buckets=config.get("relative_attention_num_buckets", 32),
        distance=config.get("relative_attention_max_distance", 128),
        activation=activation,
        gated=gated,
        eps=config.get("layer_norm_epsilon", 1e-6),
        tied=tied,
        scaled=kind == "t5" and config.get("scale_decoder_outputs", tied),
        task=task,
        start=next((token for token in starts if token is not None), 0),
        dropout=config.get("dropout_rate", 0.1),
        factor=config.get("initializer_factor", 1.0),
        **options,
    )


def _count(given: int | None, other: int) -> int:
    return other if given is None else given


def _hidden(config: Mapping[str, Any], default: str) -> tuple[str, bool]:
    """Activation and gate, of ``feed_forward_proj`` or of what transformers writes beside it."""
    told = config.get("feed_forward_proj", default)
    front, _, name = told.rpartition("-")
    if front not in ("", "gated"):
        raise UserError(
            f"config.json: feed_forward_proj is {told!r:.60}; jaxbig's t5 knows ACTIVATION and gated-ACTIVATION"
        )
    name = "gelu_new" if told == "gated-gelu" else name
    return config.get("dense_act_fn") or name, config.get("is_gated_act", front == "gated")


def _settled(kind: str, config: Mapping[str, Any], names: Collection[str]) -> Mapping[str, Any]:
    """The config with ``tie_word_embeddings`` as the files have it, where it does not say that itself."""
    if HEAD not in names or config.get("tie_word_embeddings") is False:
        return config
    if kind == "t5" and "scale_decoder_outputs" not in config:
        return config  # from before transformers 5: true means a tied head, which the file may repeat
    return {**config, "tie_word_embeddings": False}


ATTENTION = {"query": "q", "key": "k", "value": "v", "out": "o"}


def _stack(module: T5, part: str) -> list[Tensor]:
    """Every tensor of the encoder or the decoder."""
    ours, theirs, decoder = f"{part}/layer_{{}}/", f"{part}.block.{{}}.layer.", part == "decoder"
    found = [
        Tensor(
            f"{part}/position_bias/embedding", f"{part}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
        ),
        Tensor(f"{part}/norm/scale", f"{part}.final_layer_norm.weight"),
    ]
    parts = {"attention": "0.SelfAttention"} | ({"cross": "1.EncDecAttention"} if decoder else {})
    last = len(parts)
    products = {f"{its}/{own}": f"{name}.{other}" for its, name in parts.items() for own, other in ATTENTION.items()}
    hidden = {"mlp/gate": "wi_0", "mlp/up": "wi_1"} if module.gated else {"mlp/up": "wi"}
    products |= {own: f"{last}.DenseReluDense.{other}" for own, other in {**hidden, "mlp/down": "wo"}.items()}
    for number, its in enumerate([*parts, "mlp"]):
        found.append(Tensor(f"{ours}{its}_norm/scale", f"{theirs}{number}.layer_norm.weight"))
    return found + [Tensor(f"{ours}{own}/kernel", f"{theirs}{name}.weight", "matrix") for own, name in products.items()]


def _tensors(module: T5) -> list[Tensor]:
    found = [Tensor("embed/embedding", "shared.weight"), *_stack(module, "encoder")]
    if module.task != "encoder":
        found += _stack(module, "decoder")
    if module.task == "seq2seq_lm" and not module.tied:
        found.append(Tensor("head/kernel", HEAD, "matrix"))
    return found


def _example(module: T5) -> tuple[Any, ...]:
    tokens, texts = (jax.ShapeDtypeStruct((1, count), jnp.int32) for count in (8, 6))
    return (tokens,) if module.task == "encoder" else (tokens, texts)


def _family(kind: str, classes: str) -> Family:
    tasks = {"ForConditionalGeneration": "seq2seq_lm", "Model": "features", "EncoderModel": "encoder"}
    return Family(
        kind,
        {classes + end: task for end, task in tasks.items()},
        partial(_module, kind),
        _tensors,
        "transformer",
        _example,
        settled=partial(_settled, kind),
        copies={f"{part}.embed_tokens.weight": "shared.weight" for part in ("encoder", "decoder")},
    )


T5_FAMILY = _family("t5", "T5")
MT5 = _family("mt5", "MT5")
