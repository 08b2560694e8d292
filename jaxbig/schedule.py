"""Learning-rate schedules: a rise, then a fall of one of a few shapes."""

import dataclasses
import difflib
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp

from jaxbig.errors import UsageError


@dataclasses.dataclass(frozen=True)
class Schedule:
    """Options of a schedule; `build` makes the function of the step.

    With W = `warmup`, T = `steps`, d = clip((t - W) / (T - W), 0, 1) the share of the fall that is done,

        rate(t) = peak * rise(t) * (end + (1 - end) * fall(t)),    rise(t) = min(t / W, 1)  (1 if W = 0)

    ========== ======================================================== =====================
    shape      fall(t)                                                  needs
    ========== ======================================================== =====================
    constant   1
    cosine     (1 + cos(π d)) / 2                                       `steps`
    linear     1 - d                                                    `steps`
    onecycle   as cosine; rise(t) = s + (1 - s) (1 - cos(π t / W)) / 2  `steps`, `warmup` > 0
    wsd        clip((T - t) / C, 0, 1): warm-up, stable, decay          `steps`, C = `cooldown`
    rsqrt      sqrt(max(W, 1) / max(t, W, 1))
    step       gamma ** (number of milestones <= t)                     `milestones`
    ========== ======================================================== =====================

    Attributes:
        shape: one of the above.
        steps: number T of steps after which the fall is at its end.
        warmup: number W of steps in which the rate rises from 0 (step 0 has rate 0 if this is positive).
        end: last rate as a share of the peak.
        start: s of "onecycle": its first rate as a share of the peak.
        cooldown: number C of steps in which "wsd" falls to `end`.
        milestones: steps at which "step" multiplies the rate.
        gamma: by what.

    Example:
        >>> rate = Schedule("wsd", steps=10, warmup=2, cooldown=4).build(1.0)
        >>> [round(float(rate(step)), 3) for step in (0, 1, 2, 6, 8, 10)]
        [0.0, 0.5, 1.0, 1.0, 0.5, 0.0]

    Reference:
        Loshchilov and Hutter (2016), arXiv:1608.03983, "cosine", without restarts; Smith and Topin (2017),
        arXiv:1708.07120, "onecycle": as torch's with two phases, momentum is not cycled; Hu et al. (2024, MiniCPM),
        arXiv:2404.06395, "wsd", with the linear fall of Hägele et al. (2024), arXiv:2405.18392, where MiniCPM's is
        exponential; Vaswani et al. (2017), arXiv:1706.03762, "rsqrt", whose rate at step W is `peak` here, not
        1 / sqrt(width * W); He et al. (2015), arXiv:1512.03385, "step".
    """

    shape: str = "constant"
    steps: int | None = None
    warmup: int = 0
    end: float = 0.0
    start: float = 0.04
    cooldown: int | None = None
    milestones: tuple[int, ...] = ()
    gamma: float = 0.1

    def build(self, peak: Any) -> Callable[[Any], jax.Array]:
        """The rate as a function of the step.

        Args:
            peak: highest rate; may be a traced number.

        Returns:
            function from step (int) to float32.

        Raises:
            UsageError: an unknown shape (names the nearest), or one without what it needs.
        """
        self._check()

        def rate(step):
            step = jnp.asarray(step, jnp.float32)
            return peak * self._rise(step) * (self.end + (1 - self.end) * SHAPES[self.shape](self, step))

        return rate

    def done(self, step: jax.Array) -> jax.Array:
        """The share d of the fall that is done."""
        return jnp.clip((step - self.warmup) / ((self.steps or 0) - self.warmup), 0, 1) if self.steps else step * 0

    def _rise(self, step: jax.Array) -> Any:
        if not self.warmup:
            return 1.0
        risen = jnp.minimum(step / self.warmup, 1.0)
        return self.start + (1 - self.start) * (1 - jnp.cos(jnp.pi * risen)) / 2 if self.shape == "onecycle" else risen

    def _check(self) -> None:
        check_name("schedule", self.shape, SHAPES)
        name, short = f"schedule {self.shape!r}", self.steps is None or self.steps <= self.warmup
        if self.shape in ("cosine", "linear", "onecycle", "wsd") and short:
            raise UsageError(f"{name} needs steps > warmup={self.warmup}, not steps={self.steps}")
        if self.shape == "onecycle" and not self.warmup:
            raise UsageError(f"{name} needs warmup > 0: the steps in which it rises")
        if self.shape == "wsd" and not 0 < (self.cooldown or 0) <= (self.steps or 0) - self.warmup:
            raise UsageError(
                f"{name} needs 0 < cooldown <= steps - warmup, not cooldown={self.cooldown} of steps={self.steps} "
                f"and warmup={self.warmup}"
            )
        if self.shape == "step" and not self.milestones:
            raise UsageError(f"{name} needs milestones: the steps at which the rate falls, such as (30, 60)")


def _cosine(options: Schedule, step: jax.Array) -> jax.Array:
    return 0.5 * (1 + jnp.cos(jnp.pi * options.done(step)))


def _rsqrt(options: Schedule, step: jax.Array) -> jax.Array:
    first = max(options.warmup, 1)
    return jnp.sqrt(first / jnp.maximum(step, first))


def _stepped(options: Schedule, step: jax.Array) -> jax.Array:
    passed = sum((step >= milestone).astype(jnp.float32) for milestone in options.milestones)
    return jnp.power(options.gamma, passed)


SHAPES: dict[str, Callable[[Schedule, jax.Array], jax.Array]] = {
    "constant": lambda options, step: jnp.ones_like(step),
    "cosine": _cosine,
    "linear": lambda options, step: 1 - options.done(step),
    "onecycle": _cosine,
    "rsqrt": _rsqrt,
    "step": _stepped,
    "wsd": lambda options, step: jnp.clip(((options.steps or 0) - step) / (options.cooldown or 1), 0, 1),
}


def check_name(kind: str, name: str, known: Iterable[str]) -> None:
    """Raises a `UsageError` that names the nearest if `name` is not known.

    Example:
        >>> check_name("schedule", "cosin", SHAPES)
        Traceback (most recent call last):
            ...
        jaxbig.errors.UsageError: schedule 'cosin' is unknown; did you mean 'cosine'? Known: constant, cosine, ...
    """
    known = sorted(known)
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.0)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise UsageError(f"{kind} {name!r} is unknown; {hint}Known: {', '.join(known)}")
