"""The families of published models that are known here, by ``model_type`` and by architecture."""

from collections.abc import Mapping
from typing import Any

from jaxbig.errors import UserError
from jaxbig.models.bert_families import BERT, CAMEMBERT, DISTILBERT, ROBERTA, XLM_ROBERTA
from jaxbig.models.clip_families import CLIP_FAMILY, CLIP_TEXT, CLIP_VISION, SIGLIP, SIGLIP_TEXT, SIGLIP_VISION
from jaxbig.models.family import Family
from jaxbig.models.gemma_families import GEMMA, GEMMA2, GEMMA3
from jaxbig.models.gpt2 import GPT2_FAMILY
from jaxbig.models.llama import LLAMA, MISTRAL, QWEN2, QWEN3
from jaxbig.models.t5_families import MT5, T5_FAMILY
from jaxbig.models.vit_families import DEIT, DINOV2, VIT
from jaxbig.models.whisper_family import WHISPER

ALL: tuple[Family, ...] = (
    BERT,
    CAMEMBERT,
    DISTILBERT,
    ROBERTA,
    XLM_ROBERTA,
    CLIP_FAMILY,
    CLIP_TEXT,
    CLIP_VISION,
    SIGLIP,
    SIGLIP_TEXT,
    SIGLIP_VISION,
    DEIT,
    DINOV2,
    VIT,
    GEMMA,
    GEMMA2,
    GEMMA3,
    GPT2_FAMILY,
    LLAMA,
    MISTRAL,
    QWEN2,
    QWEN3,
    MT5,
    T5_FAMILY,
    WHISPER,
)
FAMILIES: Mapping[str, Family] = {family.name: family for family in ALL}
ARCHITECTURES: Mapping[str, Family] = {name: family for family in ALL for name in family.architectures}


def family_of(config: Mapping[str, Any]) -> Family:
    """The family of a ``config.json``.

    Args:
        config: its fields; ``model_type`` decides, and where it has none, the first of ``architectures``.

    Returns:
        the family.

    Raises:
        UserError: an unknown one.

    Example:
        >>> family_of({"model_type": "mistral"}).name, family_of({"architectures": ["LlamaForCausalLM"]}).name
        ('mistral', 'llama')
    """
    kind, named = config.get("model_type"), config.get("architectures")
    first = named[0] if isinstance(named, list) and named else None
    known, key = (FAMILIES, kind) if kind else (ARCHITECTURES, first)
    found = known.get(key) if isinstance(key, str) else None
    if found is None:
        told = f"model_type is {kind!r:.60}" if kind else f"no model_type, and architectures is {named!r:.60}"
        raise UserError(f"config.json: {told}; jaxbig knows {', '.join(sorted(FAMILIES))}")
    return found
