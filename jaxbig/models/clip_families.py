"""The published families that are a `CLIP` or one of its towers: CLIP and SigLIP, whole, text alone, vision alone."""

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from jaxbig.errors import UserError
from jaxbig.models.clip import CLIP
from jaxbig.models.family import Family, Tensor, refuse, square_side
from jaxbig.models.text_tower import TextTower
from jaxbig.models.vision_tower import VisionTower

Config = Mapping[str, Any]


# What transformers takes for fields that a file leaves out; published files leave out all that are these.
CLIP_BOTH = {"hidden_act": "quick_gelu", "layer_norm_eps": 1e-5, "projection_dim": 512}
SIGLIP_BOTH = {"hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6}
SMALLER = {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 12, "num_attention_heads": 8}
BASE = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
IMAGES = {"num_channels": 3, "image_size": 224}
DEFAULTS: Mapping[str, Config] = {
    "clip_text_model": CLIP_BOTH | SMALLER | {"vocab_size": 49408, "max_position_embeddings": 77},
    "clip_vision_model": CLIP_BOTH | BASE | IMAGES | {"patch_size": 32},
    "siglip_text_model": SIGLIP_BOTH | BASE | {"vocab_size": 32000, "max_position_embeddings": 64},
    "siglip_vision_model": SIGLIP_BOTH | BASE | IMAGES | {"patch_size": 16, "vision_use_head": True},
}


def _part(kind: str, name: str, config: Config) -> dict[str, Any]:
    """The config of a tower, with the defaults, out of that of the whole model."""
    defaults = DEFAULTS[f"{kind}_{name}_model"]
    part, older = ({} if (found := config.get(f"{name}_config{end}")) is None else found for end in ("", "_dict"))
    if not isinstance(part, Mapping) or not isinstance(older, Mapping):
        raise UserError(
            f"config.json: {name}_config or {name}_config_dict is no object; a {kind} model needs its fields"
        )
    # Where an old file has both, transformers takes the older one and its defaults.
    return {**defaults, **part, **({**defaults, **older} if older else {}), "model_type": f"{kind}_{name}_model"}


def _alone(kind: str, name: str, architecture: str, config: Config) -> Config:
    """The config of a tower alone, which the file of the whole model may be read as."""
    refuse(config, model_type=(kind, f"{kind}_{name}_model"))
    if config.get("model_type") != kind and f"{name}_config" not in config:
        return config
    dtypes = {field: config[field] for field in ("dtype", "torch_dtype") if field in config}
    return {**_part(kind, name, config), "architectures": [architecture], **dtypes}


def _sizes(config: Config, **options: Any) -> dict[str, Any]:
    """The fields that both towers have."""
    return {
        "width": config["hidden_size"],
        "layers": config["num_hidden_layers"],
        "heads": config["num_attention_heads"],
        "hidden": config["intermediate_size"],
        "activation": config["hidden_act"],
        "eps": config["layer_norm_eps"],
        "attention_dropout": config.get("attention_dropout", 0.0),
        "std": config.get("initializer_range", 0.02),
        **options,
    }


def _text(config: Config, task: str, **options: Any) -> TextTower:
    config = {**DEFAULTS[config["model_type"]], **config}
    sizes, eos = _sizes(config, **options), config.get("eos_token_id", 49407)
    if config["model_type"].startswith("siglip"):
        width = config.get("projection_size") or sizes["width"]
        how = {"causal": False, "pool": "last", "projection": width, "bias": True}
    else:
        if type(eos) is not int:
            raise UserError(
                f"config.json: eos_token_id is {eos!r:.40}; jaxbig's {config.get('model_type')} takes one id"
            )
        # 2 is what transformers wrote first, whatever the tokenizer's; its id is the highest of the vocabulary.
        how = {"pool": "highest" if eos == 2 else "eos", "eos": eos}
        how |= {"projection": config["projection_dim"]} if task == "projection" else {}
    length = config["max_position_embeddings"]
    return TextTower(vocabulary=config["vocab_size"], length=length, task=task, **how, **sizes)


def _vision(config: Config, task: str, **options: Any) -> VisionTower:
    config = {**DEFAULTS[config["model_type"]], **config}
    siglip = config["model_type"].startswith("siglip")
    pool = "cls" if not siglip else "attention" if config["vision_use_head"] else None
    return VisionTower(
        image=square_side(config, "image_size"),
        patch=square_side(config, "patch_size"),
        channels=config["num_channels"],
        pool=pool,
        projection=config["projection_dim"] if task == "projection" else None,
        task=task,
        **_sizes(config, **options),
    )


def _both(config: Config, task: str, **options: Any) -> CLIP:
    kind = config["model_type"]
    siglip = kind == "siglip"
    shared = {} if siglip else {"projection_dim": config.get("projection_dim", 512)}
    its = "features" if siglip else "projection"
    text = _text({**_part(kind, "text", config), **shared}, its, **options)
    vision = _vision({**_part(kind, "vision", config), **shared}, its, **options)
    if siglip:
        return CLIP(text, vision, math.log(10), -10.0)
    return CLIP(text, vision, config.get("logit_scale_init_value", 2.6592))


LAYER = {
    "attention/query": "self_attn.q_proj",
    "attention/key": "self_attn.k_proj",
    "attention/value": "self_attn.v_proj",
    "attention/out": "self_attn.out_proj",
    "attention_norm": "layer_norm1",
    "mlp/up": "mlp.fc1",
    "mlp/down": "mlp.fc2",
    "mlp_norm": "layer_norm2",
}


def _named(table: Mapping[str, str]) -> list[Tensor]:
    """The tensors of modules: what ends in "norm" has a scale and a bias, the others a kernel and a bias."""
    found = []
    for ours, theirs in table.items():
        first = Tensor(f"{ours}/scale", f"{theirs}.weight")
        if not ours.endswith("norm"):
            first = Tensor(f"{ours}/kernel", f"{theirs}.weight", "matrix")
        found += [first, Tensor(f"{ours}/bias", f"{theirs}.bias")]
    return found


def _layers(prefix: str) -> dict[str, str]:
    return {f"layer_{{}}/{ours}": f"{prefix}.encoder.layers.{{}}.{theirs}" for ours, theirs in LAYER.items()}


def _text_tensors(module: TextTower) -> list[Tensor]:
    front = "text_model.embeddings"
    found = [
        Tensor("embed/embedding", f"{front}.token_embedding.weight"),
        Tensor("positions/embedding", f"{front}.position_embedding.weight"),
        *_named(_layers("text_model") | {"norm": "text_model.final_layer_norm"}),
    ]
    if module.bias:
        return found + _named({"projection": "text_model.head"})
    projection = Tensor("projection/kernel", "text_projection.weight", "matrix")
    return found + [projection] * (module.task == "projection")


def _vision_tensors(module: VisionTower) -> list[Tensor]:
    front, pool, cls = "vision_model.embeddings", "vision_model.head", module.pool == "cls"
    found = [
        Tensor("patches/kernel", f"{front}.patch_embedding.weight", "conv"),
        Tensor("positions", f"{front}.position_embedding.weight"),
    ]
    names = _layers("vision_model") | {"norm": "vision_model.post_layernorm"}
    if cls:
        found.append(Tensor("cls", f"{front}.class_embedding"))
        names["front_norm"] = "vision_model.pre_layrnorm"  # so spelt in the files
    else:
        found.append(Tensor("patches/bias", f"{front}.patch_embedding.bias"))
    if module.pool == "attention":
        found += [
            Tensor("pool/probe", f"{pool}.probe"),
            Tensor("pool/qkv/kernel", f"{pool}.attention.in_proj_weight", "matrix"),
            Tensor("pool/qkv/bias", f"{pool}.attention.in_proj_bias"),
        ]
        names |= {"pool/out": f"{pool}.attention.out_proj", "pool/norm": f"{pool}.layernorm"}
        names |= {"pool/mlp/up": f"{pool}.mlp.fc1", "pool/mlp/down": f"{pool}.mlp.fc2"}
    found += _named(names)
    return found + [Tensor("projection/kernel", "visual_projection.weight", "matrix")] * (module.task == "projection")


def _both_tensors(module: CLIP) -> list[Tensor]:
    parts = {"text": _text_tensors(module.text), "vision": _vision_tensors(module.vision)}
    found = [each._replace(path=f"{name}/{each.path}") for name, part in parts.items() for each in part]
    return (
        found
        + [Tensor("logit_scale", "logit_scale")]
        + [Tensor("logit_bias", "logit_bias")] * (module.bias is not None)
    )


def _text_example(module: TextTower) -> tuple[Any, ...]:
    return (jax.ShapeDtypeStruct((1, min(8, module.length)), jnp.int32),)


def _vision_example(module: VisionTower) -> tuple[Any, ...]:
    return (jax.ShapeDtypeStruct((1, module.image, module.image, module.channels), jnp.float32),)


def _both_example(module: CLIP) -> tuple[Any, ...]:
    return _text_example(module.text) + _vision_example(module.vision)


def _family(name: str, tasks: Mapping[str, str], parts: tuple[Callable[..., Any], ...], part: str = "") -> Family:
    module, tensors, example = parts

    def checked(config: Config, task: str, **options: Any) -> Any:
        if task not in tasks.values():
            raise UserError(f"{name}: no head for the task {task!r}; there are {', '.join(tasks.values())}")
        return module({**config, "model_type": name}, task, **options)

    prefix = f"{part}_model" if part else name
    alone = partial(_alone, name.partition("_")[0], part, next(iter(tasks))) if part else None
    return Family(name, tasks, checked, tensors, prefix, example, alone)


BOTH = (_both, _both_tensors, _both_example)
TEXT, VISION = (_text, _text_tensors, _text_example), (_vision, _vision_tensors, _vision_example)
TEXT_TASKS = {"CLIPTextModel": "features", "CLIPTextModelWithProjection": "projection"}
VISION_TASKS = {"CLIPVisionModel": "features", "CLIPVisionModelWithProjection": "projection"}
CLIP_FAMILY = _family("clip", {"CLIPModel": "contrastive"}, BOTH)
CLIP_TEXT = _family("clip_text_model", TEXT_TASKS, TEXT, "text")
CLIP_VISION = _family("clip_vision_model", VISION_TASKS, VISION, "vision")
SIGLIP = _family("siglip", {"SiglipModel": "contrastive"}, BOTH)
SIGLIP_TEXT = _family("siglip_text_model", {"SiglipTextModel": "features"}, TEXT, "text")
SIGLIP_VISION = _family("siglip_vision_model", {"SiglipVisionModel": "features"}, VISION, "vision")
