"""Whisper as a published family: its fields by ``config.json`` and its leaves by the files' names."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxbig.errors import UserError
from jaxbig.models.family import Family, Tensor, field, refuse
from jaxbig.models.whisper import TASKS, Whisper


def _module(config: Mapping[str, Any], task: str, **options: Any) -> Whisper:
    """The module that a ``config.json`` describes; fields that it leaves out are transformers' defaults."""
    if task not in TASKS:
        raise UserError(f"whisper: no head for the task {task!r}; there are {', '.join(TASKS)}")
    refuse(
        config, scale_embedding=False, use_weighted_layer_sum=False, encoder_layerdrop=0, decoder_layerdrop=0,
        apply_spec_augment=False, is_encoder_decoder=True,
    )  # fmt: skip
    named = config.get("num_labels") or len(config.get("id2label") or ()) or 2
    count = options.pop("num_classes", None)
    return Whisper(
        vocabulary=field(config, "vocab_size"),
        width=field(config, "d_model"),
        layers=field(config, "decoder_layers"),
        heads=field(config, "decoder_attention_heads"),
        hidden=field(config, "decoder_ffn_dim"),
        length=config.get("max_target_positions", 448),
        encoder_layers=field(config, "encoder_layers"),
        encoder_heads=field(config, "encoder_attention_heads"),
        encoder_hidden=field(config, "encoder_ffn_dim"),
        encoder_length=config.get("max_source_positions", 1500),
        mels=config.get("num_mel_bins", 80),
        activation=config.get("activation_function", "gelu"),
        tied=config.get("tie_word_embeddings", True),
        task=task,
        num_classes=named if count is None else count,
        start=config.get("decoder_start_token_id", 50257),
        projector=config.get("classifier_proj_size", 256),
        dropout=config.get("dropout", 0.0),
        attention_dropout=config.get("attention_dropout", 0.0),
        activation_dropout=config.get("activation_dropout", 0.0),
        std=config.get("init_std", 0.02),
        **options,
    )


ATTENTION = {"query": "q_proj", "key": "k_proj", "value": "v_proj", "out": "out_proj"}
ENCODER_LAYER = {f"attention/{ours}": f"self_attn.{theirs}" for ours, theirs in ATTENTION.items()} | {
    "attention_norm": "self_attn_layer_norm",
    "mlp/up": "fc1",
    "mlp/down": "fc2",
    "mlp_norm": "final_layer_norm",
}
DECODER_LAYER = (
    ENCODER_LAYER
    | {f"cross/{ours}": f"encoder_attn.{theirs}" for ours, theirs in ATTENTION.items()}
    | {"cross_norm": "encoder_attn_layer_norm"}
)


def _half(half: str, prefix: str, layer: Mapping[str, str]) -> list[Tensor]:
    """The layers of the encoder or the decoder, and its last norm."""
    names = {f"{half}/layer_{{}}/{ours}": f"{prefix}{half}.layers.{{}}.{theirs}" for ours, theirs in layer.items()}
    found = []
    for ours, theirs in (names | {f"{half}/norm": f"{prefix}{half}.layer_norm"}).items():
        norm = ours.endswith("norm")
        found += [Tensor(f"{ours}/{'scale' if norm else 'kernel'}", f"{theirs}.weight", "same" if norm else "matrix")]
        found += [Tensor(f"{ours}/bias", f"{theirs}.bias")] * (not ours.endswith("/key"))
    return found


def _tensors(module: Whisper) -> list[Tensor]:
    """Every tensor; the class with a head for sounds alone has the encoder without ``model.`` in front."""
    alone = module.task == "audio_classification"
    prefix = "" if alone else "model."
    found = [Tensor("encoder/positions", f"{prefix}encoder.embed_positions.weight")]
    for number in range(2):
        ours, theirs = f"encoder/conv_{number}", f"{prefix}encoder.conv{number + 1}"
        found += [Tensor(f"{ours}/kernel", f"{theirs}.weight", "conv"), Tensor(f"{ours}/bias", f"{theirs}.bias")]
    found += _half("encoder", prefix, ENCODER_LAYER)
    if alone:
        for ours, theirs in (("projector", "projector"), ("head", "classifier")):
            found += [Tensor(f"{ours}/kernel", f"{theirs}.weight", "matrix"), Tensor(f"{ours}/bias", f"{theirs}.bias")]
        return found
    found += [
        Tensor("decoder/embed/embedding", "model.decoder.embed_tokens.weight"),
        Tensor("decoder/positions/embedding", "model.decoder.embed_positions.weight"),
    ]
    found += _half("decoder", prefix, DECODER_LAYER)
    untied = module.task == "seq2seq_lm" and not module.tied
    return found + [Tensor("head/kernel", "proj_out.weight", "matrix")] * untied


def _example(module: Whisper) -> tuple[Any, ...]:
    sound = jax.ShapeDtypeStruct((1, 2 * module.encoder_length, module.mels), jnp.float32)
    text = jax.ShapeDtypeStruct((1, min(8, module.length)), jnp.int32)
    return (sound,) if module.task == "audio_classification" else (sound, text)


ARCHITECTURES = {
    "WhisperForConditionalGeneration": "seq2seq_lm",
    "WhisperForAudioClassification": "audio_classification",
    "WhisperModel": "features",
}
WHISPER = Family("whisper", ARCHITECTURES, _module, _tensors, "model", _example)
