"""Vectors of texts: the definition written out, sentence-transformers' modules, and a real MiniLM on real sentences."""

import gzip
import itertools
import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from models.carry import carry

from jaxbig.errors import UserError
from jaxbig.models.embed import sentence_embeddings
from jaxbig.models.families import family_of

RNG = np.random.default_rng(0)
STATES = RNG.normal(size=(3, 7, 5)).astype(np.float32)
SEGMENTS = np.array([[1, 1, 2, 2, 2, 0, 0], [1, 1, 1, 1, 1, 1, 3], [0, 0, 0, 0, 0, 0, 0]])


def by_hand(states, counts, normalise):
    """One text: its tokens' mean, of length 1 where it has any."""
    found = states[counts].mean(0) if counts.any() else np.zeros(states.shape[-1])
    return found / (np.linalg.norm(found) or 1) if normalise else found


@pytest.mark.parametrize("normalise", [True, False])
@pytest.mark.parametrize("texts", [None, 2])
def test_equals_the_definition(texts, normalise):
    rows = zip(STATES, SEGMENTS, strict=True)
    if texts is None:
        expected = [by_hand(x, its != 0, normalise) for x, its in rows]
    else:
        expected = [[by_hand(x, its == s + 1, normalise) for s in range(texts)] for x, its in rows]
    found = jax.jit(sentence_embeddings, static_argnums=(2, 3))(STATES, SEGMENTS, texts, normalise)
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_without_segments_every_token_counts():
    expected = [by_hand(x, np.ones(7, bool), True) for x in STATES]
    np.testing.assert_allclose(jax.jit(sentence_embeddings)(STATES), expected, atol=1e-6)


def test_half_precision_is_summed_in_float32():
    """2049 ones, whose sum no float16 is."""
    states = np.ones((1, 2049, 1), np.float16)
    found = jax.jit(partial(sentence_embeddings, normalise=False))(states)
    assert found.dtype == jnp.float32
    assert found.item() == 1


def test_gradients_are_finite_where_a_text_has_no_tokens():
    loss = lambda x: (sentence_embeddings(x, jnp.asarray(SEGMENTS), 2) ** 3).sum()  # noqa: E731
    found = np.asarray(jax.jit(jax.grad(loss))(jnp.asarray(STATES)))
    assert np.isfinite(found).all()
    assert np.abs(found[0, :5]).max() > 1e-3
    assert not found[2].any()
    assert not found[0, 5:].any()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((STATES, SEGMENTS[:, :-1]), r"segments \(3, 6\)"),
        ((STATES[0],), r"states \(7, 5\), segments none"),
        ((STATES, None, 2), "needs segments"),
        ((STATES, SEGMENTS, 0), "1 at least"),
    ],
)
def test_errors_say_what_to_change(arguments, message):
    with pytest.raises(UserError, match=message):
        sentence_embeddings(*(jnp.asarray(a) if isinstance(a, np.ndarray) else a for a in arguments))


@pytest.fixture
def real_sentences(real_data):
    """Forty texts of AG News, and two shorter ones."""
    with gzip.open(real_data("text_agnews/test.tsv.gz"), "rt", encoding="utf-8") as lines:
        found = [line.split("\t")[0][:200] for line in itertools.islice(lines, 40)]
    assert len(set(found)) == 40
    return [*found, "A dog runs.", "?"]


@pytest.mark.parity
def test_a_real_minilm_on_real_sentences(torch, minilm, real_sentences):
    """Last hidden states, the pooler and the vectors of texts in float32; the vectors follow the folder's modules."""
    transformers, safetensors = pytest.importorskip("transformers"), pytest.importorskip("safetensors.numpy")
    fields = json.loads((minilm / "config.json").read_text())
    family = family_of(fields)
    module = family.module(fields, "features", pooler=True, scan_layers=True)
    state = safetensors.load_file(minilm / "model.safetensors")
    params = carry(module, family, state, r"(.*\.)?position_ids", np.float32)
    model = transformers.AutoModel.from_pretrained(minilm, attn_implementation="eager").eval()
    batch = transformers.AutoTokenizer.from_pretrained(minilm)(real_sentences, padding=True)
    with torch.no_grad():
        expected = model(**{k: torch.tensor(v) for k, v in batch.items()})
    tokens, there = np.array(batch["input_ids"]), np.array(batch["attention_mask"])
    states, pooled = jax.jit(module.apply)({"params": params}, tokens, segments=there)
    assert 0 < there.mean() < 1  # some are padded
    theirs = expected.last_hidden_state.numpy()
    np.testing.assert_allclose(states[there == 1], theirs[there == 1], rtol=0, atol=1e-4)
    np.testing.assert_allclose(pooled, expected.pooler_output.numpy(), rtol=0, atol=1e-4)
    means = np.stack([x[its == 1].mean(0, dtype=np.float64) for x, its in zip(theirs, there, strict=True)])
    vectors = sentence_embeddings(states, there)
    np.testing.assert_allclose(vectors, means / np.linalg.norm(means, axis=1, keepdims=True), rtol=0, atol=1e-5)
    module_types = [each["type"].split(".")[-1] for each in json.loads((minilm / "modules.json").read_text())]
    assert module_types == ["Transformer", "Pooling", "Normalize"]
    # two texts in one row, with their own positions, are what they are in rows of their own
    one, two = (tokens[i][there[i] == 1] for i in (0, 1))
    packed = np.concatenate([one, two])[None]
    segments = np.array([[1] * len(one) + [2] * len(two)])
    positions = np.array([[*range(len(one)), *range(len(two))]])
    together, _ = module.apply({"params": params}, packed, positions, segments)
    np.testing.assert_allclose(sentence_embeddings(together, segments, 2)[0], vectors[:2], rtol=0, atol=1e-5)


@pytest.mark.parity
def test_equals_sentence_transformers(torch64, minilm):
    """Its pooling and its normalisation, as its own modules compute them."""
    modules = pytest.importorskip("sentence_transformers.sentence_transformer.modules")
    pooling, normalise = modules.Pooling(5, pooling_mode="mean"), modules.Normalize()
    states, there = STATES.astype(np.float64), (SEGMENTS != 0).astype(int)
    features = {"token_embeddings": torch64.tensor(states), "attention_mask": torch64.tensor(there)}
    features = pooling(features)
    found = sentence_embeddings(jnp.asarray(states), jnp.asarray(there), normalise=False)
    np.testing.assert_allclose(found, features["sentence_embedding"], rtol=0, atol=1e-12)
    found = sentence_embeddings(jnp.asarray(states), jnp.asarray(there))
    np.testing.assert_allclose(found, normalise(features)["sentence_embedding"], rtol=0, atol=1e-12)
