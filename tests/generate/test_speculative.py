"""With a draft, good or bad, the large model says what it says alone."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from generate.test_loop import PROMPTS, SIZES, V, random

from jaxbig.errors import UsageError
from jaxbig.generate import speculative
from jaxbig.generate.loop import generate
from jaxbig.generate.prompts import padded
from jaxbig.generate.sampling import processed, sampling
from jaxbig.generate.speculative import Draft, speculate
from jaxbig.models.llama import Llama


@pytest.fixture(autouse=True)
def exact():
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="module")
def large():
    with jax.enable_x64(True):
        module = Llama(**SIZES, scan_layers=True)
        return module, random(module)


@pytest.fixture(scope="module")
def drafts(large):
    """Itself, itself somewhat changed, and another model."""
    with jax.enable_x64(True):
        module, params = large
        near = jax.tree.map(lambda leaf, noise: leaf + 0.1 * noise, params, random(module, 5))
        return {"itself": Draft(module, params), "near": Draft(module, near), "other": Draft(module, random(module, 9))}


def test_greedy_is_the_large_model_alone(large, drafts):
    whole = generate(*large, PROMPTS, max_tokens=21)
    found = speculate(*large, drafts["near"], PROMPTS, guesses=3, max_tokens=21)
    assert found.texts == whole
    assert all(6 < rounds < 21 for rounds in found.rounds)
    end = whole[0][6]
    ended = speculate(*large, drafts["near"], PROMPTS, guesses=3, max_tokens=21, ends=[end]).texts
    assert ended == generate(*large, PROMPTS, max_tokens=21, ends=[end])


@pytest.mark.slow
@pytest.mark.parametrize(("name", "fewest", "most"), [("itself", 6, 6), ("other", 14, 21)])
def test_better_drafts_need_fewer_rounds(large, drafts, name, fewest, most):
    found = speculate(*large, drafts[name], PROMPTS, guesses=3, max_tokens=21)
    assert found.texts == generate(*large, PROMPTS, max_tokens=21)
    assert fewest <= sum(found.rounds) / len(PROMPTS) <= most  # 6: the prompt, then five times four tokens


def chi_square(counts, p):
    expected = p * counts.sum()
    there = expected > 5
    rest = max(expected[~there].sum(), 1e-9)
    value = ((counts - expected)[there] ** 2 / expected[there]).sum() + (
        counts[~there].sum() - expected[~there].sum()
    ) ** 2 / rest
    return value, there.sum()


@pytest.mark.slow
@pytest.mark.parametrize("how", [sampling(0.9), sampling(1.2, top_k=3), sampling(1.0, min_p=0.1)])
def test_samples_have_the_large_models_distribution(how):
    """All texts of three tokens of a vocabulary of five, against their probabilities by the model alone."""
    module = Llama(**SIZES | {"vocabulary": 5, "layers": 1})
    params, other = random(module, 2, 0.5), random(module, 3, 0.5)
    given, count = padded(module, [[1, 2]], 8), 20_000
    keys = jax.random.split(jax.random.key(7), count)
    sizes = {"slots": 32, "most": 3, "guesses": 2, "int8": False}
    ends = np.full(8, -1, np.int32)
    run = lambda key: speculative._text(module, module, (params, other), given, key, how, ends, **sizes)  # noqa: E731
    tokens = np.asarray(jax.jit(jax.vmap(run))(keys).tokens_N)[:, :3]
    counts = np.bincount(tokens @ np.array([25, 5, 1]), minlength=125)
    texts = np.array([[1, 2, *text] for text in itertools.product(range(5), repeat=3)])
    logits = module.apply({"params": params}, texts)
    log_p = jnp.stack([jax.nn.log_softmax(processed(how, logits[:, at])) for at in (1, 2, 3)], axis=1)
    p = np.exp(np.take_along_axis(np.asarray(log_p), texts[:, 2:, None], axis=2).sum((1, 2)))
    np.testing.assert_allclose(p.sum(), 1)
    assert counts[p == 0].sum() == 0
    value, cells = chi_square(counts, p)
    assert value < cells + 4 * np.sqrt(2 * cells)
    theirs = np.exp(jax.nn.log_softmax(module.apply({"params": other}, texts)[:, 1]))[::25][0]
    assert chi_square(counts.reshape(5, 25).sum(1), theirs)[0] > 100  # the draft's own would be told apart


def test_one_token_is_judged_rightly():
    """Leviathan's rule, 20,000 times without a model: what comes out first has the distribution p."""
    p, q = np.array([0.5, 0.3, 0.2, 0.0]), np.array([0.1, 0.6, 0.1, 0.2])
    logits = jnp.log(jnp.stack([p, np.full(4, 0.25)]))
    how, count = sampling(1.0), 20_000

    def one(key):
        mine = jax.random.split(key, 3)
        guess = jax.random.categorical(mine[0], jnp.log(q))[None].astype(jnp.int32)
        new, accepted = speculative._judged(how, mine[1:], logits, guess, jnp.log(q)[None])
        return new[0], accepted

    first, accepted = jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(1), count))
    counts = np.bincount(np.asarray(first), minlength=4)
    assert counts[3] == 0
    assert ((counts - p * count)[:3] ** 2 / (p * count)[:3]).sum() < 13.8  # chi-square of 2 degrees, 0.1 %
    np.testing.assert_allclose(accepted.mean(), np.minimum(p, q).sum(), atol=0.014)


def test_what_is_refused(large, drafts):
    for options, message in [
        ({"guesses": 0}, "guesses is 0"),
        ({"how": sampling(0, repetition_penalty=1.2)}, "no repetition_penalty"),
        ({"how": sampling()}, "needs a key"),
    ]:
        with pytest.raises(UsageError, match=message):
            speculate(*large, drafts["near"], PROMPTS, **options)
    with pytest.raises(UsageError, match=f"the draft has {V + 1} tokens"):
        speculate(*large, Draft(Llama(**SIZES | {"vocabulary": V + 1}), {}), PROMPTS)
