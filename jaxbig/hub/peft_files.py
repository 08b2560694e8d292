"""LoRA adapters in PEFT's files: ``adapter_config.json`` and ``adapter_model.safetensors``.

PEFT names tensors by the modules of a torch model, jaxbig leaves by paths of a tree, so both directions take `names`:
a function from a leaf's path to the torch parameter that it is, such as ``"h.0.attn.c_attn.weight"``; for a leaf that
holds a stack of layers, to a list of them, one a layer. Axes follow from how the model uses the leaf.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxbig.errors import UserError
from jaxbig.transform import Split, Transform

Names = Callable[[str], str | Sequence[str] | None]
Tensors = dict[str, np.ndarray]
PREFIX = "base_model.model."
# What a config may say that changes what the tensors mean, and what it has to say for them to mean plain LoRA.
_PLAIN = {
    "use_dora": False, "use_qalora": False, "lora_bias": False, "layer_replication": None, "target_parameters": None,
    "trainable_token_indices": None, "bias": "none", "use_bdlora": None, "arrow_config": None,
    "alora_invocation_tokens": None,
}  # fmt: skip


class Adapter(NamedTuple):
    """Attributes: transform, split: the adapter over the base it was read for; config: ``adapter_config.json``."""

    transform: Transform
    split: Split
    config: dict[str, Any]


def read_files(folder: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The config, and the tensors by what follows PEFT's prefix."""
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        config = json.loads((folder / "adapter_config.json").read_text())
        tensors = load((folder / "adapter_model.safetensors").read_bytes())
    except OSError as error:
        raise UserError(
            f"{error.filename}: cannot be read ({error.strerror}); give the folder of a PEFT adapter"
        ) from error
    except (ValueError, SafetensorError) as error:
        raise UserError(f"{folder}: is damaged or no PEFT adapter: {error}") from error
    if config.get("peft_type") != "LORA":
        raise UserError(f"{folder}: holds a {config.get('peft_type')} adapter; read_peft reads LORA")
    odd = {key: config[key] for key, plain in _PLAIN.items() if config.get(key, plain) not in (plain, None, {}, [])}
    if odd:
        raise UserError(f"{folder}: its config says {odd}, which plain LoRA has not; read_peft cannot read it")
    return config, {name.removeprefix(PREFIX): array for name, array in tensors.items()}


def modules(found: str | Sequence[str] | None) -> list[str]:
    """What `Names` gives, as a list: one for each layer of a stack.

    Example:
        >>> modules("head.weight"), modules(None)
        (['head.weight'], [])
    """
    return [] if found is None else [found] if isinstance(found, str) else list(found)


def by_module(config: Mapping[str, Any], module: str) -> float:
    """The alpha of a module: the first pattern that fits the end of its name, else the one of all."""
    stem = module.removesuffix(".weight")
    for pattern, value in (config.get("alpha_pattern") or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", stem):
            return value
    return config["lora_alpha"]


def some(names: Mapping[str, Any]) -> str:
    """The first three of some names, for a message.

    Example:
        >>> some(dict.fromkeys("edcba"))
        'a, b, c and 2 more'
    """
    shown = sorted(names)[:3]
    return ", ".join(shown) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
