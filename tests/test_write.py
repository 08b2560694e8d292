"""`jaxbig generate` as it is typed."""

import io

import jax
import pytest
from byte_tokenizer import write_tokenizer

from jaxbig.cli import main
from jaxbig.errors import UsageError
from jaxbig.generate import seq2seq
from jaxbig.generate.sampling import sampling
from jaxbig.hub.load import create, load
from jaxbig.hub.save import save
from jaxbig.write import Shown, write

STORY = "Once upon a time, there was a little girl named Lily. She loved to play outside in the park."


@pytest.fixture
def stories(real_data):
    return str(real_data("model_stories260K"))


def test_a_story(stories, capsys):
    assert main(["generate", stories, "Once upon", "--max-tokens", "30", "--temperature", "0", "--stop", "Lily"]) == 0
    out, told = capsys.readouterr()
    assert out == STORY[: STORY.index("Lily")] + "\n"
    assert told.split()[1:5] == ["tokens;", "the", "first", "after"]
    assert told.strip().endswith("tokens/s")


@pytest.mark.slow
def test_a_seed_says_what_is_drawn(stories):
    words = [stories, "The", "--max-tokens", "12", "--top-p", "0.95", "--seed"]
    one, again, other = (write([*words, seed], io.StringIO()) for seed in ("1", "1", "2"))
    assert one == again != other


T5 = {
    "model_type": "t5", "architectures": ["T5ForConditionalGeneration"], "vocab_size": 260, "d_model": 16, "d_kv": 8,
    "d_ff": 24, "num_layers": 1, "num_heads": 2, "eos_token_id": 2, "initializer_factor": 3.0, "n_positions": 8,
}  # fmt: skip


def test_an_encoder_decoder_answers(tmp_path, capsys):
    made = create(T5)
    folder = save(made, made.params, tmp_path / "t5")
    write_tokenizer(folder)
    assert main(["generate", str(folder), "a question", "--max-tokens", "12", "--seed", "3"]) == 0
    ids = [4 + sorted_alphabet().index(letter) for letter in "a\u0120question"]
    (expected,) = seq2seq.generate(
        made.module, made.params, [ids], max_tokens=12, ends=[2], how=sampling(), key=jax.random.key(3)
    )
    assert len(set(expected)) > 2
    assert capsys.readouterr().out.rstrip("\n") == load(folder).tokenizer.decode(expected).rstrip("\n")


def sorted_alphabet():
    from tokenizers import pre_tokenizers

    return sorted(pre_tokenizers.ByteLevel.alphabet())


def test_a_model_that_hears_is_told_of(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "whisper"}')
    with pytest.raises(UsageError, match="a Whisper, which hears"):
        write([str(tmp_path), "text"])


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["x", "text"], 2, "x: no such file"),
        ([], 0, ""),
        (["x"], 2, "required: prompt"),
        (["x", "text", "--top_k", "3"], 2, "did you mean --top-k"),
        (["x", "text", "--top-p", "2"], 2, "top_p is 2.0"),
        (["x", "text", "--max-tokens", "many"], 2, "invalid int value"),
        (["x", "text", "--seed", "-1"], 2, "--seed is -1"),
        (["STORIES", "text", "--max-tokens", "0"], 2, "--max-tokens is 0"),
        (["STORIES", "a " * 600], 2, "the model is made for 512"),
    ],
)
def test_what_is_typed_wrong(words, code, message, real_data, capsys):
    words = [str(real_data("model_stories260K")) if word == "STORIES" else word for word in words]
    assert main(["generate", *words]) == code
    told = capsys.readouterr().err
    assert message in told
    assert told.count("\n") == (code == 2)


def test_what_is_shown_never_goes_back():
    """Halves of letters and of stop strings wait."""
    out = io.StringIO()
    shown = Shown(out, lambda ids: bytes(ids).decode(errors="replace"), list(b"> "), ["END"])
    steps = []
    for part in ["né".encode()[:2], "né".encode()[2:], b" E", b"N", b"O EN", b"D and more"]:
        shown.add(list(part))
        steps.append(out.getvalue())
    assert steps == ["> n", "> né", "> né ", "> né ", "> né ENO ", "> né ENO "]
    assert shown.finish() == "né ENO "
    assert out.getvalue() == "> né ENO \n"
