"""The published families that are a `PublishedViT`: ViT, DeiT (with and without its teacher's token), DINOv2."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from jaxbig.errors import UserError
from jaxbig.models.family import Family, Tensor, field, refuse, square_side
from jaxbig.models.published_vit import TASKS, PublishedViT


def _module(config: Mapping[str, Any], task: str, **options: Any) -> PublishedViT:
    """The module that a ``config.json`` describes; fields that it leaves out are transformers' defaults."""
    kind = config.get("model_type")
    if task not in TASKS:
        raise UserError(f"{kind}: no head for the task {task!r}; there are {', '.join(TASKS)}")
    refuse(config, drop_path_rate=0.0, apply_layernorm=True)
    width, dino = field(config, "hidden_size"), kind == "dinov2"
    swiglu = dino and config.get("use_swiglu_ffn", False)
    hidden = int(width * config.get("mlp_ratio", 4)) if dino else field(config, "intermediate_size")
    named = config.get("num_labels") or len(config.get("id2label") or ()) or 2
    count = options.pop("num_classes", None)
    dropout = config.get("hidden_dropout_prob", 0.0)
    taught = "DeiTForImageClassificationWithTeacher" in (config.get("architectures") or ())
    return PublishedViT(
        image=square_side(config, "image_size"),
        patch=square_side(config, "patch_size"),
        width=width,
        layers=field(config, "num_hidden_layers"),
        heads=field(config, "num_attention_heads"),
        hidden=(int(hidden * 2 / 3) + 7) // 8 * 8 if swiglu else hidden,
        channels=config.get("num_channels", 3),
        activation=config.get("hidden_act", "gelu"),
        swiglu=swiglu,
        eps=config.get("layer_norm_eps", 1e-6 if dino else 1e-12),
        bias=config.get("qkv_bias", True),
        scale=config.get("layerscale_value", 1.0) if dino else None,
        teacher=kind == "deit",
        mask_token=dino and config.get("use_mask_token", True),
        reads="mean" if dino else "both" if taught else "cls",
        task=task,
        num_classes=named if count is None else count,
        attention_dropout=config.get("attention_probs_dropout_prob", 0.0),
        dropout=dropout,
        layer_dropout=0.0 if dino else dropout,
        std=config.get("initializer_range", 0.02),
        **options,
    )


LAYER = {
    "attention/query": "attention.attention.query",
    "attention/key": "attention.attention.key",
    "attention/value": "attention.attention.value",
    "attention/out": "attention.output.dense",
    "attention_norm": "layernorm_before",
    "mlp/up": "intermediate.dense",
    "mlp/down": "output.dense",
    "mlp_norm": "layernorm_after",
}
DINO_LAYER = LAYER | {"attention_norm": "norm1", "mlp_norm": "norm2"}


def _tensors(module: PublishedViT, prefix: str) -> list[Tensor]:
    """Every tensor, by the names of published files (transformers 5 has others within)."""
    front = f"{prefix}.embeddings"
    found = [
        Tensor("cls", f"{front}.cls_token"),
        Tensor("positions", f"{front}.position_embeddings"),
        Tensor("patches/kernel", f"{front}.patch_embeddings.projection.weight", "conv"),
        Tensor("patches/bias", f"{front}.patch_embeddings.projection.bias"),
    ]
    found += [Tensor("teacher", f"{front}.distillation_token")] * module.teacher
    found += [Tensor("mask", f"{front}.mask_token")] * module.mask_token
    layer, dino = f"{prefix}.encoder.layer.{{}}.", prefix == "dinov2"
    names = {f"layer_{{}}/{ours}": layer + theirs for ours, theirs in (DINO_LAYER if dino else LAYER).items()}
    if dino:
        up, down = ("weights_in", "weights_out") if module.swiglu else ("fc1", "fc2")
        names |= {"layer_{}/mlp/up": f"{layer}mlp.{up}", "layer_{}/mlp/down": f"{layer}mlp.{down}"}
        scales = {"attention_scale": "layer_scale1", "mlp_scale": "layer_scale2"}
        found += [Tensor(f"layer_{{}}/{ours}", f"{layer}{theirs}.lambda1") for ours, theirs in scales.items()]
    names["norm"] = f"{prefix}.layernorm"
    if module.task == "image_classification":
        both = module.reads == "both"
        names |= (
            {"head": "cls_classifier", "teacher_head": "distillation_classifier"} if both else {"head": "classifier"}
        )
    for ours, theirs in names.items():
        norm = ours.endswith("norm")
        found += [Tensor(f"{ours}/{'scale' if norm else 'kernel'}", f"{theirs}.weight", "same" if norm else "matrix")]
        if module.bias or not ours.endswith(("query", "key", "value")):
            found += [Tensor(f"{ours}/bias", f"{theirs}.bias")]
    return found


def _example(module: PublishedViT) -> tuple[Any, ...]:
    return (jax.ShapeDtypeStruct((1, module.image, module.image, module.channels), jnp.float32),)


def _family(kind: str, classes: str, *more: str) -> Family:
    tasks = {f"{classes}Model": "features", f"{classes}ForImageClassification": "image_classification"}
    tasks |= dict.fromkeys(more, "image_classification")
    return Family(kind, tasks, _module, partial(_tensors, prefix=kind), kind, _example)


VIT = _family("vit", "ViT")
DEIT = _family("deit", "DeiT", "DeiTForImageClassificationWithTeacher")
DINOV2 = _family("dinov2", "Dinov2")
