"""Small random models of transformers by its own writing: a case is a class, a config, and how we load it."""

import warnings
from typing import NamedTuple

import numpy as np

V, LABELS, SIDE = 31, 3, 8
TEXT = {"vocab_size": V, "num_labels": LABELS, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
BERT = TEXT | {
    "hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 20,
    "max_position_embeddings": 24,
}  # fmt: skip
DISTIL = TEXT | {"dim": 12, "n_layers": 2, "n_heads": 3, "hidden_dim": 20, "max_position_embeddings": 24}
GPT2 = TEXT | {"n_embd": 12, "n_layer": 3, "n_head": 3, "n_positions": 24}
LLAMA = BERT | {"num_key_value_heads": 1, "head_dim": 6}
GEMMA = LLAMA | {"sliding_window": 3, "query_pre_attn_scalar": 5}
VIT = {
    "hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 20, "image_size": SIDE,
    "patch_size": 4, "num_labels": LABELS,
}  # fmt: skip
CLIP_TEXT = BERT | {"max_position_embeddings": 9, "projection_dim": 6}
CLIP_VISION = VIT | {"hidden_size": 8, "num_attention_heads": 2, "projection_dim": 6}
CLIP = {"text_config": CLIP_TEXT, "vision_config": CLIP_VISION, "projection_dim": 6}
SIGLIP = {"text_config": CLIP_TEXT | {"projection_size": 8}, "vision_config": CLIP_VISION}
# An untied BERT has a second bias in transformers' module, which counts for nothing and is no leaf of ours.
IDLE = {"cls.predictions.bias"}
UNTIED = {"tie_word_embeddings": False}
TIED = {"tie_word_embeddings": True}


class Case(NamedTuple):
    """Attributes: name: transformers' class; fields: of its config; options: of `jaxbig.load`."""

    name: str
    fields: dict
    options: dict = {}  # noqa: RUF012 - a NamedTuple's default, which nobody changes


CASES = {
    "bert": Case("BertModel", BERT, {"pooler": True}),
    "bert lm": Case("BertForMaskedLM", BERT),
    "bert lm untied": Case("BertForMaskedLM", BERT | UNTIED),
    "bert classes": Case("BertForSequenceClassification", BERT),
    "bert tokens": Case("BertForTokenClassification", BERT),
    "bert answers": Case("BertForQuestionAnswering", BERT | {"num_labels": 2}),
    "roberta": Case("RobertaModel", BERT, {"pooler": True}),
    "roberta lm": Case("RobertaForMaskedLM", BERT),
    "roberta classes": Case("RobertaForSequenceClassification", BERT),
    "xlm-roberta classes": Case("XLMRobertaForSequenceClassification", BERT),
    "camembert lm": Case("CamembertForMaskedLM", BERT),
    "distilbert": Case("DistilBertModel", DISTIL),
    "distilbert lm": Case("DistilBertForMaskedLM", DISTIL),
    "distilbert classes": Case("DistilBertForSequenceClassification", DISTIL),
    "gpt2": Case("GPT2Model", GPT2),
    "gpt2 lm": Case("GPT2LMHeadModel", GPT2),
    "gpt2 lm untied": Case("GPT2LMHeadModel", GPT2 | UNTIED),
    "gpt2 classes": Case("GPT2ForSequenceClassification", GPT2),
    "llama": Case("LlamaModel", LLAMA),
    "llama lm": Case("LlamaForCausalLM", LLAMA),
    "llama lm tied": Case("LlamaForCausalLM", LLAMA | TIED | {"attention_bias": True}),
    "llama classes": Case("LlamaForSequenceClassification", LLAMA),
    "mistral lm": Case("MistralForCausalLM", LLAMA | {"sliding_window": 3}),
    "qwen2 lm tied": Case("Qwen2ForCausalLM", BERT | TIED | {"num_key_value_heads": 1}),
    "qwen3 lm": Case("Qwen3ForCausalLM", LLAMA),
    "qwen3 classes": Case("Qwen3ForSequenceClassification", LLAMA),
    "gemma lm": Case("GemmaForCausalLM", LLAMA),
    "gemma2 lm": Case("Gemma2ForCausalLM", GEMMA | {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0}),
    "gemma2 classes": Case("Gemma2ForSequenceClassification", GEMMA),
    "gemma3": Case("Gemma3TextModel", GEMMA | {"layer_types": ["sliding_attention", "full_attention"]}),
    "gemma3 lm untied": Case("Gemma3ForCausalLM", GEMMA | UNTIED | {"sliding_window_pattern": 2}),
    "gemma3 classes": Case("Gemma3TextForSequenceClassification", GEMMA | {"sliding_window_pattern": 2}),
    "vit classes": Case("ViTForImageClassification", VIT),
    "deit classes": Case("DeiTForImageClassification", VIT),
    "deit taught": Case("DeiTForImageClassificationWithTeacher", VIT),
    "dinov2 classes": Case("Dinov2ForImageClassification", VIT),
    "clip": Case("CLIPModel", CLIP),
    "clip text": Case("CLIPTextModel", CLIP_TEXT),
    "clip text projected": Case("CLIPTextModelWithProjection", CLIP_TEXT),
    "clip vision": Case("CLIPVisionModel", CLIP_VISION),
    "clip vision projected": Case("CLIPVisionModelWithProjection", CLIP_VISION),
    "siglip": Case("SiglipModel", SIGLIP),
    "siglip text": Case("SiglipTextModel", CLIP_TEXT | {"projection_size": 7}),
    "siglip vision": Case("SiglipVisionModel", CLIP_VISION),
    "siglip vision, no head": Case("SiglipVisionModel", CLIP_VISION | {"vision_use_head": False}),
    "dinov2": Case("Dinov2Model", VIT | {"use_swiglu_ffn": True}),
}


def theirs(torch, case, dtype="float64"):
    """A model whose parameters are none of them what they are at first."""
    import transformers

    cls = getattr(transformers, case.name)
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = cls(cls.config_class(**case.fields, attn_implementation="eager")).to(getattr(torch, dtype)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, dtype=parameter.dtype))
    return model


def read_back(torch, folder, name, dtype="float64"):
    """transformers' model of a folder, which has to be whole."""
    import transformers

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model, told = getattr(transformers, name).from_pretrained(
            folder, dtype=getattr(torch, dtype), output_loading_info=True, attn_implementation="eager"
        )
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        assert set(told[kind]) - IDLE == set(), told
    return model.eval()


def inputs(case):
    """Token ids [2, 7], or images [2, 8, 8, 3], or a pair of them."""
    rng = np.random.default_rng(0)
    if "vision_config" in case.fields:
        return rng.integers(3, V, (2, 7)), rng.normal(size=(2, SIDE, SIDE, 3))
    if "image_size" in case.fields:
        return rng.normal(size=(2, SIDE, SIDE, 3))
    return rng.integers(3, V, (2, 7))


def said(torch, model, x):
    """All that a model says of them, as NumPy arrays."""
    given = {}
    for each in x if isinstance(x, tuple) else (x,):
        if each.ndim == 4:
            given["pixel_values"] = torch.tensor(np.moveaxis(each, -1, 1)).to(model.dtype)
        else:
            given["input_ids"] = torch.tensor(each)
    with torch.no_grad():
        found = model(**given)
    if hasattr(found, "start_logits"):
        return [found.start_logits.numpy(), found.end_logits.numpy()]
    for name in ("logits_per_image", "text_embeds", "image_embeds"):
        if found.get(name) is not None:
            return [found[name].float().numpy()]
    if hasattr(found, "last_hidden_state"):
        pooled = found.get("pooler_output")
        return [each.float().numpy() for each in (found.last_hidden_state, pooled) if each is not None]
    return [found.logits.float().numpy()]
