"""Whisper's folders in and out: transformers reads what we write, and says the same."""

import json
import shutil
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hub.published import Case, read_back, theirs
from safetensors.numpy import save_file

import jaxbig
from jaxbig.errors import UserError
from jaxbig.tree import paths

FIELDS = {
    "vocab_size": 31, "d_model": 12, "encoder_layers": 3, "decoder_layers": 2, "encoder_attention_heads": 3,
    "decoder_attention_heads": 2, "encoder_ffn_dim": 20, "decoder_ffn_dim": 14, "num_mel_bins": 6, "num_labels": 3,
    "max_source_positions": 5, "max_target_positions": 11, "classifier_proj_size": 7, "pad_token_id": 0,
    "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 3, "begin_suppress_tokens": None,
}  # fmt: skip
CASES = {
    "lm": Case("WhisperForConditionalGeneration", FIELDS),
    "lm untied": Case("WhisperForConditionalGeneration", FIELDS | {"tie_word_embeddings": False}),
    "classes": Case("WhisperForAudioClassification", FIELDS),
    "features": Case("WhisperModel", FIELDS),
}
SOUND = np.random.default_rng(0).normal(size=(2, 10, 6))
TOKENS = np.random.default_rng(1).integers(3, 31, (2, 7))


def written(model, folder):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.save_pretrained(folder)
    return folder


def stored(folder):
    from safetensors import deserialize

    tensors = deserialize((folder / "model.safetensors").read_bytes())
    return {name: (its["dtype"], its["shape"], bytes(its["data"])) for name, its in tensors}


def given(model):
    return (SOUND,) if model.task == "audio_classification" else (SOUND, TOKENS)


def ours(model):
    return np.asarray(jax.jit(model.apply)(model.params, *given(model)))


def said(torch, model):
    arguments = {"input_features": torch.tensor(np.swapaxes(SOUND, 1, 2)).to(model.dtype)}
    if "Audio" not in type(model).__name__:
        arguments["decoder_input_ids"] = torch.tensor(TOKENS)
    with torch.no_grad():
        found = model(**arguments)
    return (found.logits if hasattr(found, "logits") else found.last_hidden_state).double().numpy()


@pytest.mark.parity
@pytest.mark.parametrize("name", CASES)
def test_there_and_back(torch64, name, tmp_path):
    """Read scanned or not, the outputs are transformers'; written again, transformers reads the very same model."""
    model = theirs(torch64, CASES[name])
    folder, expected = written(model, tmp_path / "theirs"), said(torch64, model)
    unrolled, scanned = jaxbig.load(folder), jaxbig.load(folder, scan_layers=True)
    assert (unrolled.fresh, unrolled.unused) == ((), ())
    np.testing.assert_allclose(ours(scanned if name == "lm" else unrolled), expected, rtol=0, atol=1e-9)
    again = jaxbig.save(unrolled, unrolled.params, tmp_path / "ours")
    np.testing.assert_allclose(said(torch64, read_back(torch64, again, CASES[name].name)), expected, atol=1e-12)
    assert stored(folder) == stored(again) == stored(jaxbig.save(scanned, scanned.params, tmp_path / "scanned"))
    config = json.loads((again / "config.json").read_text())
    assert (config["architectures"], config["dtype"]) == ([CASES[name].name], "float64")


@pytest.mark.parity
def test_a_new_head_on_a_model_that_writes(torch64, tmp_path):
    """Its decoder is left in the files, `projector` and head are drawn, and transformers reads what comes of it."""
    folder = written(theirs(torch64, CASES["lm"]), tmp_path / "theirs")
    model = jaxbig.load(folder, "audio_classification", num_classes=4)
    assert sorted(model.fresh) == ["head/bias", "head/kernel", "projector/bias", "projector/kernel"]
    assert model.unused
    assert all(name.startswith("model.decoder.") for name in model.unused)
    again = jaxbig.save(model, model.params, tmp_path / "ours")
    whole = read_back(torch64, again, "WhisperForAudioClassification")
    assert whole.config.num_labels == 4
    np.testing.assert_allclose(ours(model), said(torch64, whole), rtol=0, atol=1e-9)


CONFIG = {"model_type": "whisper", "architectures": ["WhisperForConditionalGeneration"], **FIELDS}


def shapes():
    """Every tensor, by transformers' names."""
    wide, found = FIELDS["d_model"], {}
    for half, count, hidden in (("encoder", 3, 20), ("decoder", 2, 14)):
        for i in range(count):
            layer = f"model.{half}.layers.{i}"
            kinds = ("self_attn",) if half == "encoder" else ("self_attn", "encoder_attn")
            for kind in kinds:
                found |= {f"{layer}.{kind}.{part}_proj.weight": (wide, wide) for part in ("q", "k", "v", "out")}
                found |= {f"{layer}.{kind}.{part}_proj.bias": (wide,) for part in ("q", "v", "out")}
            norms = [f"{layer}.{kind}_layer_norm" for kind in (*kinds, "final")]
            found |= {f"{norm}.{part}": (wide,) for norm in norms for part in ("weight", "bias")}
            found |= {f"{layer}.fc1.weight": (hidden, wide), f"{layer}.fc1.bias": (hidden,)}
            found |= {f"{layer}.fc2.weight": (wide, hidden), f"{layer}.fc2.bias": (wide,)}
        found |= {f"model.{half}.layer_norm.{part}": (wide,) for part in ("weight", "bias")}
    found |= {"model.encoder.conv1.weight": (wide, 6, 3), "model.encoder.conv2.weight": (wide, wide, 3)}
    found |= {"model.encoder.conv1.bias": (wide,), "model.encoder.conv2.bias": (wide,)}
    found |= {"model.encoder.embed_positions.weight": (5, wide), "model.decoder.embed_positions.weight": (11, wide)}
    return found | {"model.decoder.embed_tokens.weight": (31, wide)}


@pytest.fixture(scope="module")
def given_folder(tmp_path_factory):
    """(folder, its arrays), written by the safetensors package."""
    folder, rng = tmp_path_factory.mktemp("whisper"), np.random.default_rng(2)
    arrays = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes().items()}
    save_file(arrays, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(CONFIG))
    return folder, arrays


def test_every_leaf_is_its_tensor(given_folder, tmp_path):
    """And what is written is what was read."""
    folder, arrays = given_folder
    model = jaxbig.load(folder, scan_layers=True)
    assert (model.task, model.fresh, model.unused) == ("seq2seq_lm", (), ())
    leaves = paths(model.params)
    kernel = leaves["decoder/layers/cross/query/kernel"]
    names = [f"model.decoder.layers.{i}.encoder_attn.q_proj.weight" for i in range(2)]
    assert model.names("decoder/layers/cross/query/kernel") == names
    np.testing.assert_array_equal(kernel, np.stack([arrays[name].T for name in names]))
    conv = arrays["model.encoder.conv1.weight"]  # [O, I, 3]
    np.testing.assert_array_equal(leaves["encoder/conv_0/kernel"], conv.transpose(2, 1, 0))
    np.testing.assert_array_equal(leaves["encoder/positions"], arrays["model.encoder.embed_positions.weight"])
    assert sum(leaf.size for leaf in leaves.values()) == sum(array.size for array in arrays.values())
    assert stored(jaxbig.save(model, model.params, tmp_path / "ours")) == stored(folder)


def test_a_body_with_a_layer_too_many_is_told(given_folder, tmp_path):
    """And so is one that claims more layers than there are tensors."""
    folder = shutil.copytree(given_folder[0], tmp_path / "ours")
    for fields, message in (
        ({"encoder_layers": 2}, "in its files, and not in the whisper"),
        ({"decoder_layers": 10**6}, "decoder_layers is 1000000"),
        ({"num_mel_bins": 10**9}, "num_mel_bins is 1000000000"),
        ({"apply_spec_augment": True}, "apply_spec_augment is True"),
    ):
        (folder / "config.json").write_text(json.dumps(CONFIG | fields))
        with pytest.raises(UserError, match=message):
            jaxbig.load(folder)


@pytest.mark.slow
def test_classes_have_names_without_the_model_in_front(given_folder, tmp_path):
    """As their class has them; the encoder of a model that writes fills one."""
    model = jaxbig.load(given_folder[0], "audio_classification")
    assert model.names("encoder/layer_2/mlp/up/kernel") == "encoder.layers.2.fc1.weight"
    folder = jaxbig.save(model, model.params, tmp_path / "ours")
    assert {name.split(".")[0] for name in stored(folder)} == {"encoder", "projector", "classifier"}
    other = jaxbig.load(folder, num_classes=5)
    assert sorted(other.fresh) == ["head/bias", "head/kernel"]
    assert model.apply(model.params, jnp.asarray(SOUND, jnp.float32)).shape == (2, 3)
