"""Greedy texts against transformers' ``generate``: 128 tokens after prompts of unequal length, for every decoder.

Theirs reads each prompt alone, so that nothing of theirs depends on padding; ours reads them all at once. Both are
float64, where no two logits of a random model lie so close that rounding turns them around.
"""

import jax
import numpy as np
import pytest
from models.carry import carry
from models.test_decoders import config, theirs

from jaxbig.generate.beam import beam_search
from jaxbig.generate.loop import generate
from jaxbig.models.families import family_of

V, COUNT = 37, 128
PROMPTS = [list(np.random.default_rng(row).integers(4, V, size)) for row, size in enumerate((3, 17, 9, 1))]
LLAMA3 = {"rope_type": "llama3", "rope_theta": 1e2, "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LINEAR = {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}
LOCAL = {"rope_type": "default", "rope_theta": 500.0}
YARN = {"rope_type": "yarn", "rope_theta": 1e2, "factor": 4.0}
FIELDS = {
    "gpt2": {"n_positions": 160},
    "llama": {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}},
    "llama 3": {"rope_parameters": LLAMA3 | {"original_max_position_embeddings": 64}},
    "llama yarn": {"rope_parameters": YARN | {"original_max_position_embeddings": 64}},
    "mistral": {"sliding_window": 7},
    "qwen2": {"use_sliding_window": False, "layer_types": None},
    "qwen2 windows": {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1, "layer_types": None},
    "qwen3": {"use_sliding_window": False, "layer_types": None},
    "gemma": {},
    "gemma2": {"sliding_window": 7, "attn_logit_softcapping": 5.0, "final_logit_softcapping": 20.0,
               "query_pre_attn_scalar": 2, "layer_types": None, "hidden_size": 24, "num_attention_heads": 4,
               "num_key_value_heads": 2, "head_dim": 8},
    "gemma3_text": {"sliding_window": 5, "sliding_window_pattern": 2, "layer_types": None,
                    "rope_parameters": {"full_attention": LINEAR, "sliding_attention": LOCAL}},
}  # fmt: skip


def pair(torch, name):
    """(their model, our module, its parameters)."""
    kind = name.split()[0]
    fields = {
        key: value
        for key, value in (config(kind, 3 if kind == "gpt2" else 0) | FIELDS[name]).items()
        if value is not None
    }
    fields["tie_word_embeddings"] = False  # a random model with a tied table says its last token over and over
    if kind != "gpt2":
        fields |= {"max_position_embeddings": 256, "num_hidden_layers": 2}
        fields["rope_parameters"] = FIELDS[name].get("rope_parameters", {"rope_type": "default", "rope_theta": 1e3})
    model, told = theirs(torch, kind, fields)
    family = family_of(told)
    module = family.module(told, "causal_lm")
    return model, module, carry(module, family, model.state_dict())


def said(torch, model, prompt, count, **options):
    """The tokens after a prompt."""
    asked = {"do_sample": False, "max_new_tokens": count, "pad_token_id": 0, "eos_token_id": None} | options
    with torch.no_grad():
        found = model.generate(torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt), dtype=int), **asked)
    return found[0, len(prompt) :].tolist()


@pytest.mark.parity
@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] * (n not in ("gpt2", "llama"))) for n in FIELDS]
)
def test_greedy_texts(torch64, name):
    model, module, params = pair(torch64, name)
    if name in ("mistral", "qwen2 windows", "gemma2", "gemma3_text"):
        assert any(module.windows)
    expected = [said(torch64, model, prompt, COUNT) for prompt in PROMPTS]
    assert len({token for text in expected for token in text}) > 8
    assert generate(module, params, PROMPTS, max_tokens=COUNT) == expected


@pytest.mark.parity
@pytest.mark.parametrize(
    ("penalty", "early", "ends"),
    [
        (1.0, False, ()), (1.0, True, (5,)), (2.5, "never", (5,)), (0.0, False, (5,)), (-0.7, "never", (5, 9, 20)),
        (2.5, False, (5, 9, 20)), (-0.7, True, (5, 9, 20)), (0.0, "never", (5, 9, 20)),
    ],
)  # fmt: skip
def test_beams(torch64, beamed, penalty, early, ends):
    model, module, params = beamed
    asked = {"num_beams": 3, "length_penalty": penalty, "early_stopping": early, "eos_token_id": list(ends) or None}
    expected = []
    for prompt in PROMPTS:
        text = said(torch64, model, prompt, 20, **asked)
        expected.append(text[: next((i + 1 for i, token in enumerate(text) if token in ends), len(text))])
    found = beam_search(
        module, params, PROMPTS, beams=3, max_tokens=20, length_penalty=penalty, early_stopping=early, ends=ends
    )
    assert found == expected


@pytest.fixture(scope="module")
def beamed(torch):
    torch.set_default_dtype(torch.float64)
    with jax.enable_x64(True):
        made = pair(torch, "qwen2")
    torch.set_default_dtype(torch.float32)
    return made
