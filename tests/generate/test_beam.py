"""Beams against a search by hand that reads every text anew; transformers' own are in test_families."""

import jax
import numpy as np
import pytest
from generate.test_loop import PROMPTS, SIZES, anew, random

from jaxbig.errors import UsageError
from jaxbig.generate.beam import beam_search
from jaxbig.generate.loop import generate
from jaxbig.models.llama import Llama


@pytest.fixture(autouse=True)
def exact():
    with jax.enable_x64(True):
        yield


def by_hand(module, params, prompt, beams, count):
    texts = [(0.0, [])]
    for _ in range(count):
        further = []
        for score, text in texts:
            tokens = np.zeros((1, 24), int)
            tokens[0, : len(prompt) + len(text)] = prompt + text
            logits = np.asarray(anew(module)(params, tokens)[0, len(prompt) + len(text) - 1])
            log_p = logits - logits.max() - np.log(np.exp(logits - logits.max()).sum())
            further += [(score + log_p[token], [*text, token]) for token in range(len(logits))]
        texts = sorted(further, key=lambda each: -each[0])[:beams]
    return texts[0][1]


@pytest.mark.parametrize("scan", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_beams_by_hand(scan):
    module = Llama(**SIZES | {"layers": 1}, scan_layers=scan)
    params = random(module, scale=0.4)
    found = beam_search(module, params, PROMPTS, beams=3, max_tokens=8)
    assert found == [by_hand(module, params, prompt, 3, 8) for prompt in PROMPTS]
    greedy = generate(module, params, PROMPTS, max_tokens=8)
    assert found != greedy
    assert beam_search(module, params, PROMPTS, beams=1, max_tokens=8) == greedy


def test_what_is_refused():
    module = Llama(**SIZES)
    with pytest.raises(UsageError, match="beams is 12; it has to be from 1 to half the vocabulary's 23"):
        beam_search(module, {}, PROMPTS, beams=12)
    with pytest.raises(UsageError, match="early_stopping is 'soon'"):
        beam_search(module, {}, PROMPTS, early_stopping="soon")
