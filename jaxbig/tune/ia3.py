"""IA3: one trained factor for each channel."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxbig.adapter import adapter
from jaxbig.errors import UsageError
from jaxbig.matrix import Diagonal
from jaxbig.transform import Transform, technique
from jaxbig.tree import paths, replace
from jaxbig.usage import Uses
from jaxbig.weight import materialise


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Followed:
    """Attributes: owners: (path of a bias, path of the weight whose outputs it is added to), of each."""

    owners: tuple[tuple[str, str], ...]


def _bias(owner: str, biases: Any, leaves: Mapping[str, Any], uses: Uses) -> list[str]:
    """Path of the bias of a weight, if it has one."""
    use = next((use for use in uses[owner] if use.kind in ("product", "conv")), None)
    if use is None:
        return []
    outputs = (*use.shape[: use.layers], *(use.shape[axis] for axis in use.out_axes))
    module = owner.rpartition("/")[0]
    added = [path for path, its in uses.items() if {(use.detail, use.shape) for use in its} == {("add", outputs)}]
    if isinstance(biases, Mapping):
        found = [path for path, its in biases.items() if its == owner]
        if wrong := [path for path in found if path not in added]:
            raise UsageError(f"ia3: {wrong[0]} is no bias of {owner}, which is added and has the shape {outputs}")
    else:
        found = [path for path in added if path.rpartition("/")[0] == module]
    if len(found) > 1:
        raise UsageError(f"ia3: any of {', '.join(found)} may be {owner}'s bias; say which, biases={{bias: weight}}")
    if found and found[0] not in leaves:
        raise UsageError(
            f"ia3: {owner}'s bias {found[0]} belongs to another part; let this part's pattern match it too"
        )
    return found


@technique
def ia3(where: Any = None, side: str = "out", biases: bool | Mapping[str, str] = False) -> Transform:
    """Trains a factor for each channel of the selected weights: ``W' = W diag(l)``, or ``diag(l) W``; l = 1 at first.

    Args:
        where: the weights; None: every product and every ungrouped convolution except the model's head and tables.
        side: "out": the factors scale what a weight makes (the paper's keys and values); "in": what it is given (its
            feed-forward's inner activations: the weight that reads them). Both: ``partition`` with one of each.
        biases: whether the bias that is added to what a weight makes is scaled along, as PEFT does: ``(x W + b) l``.
            True: of each weight the one leaf beside it (of the same module) that is only ever added and has the shape
            of its outputs, if there is one. A mapping, path of a bias -> path of its weight, says it for a model that
            keeps them elsewhere. Of ``side="out"`` alone.

    Returns:
        a Transform; ``train[path] = {"gain": [*stack, O]}`` (I for "in"), float32 (float64 over a float64 base).

    Raises:
        UsageError: another `side`, or `biases` of inputs; a selected leaf that is neither multiplied nor looked up;
            several leaves may be a weight's bias, or one that is named is none.

    Cost: a parameter and a multiplication a channel.

    Example:
        >>> from jaxbig.usage import usage
        >>> params, x = {"w": jnp.ones((4, 3))}, jnp.ones((2, 4))
        >>> uses = usage(lambda p, x: x @ p["w"], params, x)
        >>> ia3(where="w").init(None, params, uses).train["w"]["gain"].shape
        (3,)

    Reference: Liu et al. 2022, arXiv:2205.05638. Deviations: the paper scales keys, values and the feed-forward's inner
    activations; nothing in a program says which these are, so None takes every weight: name them with `where`. T5, the
    paper's model, has no biases. The paper's losses and its pretraining of l are not here.
    """
    if side not in ("in", "out"):
        raise UsageError(f"ia3: side={side!r}; it is 'in' or 'out'")

    if biases and side == "in":
        raise UsageError("ia3: biases=True with side='in'; a bias is added to outputs, so leave it out")

    def start(key, path, site):
        count = site.matrix[side == "out"]
        return {"gain": jnp.ones((*site.stack, count), site.dtype)}, Diagonal(
            None, site.in_axes, site.out_axes, side, None
        )

    scaled = adapter("ia3", where, start)
    if not biases:
        return scaled

    def init(key, params, uses):
        split, leaves = scaled.init(key, params, uses), paths(params)
        owners = {path: owner for owner in split.train for path in _bias(owner, biases, leaves, uses)}
        return split._replace(state={**split.state, "biases": Followed(tuple(owners.items()))}) if owners else split

    def apply(split, key=None):
        owners = dict(split.state["biases"].owners if "biases" in split.state else ())
        bases = {path: materialise(leaf) for path, leaf in paths(split.params).items() if path in owners}
        gains = {path: split.train[owner]["gain"] for path, owner in owners.items()}
        return replace(
            scaled.apply(split, key),
            {path: (base * gains[path].reshape(base.shape)).astype(base.dtype) for path, base in bases.items()},
        )

    return Transform("ia3", init, apply)
