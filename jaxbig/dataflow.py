"""What becomes of products inside a traced program: which is the head, and which end in a residual stream.

A *site* is an equation of the program that is a product of parameters, known by the ids of the calls around it (a scan,
a jitted function) and its own. One walk from the inputs to the results carries with each value what products it comes
from. Sets of products are the bits of an integer: bit i is the i-th.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

Calls = tuple[int, ...]

# What may lie between a product and the addition to the stream: dropout, casts, scales, other shapes.
_PASSES = {
    "reshape", "transpose", "squeeze", "expand_dims", "convert_element_type", "reduce_precision", "copy", "mul", "div",
    "select_n", "name", "sharding_constraint", "optimization_barrier", "integer_pow", "neg", "add", "add_any",
}  # fmt: skip


class Flow(NamedTuple):
    """Where a value comes from.

    Attributes:
        near: the products that it depends on through no other product.
        all: all products that it depends on; in a loop, in one round of it.
        same: the products whose result it is, but for a bias, dropout, a cast, a scale or another shape.
    """

    near: int = 0
    all: int = 0
    same: int = 0


def heads_and_residuals(jaxpr: Any, products: Mapping[Calls, Any]) -> tuple[set[Any], set[Any]]:
    """The heads, which some result depends on through no other product and which feed no other product; and those whose
    result, but for what `Flow.same` lets pass, is added to what does not depend on it: a residual stream.

    Args:
        jaxpr: of the whole program.
        products: site -> what it is known as; several sites may be one product.

    Returns:
        (heads, residuals) among the values of `products`.
    """
    known = list(dict.fromkeys(products.values()))
    walk = _Walk({calls: 1 << known.index(value) for calls, value in products.items()})
    results = walk.body(jaxpr, [Flow()] * len(jaxpr.jaxpr.invars), ())
    # many products end in a residual stream: such a function has no head
    heads = {flow.near for flow in results if flow.near.bit_count() == 1}
    heads -= {1 << i for i in range(len(known)) if walk.fed >> i & 1}
    return {known[bit.bit_length() - 1] for bit in heads}, {p for i, p in enumerate(known) if walk.added >> i & 1}


def _joined(flows: Sequence[Flow]) -> Flow:
    near = every = same = 0
    for flow in flows:
        near, every, same = near | flow.near, every | flow.all, same | flow.same
    return Flow(near, every, same)


class _Walk:
    """Attributes: fed: products that feed another; added: products that end in a residual stream."""

    def __init__(self, sites: Mapping[Calls, int]):
        self.sites, self.fed, self.added = sites, 0, 0

    def body(self, jaxpr: Any, flows: Sequence[Flow], calls: Calls) -> list[Flow]:
        """The flows of a jaxpr's results, given those of its inputs."""
        jaxpr = getattr(jaxpr, "jaxpr", jaxpr)
        at, spread = dict(zip(map(id, jaxpr.invars), flows, strict=True)), set()
        for eqn in jaxpr.eqns:
            name, its = eqn.primitive.name, [at.get(id(v), Flow()) for v in eqn.invars]
            if name in ("add", "add_any"):
                streams = [
                    not hasattr(v, "val") and id(v) not in spread and v.aval.shape == eqn.outvars[0].aval.shape
                    for v in eqn.invars
                ]  # no bias, which was broadcast, and no literal
                for mine, other, stream in zip(its, its[::-1], streams[::-1], strict=True):
                    self.added |= mine.same & ~other.all if stream else 0
            elif name == "broadcast_in_dim":
                spread.add(id(eqn.outvars[0]))
            at |= zip(map(id, eqn.outvars), self.equation(eqn, its, (*calls, id(eqn))), strict=True)
        return [at.get(id(v), Flow()) for v in jaxpr.outvars]

    def equation(self, eqn: Any, its: list[Flow], calls: Calls) -> list[Flow]:
        """The flows of an equation's results."""
        name, p, every = eqn.primitive.name, eqn.params, _joined(its)
        if calls in self.sites:
            bit = self.sites[calls]
            self.fed |= every.near
            return [Flow(bit, every.all | bit, bit)]
        if name == "scan":
            body = getattr(p["jaxpr"], "jaxpr", p["jaxpr"])
            carried = sum(o.aval.ndim == b.aval.ndim for o, b in zip(eqn.outvars, body.outvars, strict=True))
            first = sum(o.aval.ndim == b.aval.ndim for o, b in zip(eqn.invars, body.invars, strict=True)) - carried
            return self.loop(body, its, first, carried, calls)
        if name == "while":
            return self.loop(p["body_jaxpr"], its[p["cond_nconsts"] :], p["body_nconsts"], len(eqn.outvars), calls)
        if name == "cond":
            branches = [self.body(branch, its[1:], calls) for branch in p["branches"]]
            return [_joined(flows) for flows in zip(*branches, strict=True)]
        inner = p.get("jaxpr", p.get("call_jaxpr"))
        if inner is not None and len(getattr(inner, "jaxpr", inner).invars) == len(its):
            return self.body(inner, its, calls)
        return [every if name in _PASSES else every._replace(same=0)] * len(eqn.outvars)

    def loop(self, body: Any, its: list[Flow], first: int, carried: int, calls: Calls) -> list[Flow]:
        """As `body`, for one whose carried inputs were its results a round before."""
        its = [flow._replace(same=0) for flow in its]
        while True:
            results = [flow._replace(same=0) for flow in self.body(body, its, calls)]
            before = its[first : first + carried]
            again = [old._replace(near=old.near | new.near) for old, new in zip(before, results[:carried], strict=True)]
            if again == before:
                return results
            its[first : first + carried] = again
