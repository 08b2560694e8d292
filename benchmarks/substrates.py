"""What can make an unedited model multiply by a low-rank weight? Each substrate on each kind of program.

Run: ``pip install quax && python benchmarks/substrates.py`` (prints the table of docs/design/0001). A cell is
*factored* if the result is right and the program holds no sum ``base + a @ b`` of the weight's own size, *dense* if it
is right but does, *forward* if the gradient alone is refused (by ``strict=True``), or the error.

Substrates: ``lift``, jaxbig's; ``quax``, arrays that override primitives (its own example ``LoraArray``);
``__jax_array__``, an object that turns into an array when touched; ``intercept``, flax's method interceptor that
replaces ``nn.Dense.__call__``.
"""

import importlib.util
import warnings

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from jaxbig import lift
from jaxbig.lift import MaterialiseError
from jaxbig.lowrank import LowRank

warnings.simplefilter("error")
D, R = 12, 2


class Duck:
    """A low-rank weight that becomes an array when touched."""

    def __init__(self, base, a, b):
        self.base, self.a, self.b, self.shape, self.dtype, self.ndim = base, a, b, base.shape, base.dtype, base.ndim

    def __jax_array__(self):
        return self.base + self.a @ self.b


jax.tree_util.register_pytree_node(Duck, lambda d: ((d.base, d.a, d.b), None), lambda _, c: Duck(*c))


@jax.custom_vjp
def with_rule(x, w):
    return x @ w


with_rule.defvjp(lambda x, w: (x @ w, (x, w)), lambda res, g: (g @ res[1].T, res[0].T @ g))


def cases():
    """name -> (function of (params, x), params)."""
    x = jax.random.normal(jax.random.key(0), (5, D))
    kernel = jax.random.normal(jax.random.key(1), (D, D))
    dense, mha = nn.Dense(D, use_bias=False), nn.MultiHeadDotProductAttention(num_heads=3, use_bias=False)
    mesh = jax.make_mesh((1,), ("i",), axis_types=(jax.sharding.AxisType.Auto,))
    plain = {"kernel": kernel}
    return x, {
        "nn.Dense": (lambda p, x: dense.apply({"params": p}, x), plain),
        "nn.MultiHeadDotProductAttention": (
            lambda p, x: mha.apply({"params": p}, x, x),
            mha.init(jax.random.key(2), x, x)["params"],
        ),
        "jit inside": (lambda p, x: jax.jit(jnp.dot)(x, p["kernel"]), plain),
        "scan over layers": (
            lambda p, x: jax.lax.scan(lambda c, w: (jnp.tanh(c @ w), None), x, p["kernel"])[0],
            {"kernel": jnp.stack([kernel, kernel])},
        ),
        "remat": (lambda p, x: jax.checkpoint(lambda w, x: jnp.tanh(x @ w))(p["kernel"], x), plain),
        "vmap over a stack": (
            lambda p, x: jax.vmap(lambda w: x @ w)(p["kernel"]),
            {"kernel": jnp.stack([kernel, kernel])},
        ),
        "custom_vjp": (lambda p, x: with_rule(x, p["kernel"]), plain),
        "shard_map": (
            lambda p, x: jax.shard_map(
                lambda w, x: jax.lax.psum(x @ w, "i"), mesh=mesh, in_specs=(P("i", None), P(None, "i")), out_specs=P()
            )(p["kernel"], x),
            plain,
        ),
        "gradient inside": (lambda p, x: jax.grad(lambda x: jnp.sum(jnp.tanh(x @ p["kernel"])))(x), plain),
        "transposed": (lambda p, x: x @ p["kernel"].T, plain),
    }


def factors(path, leaf, axes):
    key = jax.random.fold_in(jax.random.key(7), len(path))
    stack = leaf.shape[: leaf.ndim - sum(axes)]
    inner, outer = leaf.shape[len(stack) : len(stack) + axes[0]], leaf.shape[len(stack) + axes[0] :]
    a = 0.3 * jax.random.normal(key, (*stack, *inner, R))
    b = 0.3 * jax.random.normal(key, (*stack, R, *outer))
    return a, b


def split_axes(leaf, name):
    if name != "nn.MultiHeadDotProductAttention":
        return (1, 1)
    return (2, 1) if leaf.shape[0] == 3 else (1, 2)


def low_rank(leaf, name):
    n_in, n_out = split_axes(leaf, name)
    a, b = factors(name, leaf, (n_in, n_out))
    return LowRank(leaf, a, b, jnp.float32(1), None, None, tuple(range(-n_in - n_out, -n_out)), tuple(range(-n_out, 0)))


def lifted(fn, params, name):
    return lift(fn, strict=True), jax.tree.map(lambda leaf: low_rank(leaf, name), params)


def duck(fn, params, name):
    return fn, jax.tree.map(lambda leaf: Duck(leaf, *factors(name, leaf, split_axes(leaf, name))), params)


def quaxed(fn, params, name):
    import quax  # pyright: ignore[reportMissingImports]  optional: pip install quax
    from quax.examples.lora import LoraArray  # pyright: ignore[reportMissingImports]

    def one(leaf):
        a, b = factors(name, leaf, split_axes(leaf, name))
        array = LoraArray(leaf, rank=R, key=jax.random.key(0))
        object.__setattr__(array, "a", a)
        object.__setattr__(array, "b", b)
        return array

    return quax.quaxify(fn), jax.tree.map(one, params)


def intercepted(fn, params, name):
    def dense(next_fun, args, kwargs, context):
        if not isinstance(context.module, nn.Dense) or context.method_name != "__call__":
            return next_fun(*args, **kwargs)
        w = context.module.get_variable("params", "kernel")
        a, b = factors(name, w, (1, 1))
        return next_fun(*args, **kwargs) + args[0] @ a @ b

    def run(params, x):
        with nn.intercept_methods(dense):
            return fn(params, x)

    return run, params


def expected(fn, params, name):
    dense = jax.tree.map(lambda leaf: low_rank(leaf, name).materialise(), params)
    return lambda x: fn(dense, x)


def holds_sum(fn, params, x) -> bool:
    """Whether the traced program adds two arrays of a weight's own shape."""
    shapes = {leaf.shape for leaf in jax.tree.leaves(params)} | {(D, D)}

    def search(jaxpr):
        for eqn in jaxpr.eqns:
            shape = eqn.outvars[0].aval.shape if eqn.outvars else None
            if eqn.primitive.name == "add" and shape in shapes and all(v.aval.shape == shape for v in eqn.invars):
                return True
            for value in eqn.params.values():
                for inner in value if isinstance(value, tuple) else (value,):
                    inner = getattr(inner, "jaxpr", inner)
                    if hasattr(inner, "eqns") and search(inner):
                        return True
        return False

    return search(jax.make_jaxpr(fn)(params, x).jaxpr)


def cell(substrate, name, fn, params, x) -> str:
    try:
        run, tree = substrate(fn, params, name)
        got, want = run(tree, x), expected(fn, params, name)(x)
        if not jnp.allclose(got, want, rtol=1e-4, atol=1e-4):
            return "wrong"
        held = holds_sum(run, tree, x)
        try:
            gradient = jax.grad(lambda tree: jnp.sum(run(tree, x) ** 2))(tree)
        except MaterialiseError:
            return "dense" if held else "forward"
        if not all(bool(jnp.isfinite(g).all()) for g in jax.tree.leaves(gradient)):
            return "wrong gradient"
        return "dense" if held else "factored"
    except Exception as error:  # noqa: BLE001  the error is the result
        return f"{type(error).__name__}"


def main() -> None:
    substrates = {"lift": lifted, "__jax_array__": duck, "intercept": intercepted}
    if importlib.util.find_spec("quax"):
        substrates["quax"] = quaxed
    x, programs = cases()
    print(f"jax {jax.__version__}")
    print("| program | " + " | ".join(substrates) + " |")
    print("|---|" + "---|" * len(substrates))
    for name, (fn, params) in programs.items():
        print(f"| {name} | " + " | ".join(cell(s, name, fn, params, x) for s in substrates.values()) + " |")


if __name__ == "__main__":
    main()
