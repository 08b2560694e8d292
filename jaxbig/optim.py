"""Optimisers: small typed options and (where, value) rules -> optax.

Rules speak of the paths of what is trained, ``Split.train``: the keys joined, such as
``lora/encoder/layer_0/attention/query/kernel/a``. Of several rules the first that matches a path wins; a rule that
matches nothing is an error.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

import jax.numpy as jnp
import numpy as np
import optax

from jaxbig.averaging import Average
from jaxbig.directions import Adafactor, Muon
from jaxbig.errors import UsageError
from jaxbig.schedule import Schedule, check_name
from jaxbig.slots import FORMS, stored
from jaxbig.thaw import gate, in_stages
from jaxbig.tree import Where, first_match, map_paths, paths

Rules = Sequence[tuple[Where, Any]]


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """Options of an optimiser; `build` makes the optax transformation of them.

    With g the clipped gradient of a leaf with value θ, its step t is

        θ <- θ - lr * schedule(t) * lr_rule * (direction(g) + weight_decay * decay_rule * θ)

    for the names in `DECOUPLED` (in "lamb" the trust ratio scales the bracket); the others add the decay to g before
    the direction, as the L2 penalty of torch does. Numbers may be traced values, so a sweep over them is a `vmap`.

    Attributes:
        name: one of `NAMES`.
        lr: peak learning rate.
        schedule: the name of a shape of `jaxbig.schedule.Schedule`, with `steps`, `warmup` and `end` from here; or a
            whole Schedule, which has its own.
        steps: number of steps in which "cosine" and "linear" reach the end; those need it.
        warmup: number of steps in which the rate rises linearly from 0 (step 0 has rate 0 if this is positive).
        end: last learning rate as a share of `lr`.
        weight_decay: decay of weights.
        clip: largest global norm of the gradient over what is not frozen; None: no clipping.
        momentum: of "sgd" and "rmsprop"; 0: none.
        nesterov: Nesterov's form of that momentum.
        b1, b2, eps: of the kinds of Adam and of "lamb"; "lion" uses b1 and b2; "rmsprop" uses b2 as its decay, and eps.
        lr_rules: (where, factor of the learning rate); a factor of 0 freezes, without any optimiser state. An array
            broadcasts from the left: of shape [L] it has one factor for each layer of a stack. See `jaxbig.depth`.
        decay_rules: (where, factor of the weight decay), likewise.
        thaw: (where, first step): before that step the leaves' updates are exactly 0, they do not count in the norm,
            and their optimiser state waits untouched; it then begins as at step 0. Steps may be traced numbers.
        ema: decay of an exponential moving average of what is trained, or an `Average`; None: no average. Read it with
            `jaxbig.averaging.averaged`.
        state: how moments are kept: "bfloat16", "int8" (see `jaxbig.slots`), or None: in the leaves' own dtype.
        muon, adafactor: options of these two; "muon" gives AdamW to what is no matrix.

    Example:
        >>> optimizer = Optimizer("sgd", lr=0.5, lr_rules=[("head/.*", 0.1)]).build()
        >>> train = {"body": {"w": jnp.ones(1)}, "head": {"w": jnp.ones(1)}}
        >>> updates, _ = optimizer.update(train, optimizer.init(train), train)
        >>> print(updates["body"]["w"], updates["head"]["w"])
        [-0.5] [-0.05]

    Reference:
        Loshchilov and Hutter (2017), arXiv:1711.05101, for "adamw"; Kingma and Ba (2014), arXiv:1412.6980, "adam";
        Chen et al. (2023), arXiv:2302.06675, "lion"; You et al. (2019), arXiv:1904.00962, "lamb"; Dozat (2016),
        "Incorporating Nesterov momentum into Adam", "nadam" and "nadamw"; Zhuang et al. (2020), arXiv:2010.07468,
        "adabelief"; Pascanu et al. (2012), arXiv:1211.5063, for clipping; Howard and Ruder (2018), arXiv:1801.06146,
        for `thaw`. Deviations: decay follows the schedule, as in optax and torch, where Loshchilov and Hutter keep it
        apart from `lr`; "nadam" has a constant b1 (torch's grows); "adabelief" adds `eps` inside the root and outside.
    """

    name: str = "adamw"
    lr: float = 1e-3
    schedule: str | Schedule = "constant"
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
    thaw: Rules = ()
    ema: float | Average | None = None
    state: str | None = None
    muon: Muon = dataclasses.field(default_factory=Muon)
    adafactor: Adafactor = dataclasses.field(default_factory=Adafactor)

    def build(self) -> optax.GradientTransformation:
        """The optax transformation.

        Returns:
            transformation whose ``update`` needs the parameters; its ``init`` checks the rules.

        Raises:
            UsageError: an unknown name, schedule or state (names the nearest), or a schedule without what it needs;
                from ``init``: a rule that matches nothing, or whose array does not fit.

        Example:
            >>> Optimizer("adammw").build()
            Traceback (most recent call last):
                ...
            jaxbig.errors.UsageError: optimizer 'adammw' is unknown; did you mean 'adamw'? Known: adabelief, ...
        """
        check_name("optimizer", self.name, NAMES)
        self.learning_rate()
        self._average()
        if self.state is not None:
            check_name("state", self.state, FORMS)

        def init(params):
            leaves, rules = self._split(params)
            return self._chain(rules).init(leaves)

        def update(updates, state, params=None):
            if params is None:
                raise UsageError("this optimiser needs the parameters; call update(grads, state, params)")
            leaves, rules = self._split(params)
            given = {path: leaf for path, leaf in paths(updates).items() if path in leaves}
            moved, state = self._chain(rules).update(given, state, leaves)
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
        if not isinstance(self.schedule, Schedule):
            return Schedule(self.schedule, self.steps, self.warmup, self.end).build(self.lr)
        if (self.steps, self.warmup, self.end) != (None, 0, 0.0):
            raise UsageError("optimizer: give steps, warmup and end to the Schedule, or name its shape alone")
        return self.schedule.build(self.lr)

    def _average(self) -> optax.GradientTransformation | None:
        if self.ema is None:
            return None
        return (self.ema if isinstance(self.ema, Average) else Average(self.ema)).build()

    def _split(self, train: Any) -> tuple[dict[str, Any], "_ByPath"]:
        """The leaves that are not frozen, by path, and what the rules say of all."""
        every = paths(train)
        if self.name == "muon":
            self.muon.check(every)
        rates, decays = (
            {path: _from_the_left(path, value, every[path]) for path, value in first_match(rules, every, 1.0).items()}
            for rules in (self.lr_rules, self.decay_rules)
        )
        stages = first_match([(where, number) for number, (where, _) in enumerate(self.thaw)], every)
        leaves = {path: leaf for path, leaf in every.items() if not _is_zero(rates[path])}
        waiting = {path: stage for path, stage in stages.items() if stage is not None and path in leaves}
        return leaves, _ByPath(rates, decays, waiting)

    def _chain(self, rules: "_ByPath") -> optax.GradientTransformation:
        def add_decay(path, update, leaf):
            return update + (self.weight_decay * rules.decays[path] * leaf).astype(update.dtype)

        decay = optax.identity() if _is_zero(self.weight_decay) else _per_leaf(add_decay)
        decoupled = self.name in DECOUPLED
        direction = NAMES[self.name](self)
        direction = direction if self.state is None else stored(direction, self.state)
        links = [
            optax.identity() if self.clip is None else optax.clip_by_global_norm(self.clip),
            optax.identity() if decoupled else decay,
            direction,
            decay if decoupled else optax.identity(),
            optax.scale_by_trust_ratio() if self.name == "lamb" else optax.identity(),
            optax.scale_by_learning_rate(self.learning_rate()),
            _per_leaf(lambda path, update, leaf: (update * rules.rates[path]).astype(update.dtype)),
        ]
        if self.thaw:
            starts = tuple(step for _, step in self.thaw)
            closed = gate({path: starts[stage] for path, stage in rules.stages.items()})
            links[2] = in_stages(direction, rules.stages, starts)
            links = [closed, *links, closed]
        average = self._average()
        return optax.chain(*links, *([] if average is None else [average]))


class _ByPath(NamedTuple):
    """What the rules say: factors of the rate and of the decay; the number of the thaw rule, where there is one."""

    rates: dict[str, Any]
    decays: dict[str, Any]
    stages: dict[str, int]


def _momentum(options: Optimizer) -> optax.GradientTransformation:
    return optax.identity() if _is_zero(options.momentum) else optax.trace(options.momentum, options.nesterov)


def _adam(options: Optimizer) -> optax.GradientTransformation:
    return optax.scale_by_adam(options.b1, options.b2, options.eps)


def _nadam(options: Optimizer) -> optax.GradientTransformation:
    return optax.scale_by_adam(options.b1, options.b2, options.eps, nesterov=True)


NAMES: dict[str, Callable[[Optimizer], optax.GradientTransformation]] = {
    "adabelief": lambda options: optax.scale_by_belief(options.b1, options.b2, options.eps, options.eps),
    "adafactor": lambda options: options.adafactor.build(),
    "adagrad": lambda options: optax.scale_by_rss(eps=options.eps),
    "adam": _adam,
    "adamw": _adam,
    "lamb": _adam,
    "lion": lambda options: optax.scale_by_lion(options.b1, options.b2),
    "muon": lambda options: options.muon.build(_adam(options)),
    "nadam": _nadam,
    "nadamw": _nadam,
    "rmsprop": lambda options: optax.chain(optax.scale_by_rms(options.b2, options.eps), _momentum(options)),
    "sgd": _momentum,
}
DECOUPLED = ("adabelief", "adafactor", "adamw", "lamb", "lion", "muon", "nadamw")


def _is_zero(number: Any) -> bool:
    """A traced number is none that could be left out of the program."""
    return isinstance(number, int | float) and number == 0


def _from_the_left(path: str, factor: Any, leaf: Any) -> Any:
    """A factor for the leading axes of a leaf, in the shape that broadcasts over it."""
    shape = np.shape(factor)
    if not shape:
        return factor
    if leaf.shape[: len(shape)] != shape:
        raise UsageError(f"rule: {path} has shape {leaf.shape}, which does not begin with its factor's {shape}")
    return jnp.reshape(jnp.asarray(factor), shape + (1,) * (leaf.ndim - len(shape)))


def _per_leaf(function: Callable[[str, Any, Any], Any]) -> optax.GradientTransformation:
    """Stateless ``update <- function(path, update, leaf)`` over a dictionary by path."""

    def update(updates, state, params=None):
        leaves = params or {}
        return {path: function(path, leaf, leaves[path]) for path, leaf in updates.items()}, state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)
