"""Whisper against transformers, whole and token by token; its spectrograms against the extractor's."""

import functools
import random
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hub.published import read_back
from models.carry import carry

import jaxbig
from jaxbig import lift, lora, merge, usage
from jaxbig.errors import UserError
from jaxbig.hub.load import create
from jaxbig.models import empty_cache, whisper_log_mel
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


@pytest.mark.parity
@pytest.mark.parametrize("scan", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_folders_there_and_back(torch64, tmp_path, scan):
    """From transformers and back to it, with the same logits."""
    model, *_ = pair(torch64, tmp_path / "theirs", 0)
    found = jaxbig.load(tmp_path / "theirs", scan_layers=scan)
    x, tokens = inputs(found.module)
    expected = said(torch64, model, x, tokens)
    agree(jax.jit(found.apply)(found.params, x, tokens), expected)
    again = read_back(torch64, jaxbig.save(found, found.params, tmp_path / "ours"), "WhisperForConditionalGeneration")
    np.testing.assert_array_equal(said(torch64, again, x, tokens), expected)


@pytest.mark.parity
@pytest.mark.parametrize("mels", [80, 128])
def test_spectrograms_are_the_extractor_s(mels, real_data):
    transformers = pytest.importorskip("transformers")
    with np.load(real_data("speech_fsdd/fsdd.npz")) as file:  # of 8 kHz: each sample twice
        wave = np.repeat(file["audio"][:40000].astype(np.float32) / 32768, 2)
    extractor = transformers.WhisperFeatureExtractor(feature_size=mels)
    expected = extractor(wave, sampling_rate=16000, return_tensors="np").input_features
    found = jax.jit(whisper_log_mel, static_argnums=1)(jnp.asarray(wave)[None], mels)
    np.testing.assert_allclose(found, np.swapaxes(expected, 1, 2), rtol=0, atol=1e-4)


@functools.cache
def small(scan=False):
    config = SPECIAL | {
        "model_type": "whisper", "architectures": ["WhisperForConditionalGeneration"], "vocab_size": V, "d_model": 12,
        "num_mel_bins": 5, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 2,
        "decoder_attention_heads": 3, "encoder_ffn_dim": 14, "decoder_ffn_dim": 10, "max_source_positions": 4,
        "max_target_positions": 9, "init_std": 0.3,
    }  # fmt: skip
    return create(config, scan_layers=scan)


@pytest.mark.parametrize("scan", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_token_by_token_is_the_whole(scan):
    """The memory is made once; the cache of tokens has a static shape."""
    model = small(scan)
    x, tokens = inputs(model.module)
    whole = jax.jit(model.apply)(model.params, x, tokens)
    call = lambda method: jax.jit(lambda *given, **more: model.apply(model.params, *given, method=method, **more))  # noqa: E731
    memory, step = call("memory")(call("encode")(x)), call("decode")
    cache, steps = empty_cache(model.module, 3, 9), []
    for at in range(tokens.shape[1]):
        logits, cache = step(tokens[:, at : at + 1], memory, cache=cache)
        steps.append(logits)
    np.testing.assert_allclose(np.concatenate(steps, axis=1), whole, rtol=1e-4, atol=1e-5)


def test_written_and_read_scanned_and_unrolled_it_is_the_same(tmp_path):
    model = small()
    folder = jaxbig.save(model, model.params, tmp_path / "a")
    again = jaxbig.load(folder, scan_layers=True)
    x, tokens = inputs(model.module)
    found, expected = (jax.jit(its.apply)(its.params, x, tokens) for its in (again, model))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    jax.tree.map(np.testing.assert_array_equal, jaxbig.load(folder).params, model.params)


def test_lora_stays_factored_and_is_its_merge():
    model = small(True)
    x, tokens = inputs(model.module)
    uses = usage(model.apply, model.params, x, tokens)
    technique = lora(rank=2)
    split = technique.init(jax.random.key(0), model.params, uses)
    split = split._replace(train=jax.tree.map(lambda leaf: leaf + 0.1, split.train))
    assert any("cross" in path for path in split.train)
    assert any("encoder" in path for path in split.train)
    tree = technique.apply(split)
    found = jax.jit(lift(model.apply, strict=True))(tree, x, tokens)
    np.testing.assert_allclose(found, jax.jit(model.apply)(merge(tree), x, tokens), rtol=2e-3, atol=2e-4)


def test_what_does_not_fit_is_told():
    model = small()
    x, tokens = inputs(model.module)
    with pytest.raises(UserError, match=r"give \[batch, frames, 5\] with at most 8 frames"):
        model.apply(model.params, x[:, :, :3], tokens)
    with pytest.raises(UserError, match="needs the tokens so far, too"):
        model.apply(model.params, x)
