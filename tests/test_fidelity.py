"""Fidelity against NumPy in float64, over uneven batches and masks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxbig.compress.quantize import quantize
from jaxbig.errors import UsageError
from jaxbig.fidelity import fidelity
from jaxbig.tree import nbytes

RANDOM = np.random.default_rng(0)
Z, OTHER = RANDOM.normal(size=(2, 9, 4, 6)).astype(np.float32)
MASK = RANDOM.random((9, 4)) < 0.6


def pick(params, batch):
    """Logits as they stand in the parameters: what is measured is the measure alone."""
    return params["z"][batch["rows"]]


def expected(z, other, mask):
    z, other = z[mask].astype(np.float64), other[mask].astype(np.float64)
    log_p, log_q = (x - np.log(np.exp(x).sum(-1, keepdims=True)) for x in (z, other))
    kl = (np.exp(log_p) * (log_p - log_q)).sum(-1).mean()
    return kl, (z.argmax(-1) != other.argmax(-1)).sum(), np.abs(z - other).max(), np.abs(z - other).mean()


def batches(mask=None):
    for rows in np.split(np.arange(9), [4, 5]):
        yield {"rows": rows} if mask is None else {"rows": rows, "mask": mask[rows]}


@pytest.mark.parametrize("size", [1e-4, 0.1, 1.0, 30.0])
@pytest.mark.parametrize("mask", [None, MASK, MASK[:, 0]], ids=["all", "positions", "examples"])
def test_it_is_numpy_s_over_all_batches(mask, size):
    other = (Z + size * OTHER).astype(np.float32)
    found = fidelity(pick, {"z": jnp.asarray(Z)}, {"z": jnp.asarray(other)}, batches(mask))
    whole = np.ones((9, 4), bool) if mask is None else np.broadcast_to(mask.reshape(9, -1), (9, 4))
    kl, flips, largest, mean = expected(Z, other, whole)
    assert found.count == whole.sum()
    assert found.flips == flips
    np.testing.assert_allclose(found.kl, kl, rtol=5e-3 if size == 1e-4 else 1e-5)
    np.testing.assert_allclose((found.max_error, found.mean_error), (largest, mean), rtol=1e-5)
    assert (found.before, found.after) == (Z.nbytes, Z.nbytes)


def test_what_is_masked_may_be_anything():
    wild = jnp.asarray(np.where(MASK[..., None], OTHER, np.nan))
    found = fidelity(pick, {"z": jnp.asarray(Z)}, {"z": wild}, batches(MASK))
    np.testing.assert_allclose(found.kl, expected(Z, OTHER, MASK)[0], rtol=1e-5)
    assert np.isnan(fidelity(pick, {"z": jnp.asarray(Z)}, {"z": wild}, batches()).max_error)


def test_codes_are_read_as_weights_and_count_as_they_are_held():
    params = {"w": jnp.asarray(RANDOM.normal(size=(16, 5)), jnp.float32)}
    codes = quantize("int8", where="w").init(None, params, {}).params
    x = jax.random.normal(jax.random.key(0), (32, 16))
    fn = lambda p, x: x @ p["w"]  # noqa: E731
    found = fidelity(fn, params, codes, [x])
    w = np.asarray(codes["w"].materialise())
    kl, *_ = expected(np.asarray(x @ params["w"]), np.asarray(x @ w), np.ones(32, bool))
    np.testing.assert_allclose(found.kl, kl, rtol=0.05, atol=1e-9)
    assert found.after == nbytes(codes) < found.before == 320
    same = fidelity(fn, params, params, [x])
    assert (same.kl, same.flips, same.max_error, same.mean_error) == (0, 0, 0, 0)
    assert str(same) == "KL 0 nats, flips 0 of 32 (0%), error max 0 mean 0, bytes 320 -> 320"


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: fidelity(pick, {"z": Z}, {"z": Z}, []), "no position counts"),
        (lambda: fidelity(pick, {"z": Z}, {"z": Z}, batches(np.zeros(9))), "no position counts"),
        (lambda: fidelity(pick, {"z": Z}, {"z": Z}, batches(np.ones((9, 3)))), "a mask of shape (4, 3)"),
        (lambda: fidelity(pick, {"z": Z}, {"z": Z[..., :5]}, batches()), "(4, 4, 6) before and (4, 4, 5) after"),
    ],
)
def test_errors_are_one_clear_line(make, words):
    with pytest.raises(UsageError, match=r"^[^\n]*$") as caught:
        make()
    assert words in str(caught.value)
