"""Optimisers: small typed options and (where, value) rules -> optax.

Rules speak of the paths of what is trained, ``Split.train``: the keys joined, such as
``lora/encoder/layer_0/attention/query/kernel/a``. Of several rules the first that matches a path wins; a rule that
matches nothing is an error.
"""

import dataclasses
import difflib
from collections.abc import Callable, Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp
import optax

from jaxbig.errors import UsageError
from jaxbig.tree import Where, first_match, map_paths, paths

Rules = Sequence[tuple[Where, float]]


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """Options of an optimiser; `build` makes the optax transformation of them.

    With g the clipped gradient of a leaf with value θ, its step t is

        θ <- θ - lr * schedule(t) * lr_rule * (direction(g) + weight_decay * decay_rule * θ)

    for "adamw", "lion" and "lamb" (in "lamb" the trust ratio scales the bracket); the others add the decay to g before
    the direction, as the L2 penalty of torch does. Numbers may be traced values, so a sweep over them is a `vmap`.

    Attributes:
        name: one of `NAMES`.
        lr: peak learning rate.
        schedule: "constant", "cosine" or "linear": how it falls after the warm-up.
        steps: number of steps in which "cosine" and "linear" reach the end; those need it.
        warmup: number of steps in which the rate rises linearly from 0 (step 0 has rate 0 if this is positive).
        end: last learning rate as a share of `lr`.
        weight_decay: decay of weights.
        clip: largest global norm of the gradient over what is not frozen; None: no clipping.
        momentum: of "sgd" and "rmsprop"; 0: none.
        nesterov: Nesterov's form of that momentum.
        b1, b2, eps: of "adam", "adamw", "lamb"; "lion" uses b1 and b2; "rmsprop" uses b2 as its decay, and eps.
        lr_rules: (where, factor of the learning rate); a factor of 0 freezes, without any optimiser state.
        decay_rules: (where, factor of the weight decay).

    Example:
        >>> optimizer = Optimizer("sgd", lr=0.5, lr_rules=[("head/.*", 0.1)]).build()
        >>> train = {"body": {"w": jnp.ones(1)}, "head": {"w": jnp.ones(1)}}
        >>> updates, _ = optimizer.update(train, optimizer.init(train), train)
        >>> print(updates["body"]["w"], updates["head"]["w"])
        [-0.5] [-0.05]

    Reference:
        Loshchilov and Hutter (2017), arXiv:1711.05101, for "adamw" and arXiv:1608.03983 for "cosine"; Kingma and Ba
        (2014), arXiv:1412.6980, "adam"; Chen et al. (2023), arXiv:2302.06675, "lion"; You et al. (2019),
        arXiv:1904.00962, "lamb"; Pascanu et al. (2012), arXiv:1211.5063, for clipping. Deviation: decay follows the
        schedule, as in optax and torch, where Loshchilov and Hutter keep it apart from `lr`.
    """

    name: str = "adamw"
    lr: float = 1e-3
    schedule: str = "constant"
    steps: int | None = None
    warmup: int = 0
    end: float = 0.0
    weight_decay: float = 0.0
    clip: float | None = None
    momentum: float = 0.0
    nesterov: bool = False
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    lr_rules: Rules = ()
    decay_rules: Rules = ()

    def build(self) -> optax.GradientTransformation:
        """The optax transformation.

        Returns:
            transformation whose ``update`` needs the parameters; its ``init`` checks the rules.

        Raises:
            UsageError: an unknown name or schedule (names the nearest), or a schedule without `steps`; from ``init``:
                a rule that matches nothing.

        Example:
            >>> Optimizer("adammw").build()
            Traceback (most recent call last):
                ...
            jaxbig.errors.UsageError: optimizer 'adammw' is unknown; did you mean 'adamw'? Known: adagrad, adam, ...
        """
        _known("optimizer", self.name, NAMES)
        self.learning_rate()

        def init(params):
            leaves, rates, decays = self._leaves(params)
            return self._chain(rates, decays).init(leaves)

        def update(updates, state, params=None):
            if params is None:
                raise UsageError("this optimiser needs the parameters; call update(grads, state, params)")
            leaves, rates, decays = self._leaves(params)
            given = {path: leaf for path, leaf in paths(updates).items() if path in leaves}
            moved, state = self._chain(rates, decays).update(given, state, leaves)
            frozen = {path: jnp.zeros_like(leaf) for path, leaf in paths(updates).items() if path not in leaves}
            both = {**cast(dict[str, Any], moved), **frozen}
            return map_paths(lambda path, _: both[path], updates), state

        return optax.GradientTransformation(init, update)

    def learning_rate(self) -> optax.Schedule:
        """The learning rate as a function of the step, before `lr_rules`.

        Returns:
            function from step (int) to float32.

        Example:
            >>> rate = Optimizer(lr=1.0, schedule="linear", steps=10, warmup=2).learning_rate()
            >>> [round(float(rate(step)), 3) for step in (0, 1, 2, 6, 10, 11)]
            [0.0, 0.5, 1.0, 0.5, 0.0, 0.0]
        """
        _known("schedule", self.schedule, SHAPES)
        if self.schedule != "constant" and (self.steps is None or self.steps <= self.warmup):
            raise UsageError(f"schedule {self.schedule!r} needs steps > warmup={self.warmup}, not steps={self.steps}")

        def rate(step):
            step = jnp.asarray(step, jnp.float32)
            rise = jnp.minimum(step / self.warmup, 1.0) if self.warmup else 1.0
            done = jnp.clip((step - self.warmup) / ((self.steps or 0) - self.warmup), 0, 1) if self.steps else step * 0
            fall = SHAPES[self.schedule](done)
            return self.lr * rise * (self.end + (1 - self.end) * fall)

        return rate

    def _leaves(self, train: Any) -> tuple[dict[str, Any], dict[str, float], dict[str, float]]:
        """By path: the leaves that are not frozen, and the factors of rate and decay of all."""
        leaves = paths(train)
        rates, decays = first_match(self.lr_rules, leaves, 1.0), first_match(self.decay_rules, leaves, 1.0)
        return {path: leaf for path, leaf in leaves.items() if not _is_zero(rates[path])}, rates, decays

    def _chain(self, rates: dict[str, float], decays: dict[str, float]) -> optax.GradientTransformation:
        def add_decay(path, update, leaf):
            return update + (self.weight_decay * decays[path] * leaf).astype(update.dtype)

        decay = optax.identity() if _is_zero(self.weight_decay) else _per_leaf(add_decay)
        decoupled = self.name in ("adamw", "lion", "lamb")
        return optax.chain(
            optax.identity() if self.clip is None else optax.clip_by_global_norm(self.clip),
            optax.identity() if decoupled else decay,
            NAMES[self.name](self),
            decay if decoupled else optax.identity(),
            optax.scale_by_trust_ratio() if self.name == "lamb" else optax.identity(),
            optax.scale_by_learning_rate(self.learning_rate()),
            _per_leaf(lambda path, update, leaf: (update * rates[path]).astype(update.dtype)),
        )


SHAPES: dict[str, Callable[[jax.Array], jax.Array]] = {
    "constant": jnp.ones_like,
    "cosine": lambda done: 0.5 * (1 + jnp.cos(jnp.pi * done)),
    "linear": lambda done: 1 - done,
}


def _momentum(options: Optimizer) -> optax.GradientTransformation:
    return optax.identity() if _is_zero(options.momentum) else optax.trace(options.momentum, options.nesterov)


def _adam(options: Optimizer) -> optax.GradientTransformation:
    return optax.scale_by_adam(options.b1, options.b2, options.eps)


NAMES: dict[str, Callable[[Optimizer], optax.GradientTransformation]] = {
    "adagrad": lambda options: optax.scale_by_rss(eps=options.eps),
    "adam": _adam,
    "adamw": _adam,
    "lamb": _adam,
    "lion": lambda options: optax.scale_by_lion(options.b1, options.b2),
    "rmsprop": lambda options: optax.chain(optax.scale_by_rms(options.b2, options.eps), _momentum(options)),
    "sgd": _momentum,
}


def _known(kind: str, name: str, known: dict[str, Any]) -> None:
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.0)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise UsageError(f"{kind} {name!r} is unknown; {hint}Known: {', '.join(sorted(known))}")


def _is_zero(number: Any) -> bool:
    """A traced number is none that could be left out of the program."""
    return isinstance(number, int | float) and number == 0


def _per_leaf(function: Callable[[str, Any, Any], Any]) -> optax.GradientTransformation:
    """Stateless ``update <- function(path, update, leaf)`` over a dictionary by path."""

    def update(updates, state, params=None):
        leaves = params or {}
        return {path: function(path, leaf, leaves[path]) for path, leaf in updates.items()}, state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)
