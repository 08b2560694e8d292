"""The evaluator behind `lift`: a jaxpr run on values of which some are Weights.

A *view* is a Weight as the model sees it after transposes and reshapes. Each primitive that may meet a view has a rule
in `RULES`, which the modules beside this one fill: it gets the interpreter, the equation and its inputs, and returns
the outputs, or NotImplemented. Without a rule the weight becomes a plain array, and the user is told.
"""

import os
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend import source_info_util
from jax.extend.core import Literal

from jaxbig.errors import UserError
from jaxbig.weight import Concat, Dense, Scaled, is_weight, static

_LIBRARIES = tuple(f"{Path(str(library.__file__)).parent}{os.sep}" for library in (flax, np))
RULES: dict[str, Callable[["Interpreter", Any, list[Any]], Any]] = {}
_SHOWN: dict[Any, Any] = {}  # what Python's warning filters have shown: they decide whether to say it again


def rule(*primitives: str):
    """Registers a function as the rule of these primitives."""

    def register(function):
        for primitive in primitives:
            RULES[primitive] = function
        return function

    return register


class MaterialiseWarning(UserWarning):
    """A Weight was expanded to a plain array because no rule covers how the model uses it."""


class MaterialiseError(UserError):
    """As `MaterialiseWarning`, under ``lift(fn, strict=True)``."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class View:
    """A weight as the model sees it: ``transpose(weight, perm).reshape(shape)``, at `path` in the tree.

    Of several leaves joined together `joined` has each one's path, "" for a plain array.
    """

    weight: Any
    perm: tuple[int, ...] = static()
    shape: tuple[int, ...] = static()
    path: str = static()
    joined: tuple[str, ...] = static(default=())

    @staticmethod
    def of(weight: Any, path: str) -> "View":
        return View(weight, tuple(range(len(weight.shape))), tuple(weight.shape), path)

    @property
    def dtype(self):
        return self.weight.dtype

    @property
    def plain(self) -> bool:
        """Whether the view is the weight as it is."""
        return self.perm == tuple(range(len(self.perm))) and self.shape == tuple(self.weight.shape)

    def apply(self, array):
        """The view of a plain array in the weight's place."""
        return lax.reshape(lax.transpose(array, self.perm), self.shape)

    def groups(self) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
        """Pairs (axes of the view, axes of the weight) between which the reshape splits or merges nothing further."""
        sizes, pairs, i, j = [self.weight.shape[p] for p in self.perm], [], 0, 0
        while i < len(sizes) or j < len(self.shape):
            if i < len(sizes) and sizes[i] == 1 and (j == len(self.shape) or self.shape[j] != 1):
                pairs.append(((), (self.perm[i],)))
                i += 1
                continue
            if j < len(self.shape) and self.shape[j] == 1 and (i == len(sizes) or sizes[i] != 1):
                pairs.append(((j,), ()))
                j += 1
                continue
            ours, theirs = [j], [self.perm[i]]
            have, want, i, j = self.shape[j], sizes[i], i + 1, j + 1
            while have != want:
                if have < want:
                    ours, have, j = [*ours, j], have * self.shape[j], j + 1
                else:
                    theirs, want, i = [*theirs, self.perm[i]], want * sizes[i], i + 1
            pairs.append((tuple(ours), tuple(theirs)))
        return pairs

    def weight_axis(self, axis: int) -> int | None:
        """The weight's axis that is this axis of the view alone, as a negative number; None if there is none."""
        for ours, theirs in self.groups():
            if ours == (axis,) and len(theirs) == 1:
                return theirs[0] - len(self.perm)
        return None


@dataclass
class Interpreter:
    """Evaluates a jaxpr whose values may be Views.

    Attributes:
        strict: raise where a Weight would be materialised.
        observe: called as ``observe(view, kind, x, details, eqn)`` at each use of a Weight (kind: product, conv,
            lookup or other); an array it returns is summed over all uses into `taps`, by path.
        taps: those sums, for the level of control flow being evaluated.
        said: what has been warned of in this trace.
        calls: the equations whose bodies are being evaluated, the outermost first.
    """

    strict: bool = False
    observe: Callable[..., Any] | None = None
    taps: dict[str, Any] = field(default_factory=dict)
    said: set[str] = field(default_factory=set)
    calls: list[Any] = field(default_factory=list)

    def evaluate(self, jaxpr: Any, values: list[Any]) -> list[Any]:
        """The outputs (arrays or Views) of a jaxpr, closed or not, on arrays and Views."""
        closed_over = list(getattr(jaxpr, "consts", ()))
        jaxpr = getattr(jaxpr, "jaxpr", jaxpr)
        env: dict[Any, Any] = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*closed_over, *values], strict=True))

        def read(atom):
            return atom.val if isinstance(atom, Literal) else env[atom]

        for eqn in jaxpr.eqns:
            inputs = [read(atom) for atom in eqn.invars]
            stack = source_info_util.current_name_stack() + eqn.source_info.name_stack
            with source_info_util.user_context(eqn.source_info.traceback, name_stack=stack), eqn.ctx.manager:
                if any(isinstance(value, View) for value in inputs):
                    outputs = self.apply_rule(eqn, inputs)
                else:
                    outputs = bind(eqn, inputs)
            env.update(zip(eqn.outvars, outputs, strict=True))
        return [read(atom) for atom in jaxpr.outvars]

    def apply_rule(self, eqn, inputs: list[Any]) -> list[Any]:
        self.calls.append(eqn)
        try:
            outputs = RULES[eqn.primitive.name](self, eqn, inputs) if eqn.primitive.name in RULES else NotImplemented
            if outputs is NotImplemented:
                outputs = bind(eqn, [self.dense(value, eqn) for value in inputs])
            return outputs
        finally:
            self.calls.pop()

    def dense(self, value: Any, eqn: Any, why: str = "") -> Any:
        """The array behind a value; says so if that expands a Weight."""
        if not isinstance(value, View):
            return value
        self.tell(value, "other", None, None, eqn)
        if not watched(value.weight):
            name = eqn.primitive.name if eqn is not None else "the function's own result"
            place = self.place() if eqn is not None else "its return statement"
            lost = value.weight.loses()
            message = (
                f"{value.path}: {value.weight.kind()} is expanded to a plain array{lost and f', without {lost},'} for "
                f"`{name}`{why and ' (' + why + ')'} at {place}; exclude it with `where`, or rewrite that line as a "
                "product"
            )
            if self.strict:
                raise MaterialiseError(message)
            self.say(message, place if eqn is not None else source_info_util.summarize(source_info_util.current()))
        return value.apply(value.weight.materialise())

    def place(self) -> str:
        """The user's line that is being evaluated: the innermost that is known."""
        for eqn in reversed(self.calls):
            lines = source_info_util.summarize(eqn.source_info, num_frames=1000).splitlines()
            own = [line for line in lines if not line.startswith((*_LIBRARIES, "unknown"))]
            if own:  # a library's own body has no line of the user's; its call has
                return own[-1]
        return "an unknown line"

    def say(self, message: str, place: str) -> None:
        """Warns as from the user's line: Python shows that line, not one of ours."""
        if message not in self.said:
            self.said.add(message)
            at = re.match(r"(.+?):(\d+)(:\d+)? \(", place)
            file, line = (at[1], int(at[2])) if at else (place, 0)
            warnings.warn_explicit(message, MaterialiseWarning, file, line, registry=_SHOWN)

    def tell(self, view: View, kind: str, x: Any, details: Any, eqn: Any) -> None:
        """Shows one use of a weight to the observer; of joined weights, each one's."""
        if not self.observe:
            return
        weight = view.weight
        while isinstance(weight, Scaled):
            weight = weight.base
        if isinstance(weight, Concat):
            for leaf, path, piece in zip(weight.leaves, view.joined, weight.pieces(x, details), strict=True):
                if path:
                    self.tell(View.of(leaf, path), kind, piece, details, eqn)
            return
        tap = self.observe(view, kind, x, details, eqn)
        if tap is not None:
            self.keep({view.path: tap})

    def body(self, jaxpr: Any, values: list[Any], eqn: Any, skip: Any = ()) -> tuple[list[Any], dict[str, Any]]:
        """Arrays and taps that a body of control flow (of equation `eqn`) results in; None for outputs in `skip`."""
        outer, self.taps = self.taps, {}
        try:
            outputs = [
                None if i in skip else self.dense(value, eqn, "as a result")
                for i, value in enumerate(self.evaluate(jaxpr, values))
            ]
            return outputs, self.taps
        finally:
            self.taps = outer

    def keep(self, taps: dict[str, Any], summed: Callable[[str], bool] = lambda path: False) -> None:
        """Adds a body's taps to this level's; those stacked by a loop over a shared weight are summed first."""
        for path, tap in taps.items():
            tap = jax.tree.map(lambda t: t.sum(0), tap) if summed(path) else tap
            old = self.taps.get(path)
            self.taps[path] = tap if old is None else jax.tree.map(jnp.add, old, tap)


def watched(weight: Any) -> bool:
    """Whether nothing but plain arrays that `usage` watches (rearranged, scaled, joined) lies at the bottom."""
    parts = weight.leaves if isinstance(weight, Concat) else [getattr(weight, "base", None)]
    weights = [part for part in parts if is_weight(part)]
    return isinstance(weight, Dense) or (bool(weights) and all(map(watched, weights)))


def bind(eqn: Any, inputs: list[Any]) -> list[Any]:
    """The equation itself, on arrays."""
    outputs = eqn.primitive.bind(*inputs, **eqn.primitive.get_bind_params(eqn.params))
    return list(outputs) if eqn.primitive.multiple_results else [outputs]
