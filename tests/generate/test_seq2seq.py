"""Texts from an encoder-decoder: transformers' ids for 128 tokens after uneven prompts; what its steps say is what the
whole says; sampling, ends and refusals.

Greedy texts end nowhere here (``eos_token_id`` None on their side, no `ends` on ours), so that none is cut short; their
``generate`` is told where to begin, as a config of transformers 5 does not keep it.
"""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from models.t5_pair import config, pair

from jaxbig.errors import UsageError
from jaxbig.generate.loop import called
from jaxbig.generate.sampling import sampling
from jaxbig.generate.seq2seq import generate, remember, stream
from jaxbig.models import T5
from jaxbig.models.seq2seq import DecoderOf

V, COUNT = 37, 128
PROMPTS = [list(np.random.default_rng(row).integers(2, V, size)) for row, size in enumerate((3, 17, 9, 1))]
FIELDS = {
    "t5": {"feed_forward_proj": "relu", "tie_word_embeddings": True},
    "t5 1.1": {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
}


def made(torch, name, **options):
    sizes = {"num_layers": 2, "num_decoder_layers": 2, "d_model": 11, "num_heads": 3, "d_kv": 4}
    buckets = {"relative_attention_num_buckets": 32, "relative_attention_max_distance": 128}
    louder = 2.0 if name == "t5" else 1.0  # a random model with a tied table says its last token over and over
    return pair(torch, config(0) | sizes | buckets | FIELDS[name], louder=louder, **options)


def said(torch, model, prompts, count, **options):
    """Their new tokens of all prompts at once, padded on the right, as tokenizers of T5 do."""
    width = max(map(len, prompts))
    tokens = torch.tensor([[*map(int, prompt)] + [0] * (width - len(prompt)) for prompt in prompts])
    there = torch.tensor([[1] * len(prompt) + [0] * (width - len(prompt)) for prompt in prompts])
    asked = {
        "do_sample": False, "num_beams": 1, "min_length": 0, "max_new_tokens": count, "pad_token_id": 0,
        "eos_token_id": None, "decoder_start_token_id": 0,
    } | options  # fmt: skip
    with torch.no_grad():
        found = model.generate(tokens, attention_mask=there, **asked)
    assert (found[:, 0] == 0).all()
    return found[:, 1:].tolist()


@pytest.mark.parity
@pytest.mark.parametrize(("name", "scan"), [("t5", True), ("t5 1.1", False)])
def test_greedy_texts(torch64, name, scan):
    """Logits of every step first, along their text; then the ids."""
    model, _, module, params = made(torch64, name, scan_layers=scan)
    expected = said(torch64, model, PROMPTS, COUNT)
    lengths = np.array([len(prompt) for prompt in PROMPTS])
    tokens = np.zeros((4, 17), int)
    for row, prompt in enumerate(PROMPTS):
        tokens[row, : len(prompt)] = prompt
    there = np.arange(17) < lengths[:, None]
    texts = np.concatenate([np.zeros((4, 1), int), np.array(expected)[:, :-1]], axis=1)
    with torch64.no_grad():
        theirs = model(
            input_ids=torch64.tensor(tokens), attention_mask=torch64.tensor(there.astype(int)),
            decoder_input_ids=torch64.tensor(texts),
        ).logits.numpy()  # fmt: skip
    whole = jax.jit(lambda tree: module.apply({"params": tree}, tokens, texts, segments=there.astype(int)))(params)
    np.testing.assert_allclose(whole, theirs, rtol=0, atol=1e-9)
    held, steps = jax.jit(partial(remember, module, slots=COUNT))(params, tokens, lengths), []
    step = jax.jit(lambda held, token: called(DecoderOf(module), params, token, cache=held))
    for at in range(COUNT):
        logits, held = step(held, texts[:, at : at + 1])
        steps.append(logits)
    np.testing.assert_allclose(np.concatenate(steps, axis=1), theirs, rtol=0, atol=1e-9)
    assert len({token for text in expected for token in text}) > 8
    assert generate(module, params, PROMPTS, max_tokens=COUNT) == expected


@pytest.mark.parity
@pytest.mark.slow
def test_a_text_that_ends_and_a_penalty(torch64):
    model, _, module, params = made(torch64, "t5 1.1")
    expected = said(torch64, model, PROMPTS, 40)
    end = expected[0][5]
    theirs = said(torch64, model, PROMPTS, 40, eos_token_id=int(end), repetition_penalty=1.3)
    cut = [text[: text.index(end) + 1] if end in text else text for text in theirs]
    how = sampling(temperature=0, repetition_penalty=1.3)
    found = generate(module, params, PROMPTS, max_tokens=40, ends=[end], how=how)
    assert [text[: len(ours)] for text, ours in zip(cut, found, strict=True)] == found
    assert [len(text) for text in found] == [min(len(text), 40) for text in cut]


@pytest.fixture(scope="module")
def model():
    module = T5(13, 8, layers=1, heads=2, head_width=3, hidden=12, buckets=8, distance=20, tied=False, scaled=False)
    shapes = jax.eval_shape(module.init, jax.random.key(0), *(jnp.zeros((1, 2), int),) * 2)["params"]
    random = np.random.default_rng(1)
    return module, jax.tree.map(lambda leaf: jnp.asarray(random.normal(size=leaf.shape), jnp.float32), shapes)


SOME = [[5, 6, 7, 1], [9, 1]]


def test_a_text_is_what_the_whole_model_says(model):
    """Without a cache, one token more each time; and a row alone says what it says beside others."""
    module, params = model
    found = generate(module, params, SOME, max_tokens=6)
    whole = jax.jit(lambda tokens, text, there: module.apply({"params": params}, tokens, text, segments=there))
    tokens, there = np.array([[5, 6, 7, 1], [9, 1, 0, 0]]), np.array([[1, 1, 1, 1], [1, 1, 0, 0]])
    text = np.zeros((2, 7), int)
    for at in range(6):
        text[:, at + 1] = whole(tokens, text, there)[:, at].argmax(-1)
    assert found == text[:, 1:].tolist()
    assert generate(module, params, SOME[1:], max_tokens=6) == found[1:]
    begun = generate(module, params, SOME, start=[0, found[0][0]], max_tokens=5)
    assert begun[0] == found[0][1:]
    end = found[0][2]
    ended = generate(module, params, SOME, max_tokens=6, ends=[end])
    assert ended[0] == found[0][: found[0].index(end) + 1]
    parts = list(stream(module, params, SOME, max_tokens=6, chunk=4))
    assert [[token for part in parts for token in part[row]] for row in range(2)] == found


@pytest.mark.slow
def test_sampling_depends_on_the_key_alone(model):
    module, params = model
    draw = partial(generate, module, params, max_tokens=6, how=sampling(temperature=1.0, top_k=9))
    one = draw(SOME, key=jax.random.key(3))
    assert one == draw(SOME, key=jax.random.key(3))
    assert one != draw(SOME, key=jax.random.key(4))
    assert draw(SOME[:1], key=jax.random.key(3)) == one[:1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"start": []}, "start is"),
        ({"start": [13]}, "the vocabulary has 0 to 12"),
        ({"max_tokens": 0}, "max_tokens is 0"),
        ({"max_tokens": 10, "length": 8}, "need 11 slots"),
        ({"how": sampling()}, "sampling needs a key"),
    ],
)
def test_what_is_refused(model, options, message):
    with pytest.raises(UsageError, match=message):
        generate(*model, SOME, **options)


def test_a_model_for_another_task(model):
    with pytest.raises(UsageError, match="'features'; texts need one with 'seq2seq_lm'"):
        generate(dataclasses.replace(model[0], task="features"), model[1], SOME)
