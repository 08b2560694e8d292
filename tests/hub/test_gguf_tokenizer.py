"""Tokenizers in GGUF files: beside the library's own from GPT-2's files, and cut by hand."""

import json

import numpy as np
import pytest
from hub import gguf_models
from hub.gguf_made import container

from jaxbig.errors import UserError
from jaxbig.hub.gguf import read_container
from jaxbig.hub.gguf_tokenizer import tokenizer_of, write_tokenizer
from jaxbig.hub.tokenizer import read_tokenizer

TEXTS = ["hello hell", " 1234 é\n\n  x's", "", "<t>hello<mine>", "日本 e\u0301"]


def made(tmp_path, pre="gpt-2", **more):
    (tmp_path / "a.gguf").write_bytes(container(gguf_models.words(**{"pre": pre, **more}), {}))
    return tokenizer_of(read_container(tmp_path / "a.gguf"))


def pieces(tokenizer, text):
    return [tokenizer.core.id_to_token(number) for number in tokenizer.encode(text)]


def test_the_same_as_gpt_2s_own_files(tmp_path):
    data = gguf_models.words()
    tokens = data["tokenizer.ggml.tokens"]
    (tmp_path / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}))
    (tmp_path / "merges.txt").write_text("\n".join(["#version: 0.2", *data["tokenizer.ggml.merges"]]))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<e>", "sep_token": "<t>"}))
    theirs, ours = read_tokenizer(tmp_path), made(tmp_path)
    for text in TEXTS[:3] + TEXTS[4:]:
        assert ours.encode(text) == theirs.encode(text)
        assert ours.decode(ours.encode(text)) == text
    assert ours.encode("<t>hello") == theirs.encode("<t>hello")
    assert len(ours) == len(tokens)


@pytest.mark.parametrize(
    ("pre", "cut"),
    [
        ("gpt-2", ["1234", "5", "\u0120", "he", "'", "s"]),
        ("smollm", ["1", "2", "3", "4", "5", "\u0120", "he", "'", "s"]),
        ("llama-bpe", ["123", "4", "5", "\u0120he", "'", "s"]),
        ("qwen2", ["1", "2", "3", "4", "5", "\u0120", "he", "'", "s"]),
    ],
)
def test_how_texts_are_cut(tmp_path, pre, cut):
    assert pieces(made(tmp_path, pre, add_bos_token=False), "12345 he's") == cut


def test_forms_of_letters(tmp_path):
    assert made(tmp_path, "qwen2").encode("e\u0301") == made(tmp_path, "qwen2").encode("\u00e9")
    assert made(tmp_path, "smollm").encode("e\u0301") != made(tmp_path, "smollm").encode("\u00e9")


def test_tokens_around_a_text_and_within_it(tmp_path):
    assert pieces(made(tmp_path, add_bos_token=True, add_eos_token=True), "he") == ["<s>", "he", "<e>"]
    assert pieces(made(tmp_path, "llama-bpe"), "he") == ["<s>", "he"]
    tokenizer = made(tmp_path)
    assert pieces(tokenizer, "<t>hello<mine>") == ["<t>", "hello", "<mine>"]
    assert tokenizer.decode(tokenizer.encode("<t>hello<mine>")) == "hello<mine>"
    assert tokenizer.named == {"bos": "<s>", "eos": "<e>"}
    assert tokenizer.template.startswith("{% for m")


def test_written_as_hugging_faces_files(tmp_path):
    tokenizer = made(tmp_path, "llama-bpe")
    write_tokenizer(tokenizer, tmp_path)
    again = read_tokenizer(tmp_path)
    for text in TEXTS:
        assert again.encode(text) == tokenizer.encode(text)
        assert again.decode(again.encode(text)) == tokenizer.decode(tokenizer.encode(text))
    assert (again.named, again.template) == (tokenizer.named, tokenizer.template)


TOKENS = gguf_models.words()["tokenizer.ggml.tokens"]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"model": "llama"}, r"tokenizer\.ggml\.model is 'llama'"),
        ({"pre": "tekken"}, r"tokenizer\.ggml\.pre is 'tekken'; jaxbig knows gpt-2, smollm"),
        ({"pre": np.uint8(1)}, r"tokenizer\.ggml\.pre is 1"),
        ({"tokens": None}, "no list of texts"),
        ({"tokens": np.arange(3)}, "no list of texts"),
        ({"tokens": [*TOKENS[:-1], TOKENS[0]]}, "token '!' is given twice"),
        ({"token_type": np.zeros(3, np.int32)}, "no list of 269 kinds"),
        ({"token_type": np.full(len(TOKENS), 9, np.int32)}, "no list of 269 kinds"),
        ({"merges": None}, "no list of pairs"),
        ({"merges": ["a b c"]}, "no list of pairs"),
        ({"merges": ["zz zz"]}, "cannot be built"),
        ({"eos_token_id": np.uint32(2**31)}, r"eos_token_id is 2147483648, of 269 tokens"),
        ({"bos_token_id": None, "add_bos_token": True}, "adds the bos token"),
    ],
)
def test_damaged_tokenizers(tmp_path, more, message):
    with pytest.raises(UserError, match=message) as caught:
        made(tmp_path, **more)
    assert "\n" not in str(caught.value)
