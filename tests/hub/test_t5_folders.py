"""T5's folders: from transformers and back, its kinds of heads, the copies of its table that files may hold."""

import json
import warnings

import jax
import numpy as np
import pytest
from hub.published import read_back
from models.t5_pair import config, theirs
from safetensors.numpy import load_file, save_file

import jaxbig
from jaxbig.errors import UserError
from jaxbig.hub.load import create
from jaxbig.tree import paths

TOKENS, TEXT = np.array([[5, 6, 7, 8, 1], [9, 4, 1, 0, 0]]), np.array([[0, 3, 5], [0, 7, 2]])
SIZES = {"vocab_size": 13, "d_model": 8, "d_kv": 3, "d_ff": 6, "num_layers": 2, "num_heads": 2}
CONFIG = SIZES | {"model_type": "t5", "architectures": ["T5ForConditionalGeneration"], "num_decoder_layers": 1}


def ours(model, *given):
    segments = (TOKENS != 0).astype(int)
    return np.asarray(jax.jit(lambda params: model.apply(params, *given, segments=segments))(model.params))


def said(torch, model, *given):
    names = "input_ids", "decoder_input_ids"
    more = {name: torch.tensor(its) for name, its in zip(names, given, strict=False)}
    with torch.no_grad():
        found = model(attention_mask=torch.tensor((TOKENS != 0).astype(int)), **more)
    return (found.logits if hasattr(found, "logits") else found.last_hidden_state).numpy()


def saved(model, folder):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.save_pretrained(folder)
    return folder


@pytest.mark.parity
@pytest.mark.parametrize(
    ("kind", "number", "task", "older"),
    [
        ("T5", 0, "seq2seq_lm", False),
        ("T5", 1, "seq2seq_lm", False),
        ("T5", 1, "seq2seq_lm", True),
        ("T5", 2, "encoder", False),
        pytest.param("T5", 3, "features", False, marks=pytest.mark.slow),
        pytest.param("MT5", 1, "seq2seq_lm", False, marks=pytest.mark.slow),
    ],
)
def test_there_and_back(torch64, kind, number, task, older, tmp_path):
    """Whether transformers 5 wrote the config, or an older one, which knows no ``scale_decoder_outputs``."""
    model, told = theirs(torch64, config(number), task, kind=kind)
    folder, name = saved(model, tmp_path / "theirs"), told["architectures"][0]
    if older:
        fields = json.loads((folder / "config.json").read_text()) | {"tie_word_embeddings": False}
        fields.pop("scale_decoder_outputs")
        (folder / "config.json").write_text(json.dumps(fields))
    given = (TOKENS,) if task == "encoder" else (TOKENS, TEXT)
    there = TOKENS != 0 if task == "encoder" else np.ones(TEXT.shape, bool)
    expected = said(torch64, model, *given)
    unrolled, scanned = jaxbig.load(folder), jaxbig.load(folder, scan_layers=True)
    assert (unrolled.task, unrolled.fresh, unrolled.unused) == (task, (), ())
    for its in (unrolled, scanned):
        np.testing.assert_allclose(ours(its, *given)[there], expected[there], rtol=0, atol=1e-9)
    again = jaxbig.save(scanned, scanned.params, tmp_path / "ours")
    back = read_back(torch64, again, name)
    np.testing.assert_allclose(said(torch64, back, *given)[there], expected[there], rtol=0, atol=1e-12)
    before, after = (load_file(place / "model.safetensors") for place in (folder, again))
    assert before.keys() == after.keys()
    assert all(np.array_equal(before[key], after[key]) for key in before)
    once_more = jaxbig.load(again)
    np.testing.assert_array_equal(ours(once_more, *given), ours(unrolled, *given))


@pytest.mark.parity
def test_an_encoder_out_of_a_whole_model(torch64, tmp_path):
    model, _ = theirs(torch64, config(1))
    encoder = jaxbig.load(saved(model, tmp_path / "whole"), "encoder")
    assert all(name.startswith(("decoder.", "lm_head.")) for name in encoder.unused)
    back = read_back(torch64, jaxbig.save(encoder, encoder.params, tmp_path / "encoder"), "T5EncoderModel")
    np.testing.assert_allclose(ours(encoder, TOKENS)[0], said(torch64, back, TOKENS)[0], rtol=0, atol=1e-9)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Of a model of ours, whose config says what one of T5 1.0 does."""
    made = create(CONFIG)
    return jaxbig.save(made, made.params, tmp_path_factory.mktemp("t5") / "whole")


def with_tensors(folder, place, change):
    """A copy of the folder with other tensors."""
    arrays = dict(load_file(folder / "model.safetensors"))
    change(arrays)
    place.mkdir()
    save_file(arrays, place / "model.safetensors")
    (place / "config.json").write_text((folder / "config.json").read_text())
    return place


def test_files_that_hold_the_table_more_than_once(folder, tmp_path):
    """As published files do: under the encoder's and the decoder's names, beside its own or in its place."""
    model = jaxbig.load(folder)
    idle = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"

    def more(arrays):
        arrays |= {f"{part}.embed_tokens.weight": arrays["shared.weight"].copy() for part in ("encoder", "decoder")}
        arrays["lm_head.weight"] = arrays["shared.weight"].copy()
        arrays[idle] = np.ones((32, 2), np.float32)

    def instead(arrays):
        arrays["encoder.embed_tokens.weight"] = arrays.pop("shared.weight")

    def another(arrays):
        arrays["decoder.embed_tokens.weight"] = arrays["shared.weight"] + 1

    for name, change in (("more", more), ("instead", instead)):
        found = jaxbig.load(with_tensors(folder, tmp_path / name, change))
        assert set(found.unused) <= {idle}
        assert found.module == model.module
        for path, leaf in paths(found.params).items():
            np.testing.assert_array_equal(leaf, paths(model.params)[path])
    with pytest.raises(UserError, match=r"decoder.embed_tokens.weight differs from shared.weight"):
        jaxbig.load(with_tensors(folder, tmp_path / "another", another))


def test_files_say_whether_there_is_a_head(folder, tmp_path):
    """Where transformers 5 wrote the config, which says that every head is tied."""

    def headed(arrays):
        arrays["lm_head.weight"] = arrays["shared.weight"] * 2

    place = with_tensors(folder, tmp_path / "headed", headed)
    with pytest.raises(UserError, match="differs from the embedding"):
        jaxbig.load(place)
    fields = json.loads((place / "config.json").read_text())
    fields |= {"tie_word_embeddings": True, "scale_decoder_outputs": False}
    (place / "config.json").write_text(json.dumps(fields))
    model = jaxbig.load(place)
    assert (model.module.tied, model.module.scaled, model.names("head/kernel")) == (False, False, "lm_head.weight")
    again = jaxbig.load(jaxbig.save(model, model.params, tmp_path / "again"))
    assert again.module == model.module
