"""Texts of a tiny decoder: equal to the whole text read anew for each token, by rows, in few programs."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxbig.compress.merge import merge
from jaxbig.compress.quantize import quantize
from jaxbig.errors import UsageError
from jaxbig.generate import loop
from jaxbig.generate.sampling import sampling
from jaxbig.models.gpt2 import GPT2
from jaxbig.models.llama import Llama
from jaxbig.transform import chain
from jaxbig.tune.lora import lora
from jaxbig.usage import usage

V = 23
SIZES = {"vocabulary": V, "width": 16, "layers": 2, "heads": 4, "kv_heads": 2, "head_width": 4, "hidden": 24}
PROMPTS = [[5, 1, 7], [2], [9, 8, 7, 6, 5, 4, 3], [11, 3]]
TRACED = []


class Counted(Llama):
    """Notes the shapes that it is traced with."""

    def __call__(self, tokens_BT, *args, **kwargs):
        TRACED.append(tokens_BT.shape)
        return super().__call__(tokens_BT, *args, **kwargs)


@pytest.fixture(autouse=True)
def exact():
    with jax.enable_x64(True):
        yield


def random(module, seed=1, scale=0.6):
    numbers = np.random.default_rng(seed)
    shapes = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, 1), int))["params"]
    return jax.tree.map(lambda leaf: jnp.asarray(numbers.normal(size=leaf.shape) * scale), shapes)


@pytest.fixture(scope="module")
def model():
    with jax.enable_x64(True):
        module = Llama(**SIZES, windows=(None, 5), scan_layers=True)
        return module, random(module)


generate = functools.partial(loop.generate, length=64)  # few programs
stream = functools.partial(loop.stream, length=64)


@functools.cache
def anew(module):
    return jax.jit(lambda params, tokens: module.apply({"params": params}, tokens))


def by_hand(module, params, prompt, count, how=None):
    """The whole text read anew for every token; no cache. One shape: what comes after is hidden by the causal mask."""
    text = list(prompt)
    for _ in range(count):
        tokens = np.zeros((1, getattr(module, "length", 24)), int)
        tokens[0, : len(text)] = text
        logits = np.array(anew(module)(params, tokens)[0, len(text) - 1])
        for token in set(text) if how else ():
            logits[token] = logits[token] * how if logits[token] < 0 else logits[token] / how
        text.append(int(logits.argmax()))
    return text[len(prompt) :]


def test_greedy_is_the_whole_text_read_anew(model):
    expected = [by_hand(*model, prompt, 12) for prompt in PROMPTS]
    assert generate(*model, PROMPTS, max_tokens=12) == expected
    assert len({tuple(text) for text in expected}) == len(PROMPTS)
    assert loop.generate(*model, PROMPTS[2:3], max_tokens=12) == expected[2:3]


def test_gpt2_up_to_its_last_position():
    module = GPT2(vocabulary=V, width=8, layers=1, heads=2, hidden=16, length=14)
    params = random(module)
    texts = generate(module, params, PROMPTS, max_tokens=7, ends=[by_hand(module, params, PROMPTS[0], 3)[2]])
    for prompt, text in zip(PROMPTS, texts, strict=True):
        assert text == by_hand(module, params, prompt, 7)[: len(text)]
    with pytest.raises(UsageError, match="7 tokens and max_tokens=8 are more than the model's 14 positions"):
        generate(module, params, PROMPTS, max_tokens=8)


def test_repetition_penalty_counts_the_prompt_and_no_padding(model):
    how = sampling(temperature=0, repetition_penalty=1.7)
    expected = [by_hand(*model, prompt, 8, 1.7) for prompt in PROMPTS]
    assert generate(*model, PROMPTS, max_tokens=8, how=how) == expected
    assert generate(*model, PROMPTS, max_tokens=8) != expected


def test_rows_end_by_themselves(model):
    whole = generate(*model, PROMPTS, max_tokens=12)
    end = whole[0][4]
    ended = generate(*model, PROMPTS, max_tokens=12, ends=[end])
    for text, full in zip(ended, whole, strict=True):
        assert text == (full[: full.index(end) + 1] if end in full else full)
    assert len(ended[0]) <= 5 < max(map(len, ended))


def test_a_row_ends_at_its_first_token(model):
    first = generate(*model, PROMPTS[:1], max_tokens=1)[0][0]
    assert generate(*model, PROMPTS[:1], max_tokens=9, ends=[V - 1, first]) == [[first]]


def test_strings_end_texts(model):
    letters = lambda ids: "".join(chr(97 + token) for token in ids)  # noqa: E731
    whole = generate(*model, PROMPTS, max_tokens=24)
    stop = letters(whole[2][5:7])
    texts = generate(*model, PROMPTS, max_tokens=24, stop=[stop, "??"], decoded=letters)
    for text, full in zip(texts, whole, strict=True):
        at = letters(full).find(stop)
        assert text == (full if at < 0 else full[: at + len(stop)])
    assert letters(texts[2]).endswith(stop)


def test_a_sample_does_not_depend_on_its_neighbours(model):
    how, key = sampling(temperature=1.3, top_p=0.95), jax.random.key(3)
    texts = generate(*model, PROMPTS, max_tokens=10, how=how, key=key)
    assert texts != generate(*model, PROMPTS, max_tokens=10, how=how, key=jax.random.key(4))
    keys = jnp.stack([jax.random.fold_in(key, row) for row in (3, 1, 0, 7)])
    others = generate(*model, [PROMPTS[3], PROMPTS[1], PROMPTS[0], PROMPTS[0]], max_tokens=10, how=how, key=keys)
    assert others[:3] == [texts[3], texts[1], texts[0]]
    assert others[3] != texts[0]
    assert jax.random.key_data(keys).shape[0] == 4  # still there: what was given is not donated


@pytest.mark.parametrize("chunk", [1, 4, 100])
def test_a_stream_is_the_text_in_parts(model, chunk):
    whole = generate(*model, PROMPTS, max_tokens=10)
    end = whole[1][2]
    parts = list(stream(*model, PROMPTS, max_tokens=10, ends=[end], chunk=chunk))
    assert [list(itertools.chain(*row)) for row in zip(*parts, strict=True)] == generate(
        *model, PROMPTS, max_tokens=10, ends=[end]
    )
    assert all(len(row) <= chunk for part in parts for row in part)
    assert len(parts[0][0]) == 1


def test_one_program_for_steps_and_one_a_bucket_for_prompts():
    module = Counted(**SIZES, scan_layers=True)
    params = random(module)
    TRACED.clear()
    for count, most in [(3, 9), (14, 30), (16, 5), (17, 9), (30, 2)]:
        generate(module, params, [[1] * count, [2]], max_tokens=most)
    list(stream(module, params, [[1] * 5, [3]], max_tokens=6, chunk=2))
    assert sorted(TRACED) == [(2, 1), (2, 16), (2, 32)]
    hot = [sampling(temperature=t, top_p=p) for t, p in [(0.5, 0.9), (0.8, 0.7)]]
    for how in hot:
        generate(module, params, [[1] * 3, [2]], max_tokens=4, how=how, key=jax.random.key(0))
    assert sorted(TRACED) == [(2, 1), (2, 1), (2, 16), (2, 16), (2, 32)]


@pytest.mark.slow
def test_int8_cache_is_close_and_small(model):
    module, params = model
    texts = generate(module, params, PROMPTS, max_tokens=6, int8=True)
    expected = generate(module, params, PROMPTS, max_tokens=6)
    same = sum(a == b for one, other in zip(texts, expected, strict=True) for a, b in zip(one, other, strict=True))
    assert same >= 16  # of 24: where two logits lie close, codes may turn them around


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "layers"),
    [
        ("int4", 1),
        ("int4", 2),
        ("lora over nf4", 1),
    ],
)
def test_weights_are_used_as_they_are(kind, layers):
    """Codes, and adapters over codes: the text of the model with plain parameters of the same values."""
    module = Llama(**SIZES | {"layers": layers}, scan_layers=layers > 1)
    params = random(module)
    example = jnp.zeros((1, 4), int)
    fn = lambda params, tokens: module.apply({"params": params}, tokens)  # noqa: E731
    link = quantize("int4", group=8) if kind == "int4" else chain(quantize("nf4", group=8), lora(rank=2))
    split = link.init(jax.random.key(0), params, usage(fn, params, example))
    if split.train:
        wave = lambda leaf: leaf + 0.2 * jnp.cos(jnp.arange(leaf.size)).reshape(leaf.shape)  # noqa: E731
        split = split._replace(train=jax.tree.map(wave, split.train))
    weights = link.apply(split)
    plain = merge(weights)
    texts = generate(module, weights, PROMPTS, max_tokens=8)
    assert texts == generate(module, plain, PROMPTS, max_tokens=8)
    assert texts != generate(module, params, PROMPTS, max_tokens=8)


@pytest.mark.parametrize(
    ("prompts", "options", "message"),
    [
        ([], {}, "no prompts"),
        ([[1], []], {}, "prompt 1 is empty"),
        ([[1, V]], {}, f"has the id {V}; the vocabulary has 0 to {V - 1}"),
        ([[-1]], {}, "has the id -1"),
        (["text"], {}, "no list of token ids"),
        ([[1]], {"max_tokens": 0}, "max_tokens is 0"),
        ([[1]], {"length": 16, "max_tokens": 10}, "need 26 slots"),
        ([[1]], {"how": sampling()}, "sampling needs a key"),
        ([[1]], {"stop": ["."]}, "need decoded"),
        ([[1]], {"stop": ["", "."], "decoded": str}, "empty string"),
        ([[1]], {"key": jax.random.split(jax.random.key(0), 2)}, "for 1 prompts"),
    ],
)
def test_what_is_refused(model, prompts, options, message):
    with pytest.raises(UsageError, match=message):
        loop.generate(*model, prompts, **options)


def test_a_model_for_another_task(model):
    module = dataclasses.replace(model[0], task="features")
    with pytest.raises(UsageError, match="'features'"):
        generate(module, model[1], [[1]])
