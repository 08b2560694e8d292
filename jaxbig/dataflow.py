"""What becomes of products inside a traced program: which is the head, and which end in a residual stream.

A *site* is an equation of the program that is a product of parameters, known by the ids of the calls around it (a scan,
a jitted function) and its own.
"""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

Calls = tuple[int, ...]

# What may lie between a product and the addition to the stream: dropout, casts, scales, other shapes.
_PASSES = {
    "reshape", "transpose", "squeeze", "expand_dims", "convert_element_type", "reduce_precision", "copy", "mul", "div",
    "select_n", "name", "sharding_constraint", "optimization_barrier", "integer_pow", "neg",
}  # fmt: skip


def heads(jaxpr: Any, products: Mapping[Calls, Any]) -> set[Any]:
    """The products that some result depends on through no other product, and that feed no other product.

    Args:
        jaxpr: of the whole program.
        products: site -> what it is known as.

    Returns:
        those of the values that are heads.
    """
    found: set[Any] = set()
    walk = _Walk(products)
    for i in range(len(jaxpr.jaxpr.outvars)):
        walk.last = set()
        walk.back(jaxpr, {(i, False)}, ())
        last = {products[key] for key in walk.last}
        if len(last) == 1:  # many products end in a residual stream: such a function has no head
            found |= last
    return found - {products[key] for key in walk.fed}


def residuals(jaxpr: Any, products: Mapping[Calls, Any]) -> set[Any]:
    """The products whose result, but for a bias, dropout, a cast or a scale, is added to what does not depend on it.

    Args:
        jaxpr, products: as for `heads`.

    Returns:
        those of the values that end in a residual stream.
    """
    found = set()
    for calls, frames in _sites(jaxpr, (), ()):
        if calls in products and products[calls] not in found and _is_added(frames):
            found.add(products[calls])
    return found


class _Frame(NamedTuple):
    """Attributes: jaxpr: a body; at: the number of the equation in it that is looked at."""

    jaxpr: Any
    at: int


def _bodies(eqn: Any) -> list[Any]:
    """The programs inside an equation."""
    found = []
    for value in eqn.params.values():
        for one in value if isinstance(value, tuple | list) else (value,):
            inner = getattr(one, "jaxpr", one)
            if hasattr(inner, "eqns"):
                found.append(inner)
    return found


def _sites(jaxpr: Any, calls: Calls, frames: tuple[_Frame, ...]) -> Iterator[tuple[Calls, tuple[_Frame, ...]]]:
    """Every equation of a program, outermost first, and the frames it lies in."""
    jaxpr = getattr(jaxpr, "jaxpr", jaxpr)
    for i, eqn in enumerate(jaxpr.eqns):
        key, inside = (*calls, id(eqn)), (*frames, _Frame(jaxpr, i))
        yield key, inside
        for body in _bodies(eqn):
            yield from _sites(body, key, inside)


def _is_added(frames: tuple[_Frame, ...]) -> bool:
    """Whether the result of the equation in the innermost frame is added to a stream, there or in a caller."""
    frame = frames[-1]
    eqn = frame.jaxpr.eqns[frame.at]
    return _follow(frames, eqn.outvars[0], frame.at + 1)


def _follow(frames: tuple[_Frame, ...], var: Any, start: int) -> bool:
    jaxpr = frames[-1].jaxpr
    same, depends = {id(var)}, {id(var)}  # the result itself, and what depends on it
    for eqn in jaxpr.eqns[start:]:
        ins = {id(v) for v in eqn.invars}
        if not ins & depends:
            continue
        depends |= {id(v) for v in eqn.outvars}
        if not ins & same:
            continue
        name, out = eqn.primitive.name, eqn.outvars[0]
        if name in ("add", "add_any"):
            others = [v for v in eqn.invars if id(v) not in same]
            if any(_is_stream(jaxpr, other, out, depends) for other in others):
                return True
            same.add(id(out))
        elif name in _PASSES:
            same.add(id(out))
        elif (inner := _called(eqn)) is not None:
            for i, v in enumerate(eqn.invars):
                if id(v) in same and (through := _through(inner, i)) is not None:
                    same.add(id(eqn.outvars[through]))
    up = [i for i, v in enumerate(jaxpr.outvars) if id(v) in same]
    if not up or len(frames) == 1:
        return False
    caller = frames[-2].jaxpr.eqns[frames[-2].at]
    # What a scan carries or stacks is another round's; what a call returns goes on where it was called.
    return _called(caller) is not None and any(
        _follow(frames[:-1], caller.outvars[i], frames[-2].at + 1) for i in up if i < len(caller.outvars)
    )


def _is_stream(jaxpr: Any, other: Any, out: Any, depends: set[int]) -> bool:
    """Whether what is added is an activation of the result's shape: no bias, which was broadcast, and no literal."""
    if hasattr(other, "val"):
        return False
    if id(other) in depends or other.aval.shape != out.aval.shape:
        return False
    maker = next((eqn for eqn in jaxpr.eqns if any(v is other for v in eqn.outvars)), None)
    return maker is None or maker.primitive.name != "broadcast_in_dim"


def _called(eqn: Any) -> Any:
    """The body of an equation that calls it once, as jit and remat do; None for loops and all else."""
    if eqn.primitive.name in ("scan", "while", "cond"):
        return None
    inner = eqn.params.get("jaxpr", eqn.params.get("call_jaxpr"))
    inner = getattr(inner, "jaxpr", inner)
    return inner if inner is not None and len(inner.invars) == len(eqn.invars) else None


def _through(jaxpr: Any, i: int) -> int | None:
    """The result of a called body that is its input i but for what may lie in between (`jnp.where` of a dropout)."""
    same = {id(jaxpr.invars[i])}
    for eqn in jaxpr.eqns:
        if {id(v) for v in eqn.invars} & same and eqn.primitive.name in _PASSES:
            same.add(id(eqn.outvars[0]))
    return next((k for k, v in enumerate(jaxpr.outvars) if id(v) in same), None)


class _Walk:
    """From results back to inputs. Places are pairs (index, whether a product of parameters lies in between).

    Attributes:
        products: the equations that are products of parameters, by the ids of the calls around them and their own.
        last: products that were reached first; fed: those that were reached through another.
    """

    def __init__(self, products: Mapping[Calls, Any]):
        self.products, self.last, self.fed = products, set(), set()

    def back(self, jaxpr: Any, wanted: set[tuple[int, bool]], calls: Calls) -> set[tuple[int, bool]]:
        """The inputs of a jaxpr that the wanted outputs depend on."""
        jaxpr = getattr(jaxpr, "jaxpr", jaxpr)
        needed = {(id(jaxpr.outvars[i]), behind) for i, behind in wanted}
        for eqn in reversed(jaxpr.eqns):
            outs = {(i, b) for i, var in enumerate(eqn.outvars) for b in (False, True) if (id(var), b) in needed}
            if outs:
                reached = self.inputs(eqn, outs, (*calls, id(eqn)))
                needed |= {(id(eqn.invars[i]), behind) for i, behind in reached}
        return {(i, b) for i, var in enumerate(jaxpr.invars) for b in (False, True) if (id(var), b) in needed}

    def inputs(self, eqn: Any, outs: set[tuple[int, bool]], calls: Calls) -> set[tuple[int, bool]]:
        """The inputs of an equation that these outputs depend on."""
        name, p, every = eqn.primitive.name, eqn.params, range(len(eqn.invars))
        if calls in self.products:
            self.last |= {calls for _, behind in outs if not behind}
            self.fed |= {calls for _, behind in outs if behind}
            return {(i, True) for i in every}
        if name == "scan":
            body = getattr(p["jaxpr"], "jaxpr", p["jaxpr"])
            carried = sum(o.aval.ndim == b.aval.ndim for o, b in zip(eqn.outvars, body.outvars, strict=True))
            first = sum(o.aval.ndim == b.aval.ndim for o, b in zip(eqn.invars, body.invars, strict=True)) - carried
            return self.loop(body, outs, first, carried, calls)
        if name == "while":
            reached = self.loop(p["body_jaxpr"], outs, p["body_nconsts"], len(eqn.outvars), calls)
            return {(i + p["cond_nconsts"], behind) for i, behind in reached}
        if name == "cond":
            return {(i + 1, b) for branch in p["branches"] for i, b in self.back(branch, outs, calls)}
        inner = p.get("jaxpr", p.get("call_jaxpr"))
        if inner is not None and len(getattr(inner, "jaxpr", inner).invars) == len(eqn.invars):
            return self.back(inner, outs, calls)
        return {(i, behind) for i in every for _, behind in outs}

    def loop(self, body: Any, outs, first: int, n_carry: int, calls) -> set[tuple[int, bool]]:
        """As `back`, for a body whose carried inputs were its outputs a round before."""
        wanted = set(outs)
        while True:
            reached = self.back(body, wanted, calls)
            more = wanted | {(i - first, b) for i, b in reached if first <= i < first + n_carry}
            if more == wanted:
                return reached
            wanted = more
