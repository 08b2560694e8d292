"""`fidelity`: how far a changed model's answers are from those before."""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxbig.errors import UsageError
from jaxbig.lift import lift
from jaxbig.tree import PyTree, nbytes
from jaxbig.weight import wide


class Fidelity(NamedTuple):
    """What changed between two models' logits z and z', over all positions that count.

    Attributes:
        kl: the mean of ``KL(softmax z || softmax z')``, in nats.
        flips: the positions whose largest logit is another one; count: the positions.
        max_error, mean_error: of ``|z' - z|``, over all logits.
        before, after: bytes that the two trees hold.
    """

    kl: float
    flips: int
    count: int
    max_error: float
    mean_error: float
    before: int
    after: int

    def __str__(self) -> str:
        share = f"{self.flips:,} of {self.count:,} ({100 * self.flips / self.count:.3g}%)"
        return (
            f"KL {self.kl:.3g} nats, flips {share}, error max {self.max_error:.3g} mean {self.mean_error:.3g}, "
            f"bytes {self.before:,} -> {self.after:,}"
        )


def fidelity(fn: Callable[[Any, Any], Any], before: PyTree, after: PyTree, batches: Iterable[Any]) -> Fidelity:
    """How far ``fn(after, batch)`` is from ``fn(before, batch)``: ``KL(p || p')``, top-1 flips, errors, bytes.

    Args:
        fn: ``(params, batch) -> logits [..., N]``; it is lifted.
        before, after: parameter trees; leaves may be Weights.
        batches: what `fn` takes. Of a mapping with a ``mask`` only the positions where it is not 0 count; it has the
            logits' leading axes, or the first of them.

    Returns:
        a `Fidelity`, whose `str` is one line. Sums run over all positions of all batches, so that uneven batches and
        padding do not bend the means; they are added up in float64.

    Raises:
        UsageError: no position counts, the logits' shapes differ, or a mask does not fit them.

    Cost: two forward passes a batch.

    Example:
        >>> from jaxbig import quantize
        >>> x = jnp.linspace(-1, 1, 40).reshape(10, 4)
        >>> before = {"w": jnp.sin(jnp.arange(12.0)).reshape(4, 3)}
        >>> after = quantize("int4", where="w").init(None, before, {}).params
        >>> print(fidelity(lambda p, x: x @ p["w"], before, after, [x[:7], x[7:]]))
        KL 8.42e-05 nats, flips 1 of 10 (10%), error max 0.0816 mean 0.0339, bytes 48 -> 18

    Reference: Kullback & Leibler 1951, doi:10.1214/aoms/1177729694.
    """
    run, compare = jax.jit(lift(fn)), jax.jit(_compare)
    parts: dict[str, list[float]] = {"kl": [], "flips": [], "total": [], "largest": [], "count": [], "logits": []}
    for batch in batches:
        z, other = run(before, batch), run(after, batch)
        if z.shape != other.shape:
            raise UsageError(f"fidelity: logits {z.shape} before and {other.shape} after; give models of one task")
        found = jax.device_get(compare(z, other))
        kept = _kept(batch, found["kl"].shape)
        for name in ("kl", "flips", "total"):
            parts[name].append(math.fsum(np.asarray(found[name], np.float64)[kept]))
        parts["largest"].append(float(np.max(found["largest"][kept], initial=0)))
        parts["count"].append(int(kept.sum()))
        parts["logits"].append(int(kept.sum()) * int(found["n"]))
    count = int(sum(parts["count"]))
    if not count:
        raise UsageError("fidelity: no position counts; give batches whose mask is not 0 everywhere")
    largest = float(np.max(parts["largest"]))  # np.max passes nan on, where Python's max may drop it
    mean = lambda name, n: math.fsum(parts[name]) / n  # noqa: E731
    return Fidelity(
        mean("kl", count), int(sum(parts["flips"])), count, largest, mean("total", sum(parts["logits"])),
        nbytes(before), nbytes(after),
    )  # fmt: skip


def _compare(z: Any, other: Any) -> dict[str, Any]:
    """Numbers of each position."""
    dtype = jnp.promote_types(wide(z.dtype), wide(other.dtype))
    z, other = z.astype(dtype), other.astype(dtype)
    error = jnp.abs(other - z)
    return {
        "kl": _divergence(z, other),
        "flips": z.argmax(-1) != other.argmax(-1),
        "total": error.sum(-1),
        "largest": error.max(-1),
        "n": jnp.asarray(z.shape[-1]),
    }


def _divergence(z: Any, other: Any) -> Any:
    """KL(softmax z || softmax other) = log sum_n p_n exp(d_n), d = other - z less its mean under p."""
    log_p, log_q = jax.nn.log_softmax(z), jax.nn.log_softmax(other)
    p = jnp.exp(log_p)
    moved = (other - z) - (p * (other - z)).sum(-1, keepdims=True)
    size = jnp.abs(moved).max(-1, keepdims=True)
    few = jnp.where(size < 1, moved, 0)
    # Of small changes the difference of two logarithms would be nothing but rounding errors.
    small = jnp.log1p((p * jnp.expm1(few)).sum(-1))
    return jnp.where(size[..., 0] < 1, small, (p * (log_p - log_q)).sum(-1))


def _kept(batch: Any, shape: tuple[int, ...]) -> np.ndarray:
    if not isinstance(batch, Mapping) or "mask" not in batch:
        return np.ones(shape, bool)
    mask = np.asarray(batch["mask"]) != 0
    if mask.shape != shape[: mask.ndim]:
        raise UsageError(f"fidelity: a mask of shape {mask.shape} for logits at {shape}; give one entry a position")
    return np.broadcast_to(mask.reshape(*mask.shape, *[1] * (len(shape) - mask.ndim)), shape)
