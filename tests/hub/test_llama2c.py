"""llama2.c's files: the published story word for word, files made here, and damaged ones."""

import struct

import jax.numpy as jnp
import numpy as np
import pytest

from jaxbig.errors import UsageError, UserError
from jaxbig.generate.loop import generate
from jaxbig.hub import llama2c
from jaxbig.hub.llama2c import read_llama2c, read_model
from jaxbig.hub.llama2c_tokenizer import read_tokenizer
from jaxbig.hub.text_model import text_model

SIZES = {"width": 8, "hidden": 6, "layers": 2, "heads": 2, "kv_heads": 1, "vocabulary": 265, "positions": 5}
PIECES = [
    b"<unk>",
    b"\n<s>\n",
    b"\n</s>\n",
    *(b"<0x%02X>" % i for i in range(256)),
    b" ",
    b"a",
    b"b",
    b" a",
    b"ab",
    b" ab",
]
SCORES = [0.0] * 259 + [-9.0, -9.0, -9.0, -3.0, -1.0, -2.0]


def tokens(pieces=PIECES, scores=SCORES):
    each = (struct.pack("<fi", score, len(piece)) + piece for score, piece in zip(scores, pieces, strict=True))
    return struct.pack("<i", max(map(len, pieces))) + b"".join(each)


def model(tied=True, **changes):
    """A file's bytes and its tensors."""
    sizes = llama2c.Sizes(**SIZES | changes, tied=tied)
    numbers = np.random.default_rng(0)
    tensors = {name: numbers.normal(size=shape).astype("<f4") for name, shape in sizes.shapes().items()}
    head = [*sizes[:5], sizes.vocabulary if tied else -sizes.vocabulary, sizes.positions]
    return struct.pack("<7i", *head) + b"".join(tensor.tobytes() for tensor in tensors.values()), tensors


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "m.bin").write_bytes(model()[0])
    (tmp_path / "t.bin").write_bytes(tokens())
    return tmp_path


def by_hand(w, ids, eps=1e-5):
    """Logits after a text, in NumPy, by llama2.c's loops: pairs of neighbours turn together."""
    norm = lambda x, g: x / np.sqrt((x**2).mean() + eps) * g  # noqa: E731
    heads, groups, size = SIZES["heads"], SIZES["kv_heads"], SIZES["width"] // SIZES["heads"]

    def turned(x, position):
        pairs = x.reshape(-1, size // 2, 2)
        angle = position * 10_000.0 ** -(np.arange(0, size, 2) / size)
        a, b = pairs[..., 0], pairs[..., 1]
        return np.stack([a * np.cos(angle) - b * np.sin(angle), a * np.sin(angle) + b * np.cos(angle)], -1).reshape(
            -1, size
        )

    stored = [([], []) for _ in range(SIZES["layers"])]
    for position, token in enumerate(ids):
        x = w["embed"][token]
        for layer, (keys, values) in enumerate(stored):
            h = norm(x, w["attention_norm"][layer])
            q = turned(w["query"][layer] @ h, position)
            keys.append(turned(w["key"][layer] @ h, position))
            values.append((w["value"][layer] @ h).reshape(-1, size))
            out = []
            for head in range(heads):
                group = head * groups // heads
                scores = np.array([q[head] @ key[group] for key in keys]) / np.sqrt(size)
                p = np.exp(scores - scores.max())
                out.append(sum(share * value[group] for share, value in zip(p / p.sum(), values, strict=True)))
            x = x + w["out"][layer] @ np.concatenate(out)
            h = norm(x, w["mlp_norm"][layer])
            gate = w["gate"][layer] @ h
            x = x + w["down"][layer] @ (gate / (1 + np.exp(-gate)) * (w["up"][layer] @ h))
    return w.get("head", w["embed"]) @ norm(x, w["norm"])


@pytest.mark.parametrize("tied", [True, False])
def test_a_model_is_what_its_own_loops_compute(tmp_path, tied):
    data, tensors = model(tied)
    (tmp_path / "m.bin").write_bytes(data)
    module, params, positions = read_model(tmp_path / "m.bin")
    ids = [4, 1, 260, 9]
    wide = {name: tensor.astype(np.float64) for name, tensor in tensors.items()}
    logits = module.apply({"params": params}, jnp.array([ids]))[0, -1]
    np.testing.assert_allclose(logits, by_hand(wide, ids), rtol=0, atol=2e-4)
    assert positions == 5


def test_the_published_story(real_data):
    """What llama2.c's doc/stories260K.md prints for temperature 0; it makes 256 steps."""
    it = read_llama2c(real_data("model_stories260K"))
    ids = it.tokenizer.encode("")
    (out,) = generate(it.module, it.params, [ids], max_tokens=256, ends=it.tokenizer.ends)
    text = it.tokenizer.decode(ids + out)
    lines = text.split("\n")
    assert lines[0].startswith(
        "Once upon a time, there was a little girl named Lily. She loved to play outside in the park."
    )
    assert lines[0].endswith("a big, red ball. She wanted to play with it, but it was too high.")
    assert lines[1].startswith("Lily's mom said, \"Lily, let's go to the park.\"")
    assert [len(line) for line in lines] == [175, 151, 95, 141]
    assert text.endswith("Her mom said, \"Don't worry, Lily. We can help you.")


@pytest.mark.parametrize("text", ["Once upon a time", "", " two  spaces ", "né\n\t€ 𝄞", "\x00", "<0x41> and <s>"])
def test_texts_come_back(real_data, text):
    tokenizer = read_llama2c(real_data("model_stories260K")).tokenizer
    ids = tokenizer.encode(text)
    assert ids[0] == 1
    assert tokenizer.decode(ids) == text
    assert tokenizer.decode(ids[:1]) == ""


def test_the_greatest_score_merges_first(folder):
    tokenizer = read_llama2c(folder).tokenizer
    assert tokenizer.encode("ab", bos=False) == [264]  # " " + ("a" + "b"), as "ab" has the greater score
    assert tokenizer.encode("aab") == [1, 262, 263]
    assert tokenizer.encode("z") == [1, 259, 3 + ord("z")]
    assert tokenizer.decode([263, 259, 263]) == "ab ab"
    assert tokenizer.decode([1, 3 + 0xC3]) == "\N{REPLACEMENT CHARACTER}"


def damaged_model(change):
    data = bytearray(model()[0])
    change(data)
    return bytes(data)


def put(at, value):
    return lambda data: data.__setitem__(slice(at, at + 4), struct.pack("<i", value))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data.__delitem__(slice(-4, None)), "bytes, and its header says"),
        (lambda data: data.extend(b"0000"), "bytes, and its header says"),
        (lambda data: data.__delitem__(slice(20, None)), "does not begin as a model"),
        (put(0, 0), "does not begin as a model"),
        (put(0, 9), "does not begin as a model"),
        (put(8, 2**31 - 1), "does not begin as a model"),
        (put(8, 3), "bytes, and its header says"),
        (put(12, -2), "does not begin as a model"),
        (put(0, 0x616B3432), "later format"),
        (lambda data: data.__setitem__(slice(28, 32), struct.pack("<f", float("nan"))), "not finite"),
    ],
)  # fmt: skip
def test_damaged_models(tmp_path, change, message):
    (tmp_path / "m.bin").write_bytes(damaged_model(change))
    with pytest.raises(UserError, match=message) as caught:
        read_model(tmp_path / "m.bin")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (tokens()[:-1], "token 264 is damaged"),
        (tokens()[:100], "damaged|ends after"),
        (tokens()[:4], "ends after 0 of 265"),
        (tokens() + b"x", "1 bytes after 265 tokens"),
        (tokens() + bytes(100_000), "far longer"),
        (tokens(scores=[float("nan"), *SCORES[1:]]), "token 0 is damaged"),
        (tokens([*PIECES[:3], b"no", *PIECES[4:]]), "not the bytes"),
        (struct.pack("<ifi", 3, 0.0, 2**31 - 1), "token 0 is damaged"),
        (struct.pack("<ifi", 3, 0.0, -1), "token 0 is damaged"),
    ],
)
def test_damaged_tokenizers(tmp_path, data, message):
    (tmp_path / "t.bin").write_bytes(data)
    with pytest.raises(UserError, match=message):
        read_tokenizer(tmp_path / "t.bin", 265)


def test_what_folders_hold(folder):
    found = text_model(folder)
    assert (found.kind, found.positions, found.ends) == ("llama2.c", 5, (1, 2))
    (folder / "u.bin").write_bytes(tokens())
    with pytest.raises(UserError, match=r"several tokenizers, t\.bin, u\.bin"):
        text_model(folder)
    (folder / "u.bin").write_bytes(model()[0])
    with pytest.raises(UserError, match=r"two models, m\.bin and u\.bin"):
        text_model(folder)
    (folder / "u.bin").unlink()
    (folder / "m.bin").write_bytes(model()[0][:-8])
    with pytest.raises(UserError, match=r"m\.bin: has .* bytes"):
        text_model(folder)
    (folder / "t.bin").unlink()
    with pytest.raises(UserError, match="no tokenizer beside it"):
        text_model(folder)
    (folder / "m.bin").unlink()
    for path, message in [(folder, "no model that jaxbig"), (folder / "x", "no such file"), (__file__, "no model")]:
        with pytest.raises(UsageError, match=message):
            text_model(path)
    with pytest.raises(UserError, match="holds no model"):
        read_llama2c(folder)
