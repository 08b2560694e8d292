"""Attention equals the written-out equation, head by head, under every mask."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxbig.errors import UserError
from jaxbig.models.attention import Where, attention, mask

B, T, S, H, G, K = 2, 5, 7, 4, 2, 8


def inputs(dtype=np.float64):
    rng = np.random.default_rng(0)
    return [rng.normal(size=shape).astype(dtype) for shape in ((B, T, H, K), (B, S, G, K), (B, S, G, K))]


def places():
    rng = np.random.default_rng(1)
    query = Where(np.arange(2, 2 + T)[None].repeat(B, 0), rng.integers(1, 3, (B, T)))
    return query, Where(np.arange(S)[None].repeat(B, 0), rng.integers(1, 3, (B, S)))


def by_hand(q, k, v, seen, scale, bias=None, softcap=None):
    out = np.zeros((B, T, H, K))
    for b in range(B):
        for h in range(H):
            g = h // (H // G)
            scores = scale * q[b, :, h] @ k[b, :, g].T
            scores = softcap * np.tanh(scores / softcap) if softcap else scores
            scores = scores if bias is None else scores + bias[0, h]
            weights = np.exp(scores - scores.max(-1, keepdims=True)) * seen[b]
            out[b, :, h] = weights / weights.sum(-1, keepdims=True) @ v[b, :, g]
    return out


def seen_by_hand(query, key, causal, window):
    seen = np.zeros((B, T, S), bool)
    for b, t, s in np.ndindex(B, T, S):
        away = query.positions[b, t] - key.positions[b, s]
        seen[b, t, s] = query.segments[b, t] == key.segments[b, s]
        seen[b, t, s] &= not causal or away >= 0
        seen[b, t, s] &= window is None or abs(away) < window
    return seen


@pytest.mark.parametrize(("causal", "window"), [(False, None), (True, None), (True, 3), (False, 2)])
def test_masks(causal, window):
    query, key = places()
    expected = seen_by_hand(query, key, causal, window)
    assert np.array_equal(mask(query, key, causal, window)[:, 0], expected)


@pytest.mark.parametrize("options", [{}, {"scale": 0.3}, {"softcap": 1.5}, {"bias": True}])
def test_equals_the_equation(options):
    with jax.enable_x64(True):
        q, k, v = inputs()
        query, key = places()
        seen = np.array(mask(query, key))[:, 0]
        seen[..., 0] = True  # a query that sees nothing is another matter
        bias = np.random.default_rng(2).normal(size=(1, H, T, S)) if options.pop("bias", False) else None
        expected = by_hand(q, k, v, seen, options.get("scale", K**-0.5), bias, options.get("softcap"))
        ours = attention(*map(jnp.asarray, (q, k, v)), jnp.asarray(seen)[:, None], bias=bias, **options)
        np.testing.assert_allclose(ours, expected, rtol=1e-12, atol=1e-14)


def test_fused_equals_plain():
    q, k, v = map(jnp.asarray, inputs(np.float32))
    seen = jnp.ones((B, 1, T, S), bool).at[:, :, :, 4:].set(False)
    fused, plain = (attention(q, k, v, seen, kernel=kernel) for kernel in ("fused", "plain"))
    np.testing.assert_allclose(fused, plain, rtol=1e-5, atol=1e-6)


def test_what_does_not_fit():
    q, k, v = inputs()
    with pytest.raises(UserError, match="4 heads of queries are not a multiple of 3"):
        attention(q, k[:, :, :1].repeat(3, 2), v, None)
    with pytest.raises(UserError, match="no softcap"):
        attention(q, k, v, softcap=1.0, kernel="fused")
