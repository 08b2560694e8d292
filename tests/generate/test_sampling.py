"""What tokens are drawn from: transformers' processors, one by one and all together."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxbig.errors import UsageError
from jaxbig.generate.sampling import choose, processed, sampling

V = 40
CASES = [
    {"temperature": 0.6}, {"top_k": 5}, {"top_k": 100}, {"top_p": 0.7}, {"top_p": 0.01}, {"min_p": 0.2}, {"min_p": 1.0},
    {"repetition_penalty": 1.4}, {"repetition_penalty": 0.7},
    {"temperature": 1.5, "top_k": 12, "top_p": 0.8, "min_p": 0.1, "repetition_penalty": 1.3},
    {"temperature": 0.4, "top_p": 0.9, "min_p": 0.02},
]  # fmt: skip


@pytest.mark.parity
@pytest.mark.parametrize("case", CASES, ids=str)
def test_processors_are_transformers(torch64, case):
    from transformers import GenerationConfig
    from transformers.generation.utils import GenerationMixin

    class Bare(GenerationMixin):
        """Only what chooses the processors and their order."""

        main_input_name = "input_ids"

        class config:
            is_encoder_decoder = False

    numbers = np.random.default_rng(0)
    logits, texts = numbers.normal(size=(6, V)) * 3, numbers.integers(0, V, (6, 9))
    full = {"temperature": 1.0, "top_k": 0, "top_p": 1.0} | case
    asked = GenerationConfig(do_sample=True, **full)
    processors = Bare()._get_logits_processor(asked, input_ids_seq_length=9, device="cpu")
    assert len(processors) == len(case)
    expected = processors(torch64.tensor(texts), torch64.tensor(logits)).numpy()
    seen = np.zeros((6, V), bool)
    np.put_along_axis(seen, texts, True, axis=1)
    ours = processed(sampling(**case), jnp.asarray(logits), jnp.asarray(seen))
    np.testing.assert_allclose(ours, expected, rtol=1e-12)
    assert np.isinf(expected).any() == bool({"top_k", "top_p", "min_p"} & set(case) and case != {"top_k": 100})


def test_tokens_are_drawn_as_often_as_they_are_likely():
    logits = np.array([0.3, -1.0, 1.2, 0.0, -4.0])
    how = sampling(temperature=0.8, top_k=4)
    keys = jax.random.split(jax.random.key(0), 40_000)
    drawn = choose(how, keys, jnp.broadcast_to(jnp.asarray(logits), (len(keys), 5)))
    counts = np.bincount(np.asarray(drawn), minlength=5)
    p = np.exp(logits / 0.8) * (logits > -4)
    expected = p / p.sum() * len(keys)
    assert counts[4] == 0
    assert ((counts[:4] - expected[:4]) ** 2 / expected[:4]).sum() < 16.3  # chi-square of 3 degrees, 0.1 %


@pytest.mark.parametrize(
    "case", [{"temperature": -1}, {"temperature": np.inf}, {"top_k": -1}, {"top_k": 1.5}, {"top_p": 0}, {"top_p": 1.1},
             {"min_p": -0.1}, {"min_p": 2}, {"repetition_penalty": 0}, {"temperature": float("nan")}], ids=str,
)  # fmt: skip
def test_numbers_out_of_range(case):
    (name,) = case
    with pytest.raises(UsageError, match=f"{name} is"):
        sampling(**case)
