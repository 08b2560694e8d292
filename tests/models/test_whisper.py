"""Whisper against transformers, whole and token by token; its spectrograms against the extractor's."""

import random
import warnings

import jax
import numpy as np
import pytest
from models.carry import carry

from jaxbig.models.families import family_of

V, SPECIAL = 23, {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 3}


def config(number):
    """The fields of random config `number`; the two halves differ."""
    rng = random.Random(f"whisper {number}")
    heads, others = rng.sample([1, 2, 3, 5], 2)
    return SPECIAL | {
        "vocab_size": V, "d_model": 2 * heads * others, "num_mel_bins": rng.choice([3, 5, 8]),
        "encoder_layers": rng.choice([1, 2, 3]), "decoder_layers": rng.choice([1, 2, 3]),
        "encoder_attention_heads": heads, "decoder_attention_heads": others, "encoder_ffn_dim": rng.choice([7, 12]),
        "decoder_ffn_dim": rng.choice([9, 11]), "max_source_positions": rng.choice([3, 7, 10]),
        "max_target_positions": rng.choice([11, 17]), "activation_function": rng.choice(["gelu", "relu", "gelu_new"]),
        "tie_word_embeddings": rng.random() < 0.6, "suppress_tokens": None, "begin_suppress_tokens": None,
        "init_std": 0.3, "num_labels": 5, "classifier_proj_size": 6,
    }  # fmt: skip


def pair(torch, folder, number, kind="ForConditionalGeneration", more=(), **options):
    """(their model, our family, module and parameters), from a saved folder's names; `more` fields of the config."""
    import transformers
    from safetensors.numpy import load_file

    cls = getattr(transformers, "Whisper" + kind)
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = transformers.WhisperConfig(**config(number) | dict(more), attn_implementation="eager")
        model = cls(made).double().eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.3 * torch.randn(parameter.shape, dtype=parameter.dtype))
        model.save_pretrained(folder)
    fields = made.to_dict() | {"architectures": [cls.__name__]}
    family = family_of(fields)
    module = family.module(fields, family.architectures[cls.__name__], **options)
    return model, family, module, carry(module, family, load_file(folder / "model.safetensors"))


def inputs(module, count=6):
    """Spectrograms [3, 2 S, F] and tokens [3, count]."""
    rng = np.random.default_rng(0)
    return rng.normal(size=(3, 2 * module.encoder_length, module.mels)), rng.integers(4, module.vocabulary, (3, count))


def said(torch, model, x, tokens=None, **more):
    given = {} if tokens is None else {"decoder_input_ids": torch.tensor(tokens)}
    with torch.no_grad():
        found = model(torch.tensor(np.swapaxes(x, 1, 2)), **given, **more)
    return (found.logits if hasattr(found, "logits") else found.last_hidden_state).numpy()


def agree(ours, expected):
    assert ours.shape == expected.shape
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-9 * np.abs(expected).max())


@pytest.mark.parity
@pytest.mark.parametrize("number", [pytest.param(n, marks=[pytest.mark.slow] * (n > 1)) for n in range(10)])
def test_outputs(torch64, tmp_path, number):
    """Teacher-forced: logits, or states of a model without a head."""
    kind = "Model" if number % 4 == 3 else "ForConditionalGeneration"
    model, _, module, params = pair(torch64, tmp_path, number, kind, scan_layers=number % 3 == 1)
    x, tokens = inputs(module)
    agree(jax.jit(module.apply)({"params": params}, x, tokens), said(torch64, model, x, tokens))
