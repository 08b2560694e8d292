"""The table of `lift`: every case x every kind of Weight is factored, or loud; and right in both.

For each cell: the value and the gradients of all floating parts equal those of the materialised tree; ``strict=True``
passes exactly where the table says that nothing is expanded; elsewhere a warning names the parameter and a line of the
model. For a low-rank weight no array of the full shape is computed, neither forward nor for its factors' gradients.
"""

import contextlib
import functools
import linecache
import re
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from devices import on_devices
from jax.extend.core import ClosedJaxpr, Jaxpr
from lift_table import KINDS, Case, floats, merged, scalar, uses_of, with_weights
from lift_table_control import CONTROL
from lift_table_layers import LAYERS
from lift_table_plain import PLAIN

from jaxbig.lift import MaterialiseError, MaterialiseWarning, lift
from jaxbig.tree import paths, replace

TABLE = [*LAYERS, *CONTROL, *PLAIN]
FAST = ["LowRank(Sparse(int4))"]  # of the others the values are compared by `make slow`
# These too, each of which is like another: the fast tier only traces them, with the other kinds of Weight.
LIKE_ANOTHER = (
    "custom_jvp, forward mode",
    "switch",
    "while_loop, weight in the condition",
    "fori_loop, weights in its state",
    "fori_loop of unknown length, weights in its state",
    "a gradient of the weight inside",
    "jvp inside",
    "shard_map, replicated",
)
# Layers, each of which is like another, or larger.
LIKE_ANOTHER_LAYER = (
    "Conv 1-D",
    "Conv 3-D",
    "Einsum with a batch axis",
    "OptimizedLSTMCell under RNN",
    "vmap over stacked tables",
)
QUICK_TO_COMPILE = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
HERE = Path(__file__).parent
# what only rearranges, or holds a body that is looked into
REARRANGES = {
    "transpose", "reshape", "convert_element_type", "slice", "dynamic_slice", "squeeze", "expand_dims", "split", "copy",
    "broadcast_in_dim", "stop_gradient", "jit", "pjit", "scan", "while", "cond", "remat2", "checkpoint", "shard_map",
    "custom_vjp_call", "custom_jvp_call", "optimization_barrier", "pvary", "pcast", "concatenate",
}  # fmt: skip


def inner(eqn):
    for value in eqn.params.values():
        for item in value if isinstance(value, tuple | list) else [value]:
            if isinstance(item, Jaxpr | ClosedJaxpr):
                yield getattr(item, "jaxpr", item)


def computed(jaxpr, shapes: set[tuple[int, ...]]):
    """Names of the primitives that compute a floating array of one of these shapes (in any order of axes)."""
    for eqn in jaxpr.eqns:
        for out in eqn.outvars:
            floating = jnp.issubdtype(getattr(out.aval, "dtype", jnp.int32), jnp.floating)
            if floating and tuple(sorted(out.aval.shape)) in shapes and eqn.primitive.name not in REARRANGES:
                yield eqn.primitive.name
        for body in inner(eqn):
            yield from computed(body, shapes)


def full_shapes(uses) -> set[tuple[int, ...]]:
    """Shapes of the weights, sorted, whole and without their stack."""
    shapes = set()
    for use in uses.values():
        core = [use.shape[i] for i in range(-len(use.shape), 0) if i in use.in_axes + use.out_axes]
        shapes |= {tuple(sorted(use.shape)), tuple(sorted(core))}
    return shapes


@functools.cache
def prepared(case: Case):
    fn, params, args = case.make()
    return fn, params, args, uses_of(case, fn, params, args)


def lifted(case: Case, kind: str, fn, *arguments, strict: bool = True):
    """The lifted function's result; checks that it expands a weight, and says where, just if the table says so."""
    if not case.reason(kind):
        return lift(fn, strict=strict)(*arguments)
    with told(case, case.reason(kind)):
        return lift(fn)(*arguments)


@contextlib.contextmanager
def told(case: Case, reason: str):
    """Checks that what happens inside warns of an expanded weight, with its path and a line of the model."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    assert caught, f"nothing was said; {reason}"
    names = "|".join(re.escape(path) for path in prepared(case)[3])
    assert case.line, f"{case.name}: say which line is named"
    for warning in caught:
        message = str(warning.message)
        assert warning.category is MaterialiseWarning
        assert re.match(rf"({names})( \+ ({names}))*: ", message), message
        if case.line == "its return statement":
            assert f"at {case.line};" in message
        else:
            file, number = re.search(rf" at ({re.escape(str(HERE))}/lift_table_\w+\.py):(\d+)", message).groups()
            assert case.line in linecache.getline(file, int(number)), message
            assert (warning.filename, warning.lineno) == (file, int(number))
        assert ("in its derivative rule" in message) == bool(case.expands), message


def backward(case: Case):
    """Around derivatives: told, where the table says that only they expand a weight."""
    return told(case, case.expands) if case.expands else contextlib.nullcontext()


def derivative(case: Case, fn, leaves):
    """Outputs, and the gradient of (or, forward, the derivative along a fixed direction at) some floating leaves."""
    if case.forward:
        directions = jax.tree.map(
            lambda leaf: jnp.cos(jnp.arange(leaf.size, dtype=leaf.dtype)).reshape(leaf.shape), leaves
        )
        return jax.jvp(fn, (leaves,), (directions,))
    (_, outputs), gradients = jax.value_and_grad(lambda new: (scalar(y := fn(new)), y), has_aux=True)(leaves)
    return outputs, gradients


def both_ways(case: Case, kinds, params):
    """For each kind, (outputs, derivatives) lifted and through the materialised tree."""
    fn, _, args, uses = prepared(case)
    ours, plain, trees = {}, {}, {kind: with_weights(kind, params, uses) for kind in kinds}
    for kind, tree in trees.items():
        leaves, fill = floats(tree)
        ours[kind] = derivative(
            case,
            lambda new, kind=kind, fill=fill: lifted(case, kind, fn, fill(new), *args, strict=not case.expands),
            leaves,
        )
    if case.forward:
        for kind, tree in trees.items():
            leaves, fill = floats(tree)
            plain[kind] = derivative(case, lambda new, fill=fill: fn(merged(fill(new)), *args), leaves)
        return ours, plain

    def one(tree):
        leaves, fill = floats(tree)
        return derivative(case, lambda new: fn(fill(new), *args), leaves)

    # one compiled body for all kinds
    together = jax.tree.map(lambda *leaves: jnp.stack(leaves), *[merged(tree) for tree in trees.values()])
    outputs, gradients = jax.lax.map(one, together)
    for i, (kind, tree) in enumerate(trees.items()):
        leaves, fill = floats(tree)
        _, back = jax.vjp(lambda new, fill=fill: floats(merged(fill(new)))[0], leaves)
        plain[kind] = jax.tree.map(lambda y, i=i: y[i], outputs), back([g[i] for g in gradients])[0]
    return ours, plain


def assert_close(ours, theirs, tolerance: float, label: str, whole: bool = False):
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    floats = [leaf for leaf in jax.tree.leaves(theirs) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    least = max(float(jnp.abs(leaf).max(initial=0)) for leaf in floats) if whole else 1e-3
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype), label
        if jnp.issubdtype(a.dtype, jnp.floating):
            a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
            assert np.isfinite(b).all()
            error = np.abs(a - b).max(initial=0) / max(np.abs(b).max(initial=0), least)
            assert error <= tolerance, f"{label}: {error:.2e}"
        else:
            assert (a == b).all(), label


def check(case: Case, kinds):
    both = jax.jit(lambda params: both_ways(case, kinds, params), compiler_options=QUICK_TO_COMPILE)
    with backward(case):
        ours, plain = both(prepared(case)[1])
    for kind in kinds:
        assert_close(ours[kind][0], plain[kind][0], case.tolerance, f"{kind}: value")
        assert_close(ours[kind][1], plain[kind][1], case.tolerance, f"{kind}: gradient", bool(case.zero))


each_case = pytest.mark.parametrize("case", TABLE, ids=lambda case: case.name)


@pytest.mark.parametrize(
    "case",
    # Layers come with values in the laws, in users' models and in ours, which the fast tier has.
    [pytest.param(c, marks=[pytest.mark.slow] * (c.name in LIKE_ANOTHER)) for c in CONTROL]
    + [pytest.param(case, marks=pytest.mark.slow) for case in (*LAYERS, *PLAIN)],
    ids=lambda case: case.name,
)
def test_factored_or_loud_and_right(case):
    check(case, FAST)


@pytest.mark.slow
@each_case
def test_factored_or_loud_and_right_for_more_kinds(case):
    check(case, [kind for kind in KINDS if kind not in FAST])


@pytest.mark.parametrize(
    "case",
    [*CONTROL, *[pytest.param(case, marks=pytest.mark.slow) for case in (*LAYERS, *PLAIN)]],
    ids=lambda case: case.name,
)
def test_factored_or_loud_for_more_kinds(case):
    fn, params, args, uses = prepared(case)
    for kind in [kind for kind in KINDS if kind not in FAST]:
        tree = jax.eval_shape(lambda params, kind=kind: with_weights(kind, params, uses), params)
        jax.eval_shape(lambda tree, kind=kind: lifted(case, kind, fn, tree, *args), tree)
        if case.reason(kind):
            with pytest.raises(MaterialiseError):
                jax.eval_shape(lambda tree: lift(fn, strict=True)(tree, *args), tree)


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(c, marks=[pytest.mark.slow] * (c.name in LIKE_ANOTHER_LAYER))
        for c in TABLE
        if not c.reason("LowRank")
    ],
    ids=lambda case: case.name,
)
def test_low_rank_never_meets_its_full_shape(case):
    fn, params, args, uses = prepared(case)
    tree = jax.eval_shape(lambda params: with_weights("LowRank", params, uses), params)
    low = {path: {"a": leaf.a, "b": leaf.b} for path, leaf in paths(tree).items() if path in uses}

    def at(low, tree):
        leaves = paths(tree)
        return lift(fn)(replace(tree, {path: leaves[path].replace(**parts) for path, parts in low.items()}), *args)

    def trained(low, tree):
        return derivative(case, lambda low: at(low, tree), low)

    if case.expands:
        assert set(computed(jax.make_jaxpr(at)(low, tree).jaxpr, full_shapes(uses))) == set()
    with backward(case):
        both = set(computed(jax.make_jaxpr(trained)(low, tree).jaxpr, full_shapes(uses)))
    assert bool(both) == bool(case.expands or case.computes), both


EIGHT_DEVICES = """
import jax, jax.numpy as jnp
from jax.sharding import AxisType, Mesh, PartitionSpec as P
import numpy as np
from jaxbig.lift import lift
from lift_table import floats, merged, normal, with_weights
from jaxbig.usage import Use
assert len(jax.devices()) == 8
mesh = Mesh(np.array(jax.devices()).reshape(2, 4), ("d", "m"), axis_types=(AxisType.Auto,) * 2)
w, x = normal(16, 24), normal(4, 16)
uses = {"w": Use("product", (-2,), (-1,), w.shape, w.dtype)}
def columns(params, x):
    local = lambda x, w: jnp.tanh(x @ w)
    return jax.shard_map(local, mesh=mesh, in_specs=(P("d"), P(None, "m")), out_specs=P("d", "m"))(x, params["w"])
def rows(params, x):
    local = lambda x, w: jax.lax.psum(x @ w, "m")
    return jax.shard_map(local, mesh=mesh, in_specs=(P("d", "m"), P("m")), out_specs=P("d"))(x, params["w"])
kinds = ("LowRank", "int8", "LowRank(Sparse(int4))")
trees = {kind: with_weights(kind, {"w": w}, uses) for kind in kinds}
leaves, fill = floats(trees)
def outputs(leaves, strict):
    made = fill(leaves) if strict else merged(fill(leaves))
    y = {(i, kind): lift(fn, strict=True)(made[kind], x) for i, fn in enumerate((columns, rows)) for kind in kinds}
    return sum(out.sum() for out in y.values()), y
both = [jax.value_and_grad(lambda new, s=s: outputs(new, s), has_aux=True) for s in (True, False)]
(ours, theirs) = jax.jit(lambda leaves: [function(leaves) for function in both])(leaves)
for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
    assert np.abs(a - b).max() <= 1e-4 * max(np.abs(b).max(), 1e-3)
print("equal")
"""


def test_shard_map_over_eight_devices():
    result = on_devices(8, "-c", EIGHT_DEVICES)
    assert result.stdout == "equal\n", result.stderr
