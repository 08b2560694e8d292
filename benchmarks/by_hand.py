"""One small transformer twice: in linen, and in plain jax with LoRA and QLoRA written into it by hand.

What jaxbig adds to an unedited model has to cost what the hand-written version costs: `tests/test_cost.py` compares the
compiled programs, `benchmarks/lift_overhead.py` the time that tracing, compiling and dispatching take.

Shapes: B batch, T time, D width, H heads, K width of a head, F width of the feed-forward layer, L layers, V vocabulary,
R rank of LoRA, G groups of a scale.
"""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxbig.codes import NF4

B, T, D, H, F, L, V, R, ALPHA = 8, 32, 64, 4, 256, 4, 96, 8, 16.0
K = D // H


class Layer(nn.Module):
    """Pre-norm attention and feed-forward."""

    @nn.compact
    def __call__(self, x_BTD, _):
        y_BTD = nn.LayerNorm(name="norm1")(x_BTD)
        x_BTD = x_BTD + nn.MultiHeadDotProductAttention(H, name="attention")(
            y_BTD, mask=nn.make_causal_mask(y_BTD[..., 0])
        )
        y_BTF = nn.gelu(nn.Dense(F, name="up")(nn.LayerNorm(name="norm2")(x_BTD)))
        return x_BTD + nn.Dense(D, name="down")(y_BTF), None


class Linen(nn.Module):
    """The model as a user of flax writes it."""

    remat: bool = False

    @nn.compact
    def __call__(self, ids_BT):
        x_BTD = nn.Embed(V, D, name="embed")(ids_BT)
        layer = nn.remat(Layer, prevent_cse=False) if self.remat else Layer
        layers = nn.scan(layer, variable_axes={"params": 0}, split_rngs={"params": True}, length=L)
        x_BTD, _ = layers(name="layers")(x_BTD, None)
        return nn.Dense(V, name="head")(nn.LayerNorm(name="norm")(x_BTD))


def loss_of(logits_BTV, ids_BT):
    """Mean cross-entropy of the next token."""
    log_p = jax.nn.log_softmax(logits_BTV[:, :-1])
    return -jnp.take_along_axis(log_p, ids_BT[:, 1:, None], axis=-1).mean()


def linen_loss(params, ids_BT, remat=False):
    return loss_of(Linen(remat).apply({"params": params}, ids_BT), ids_BT)


def norm(p, x):
    # squares first, as flax does: the other order makes XLA compute the norm's gradient twice
    squares = jnp.square(x)
    mean = jnp.mean(x, -1)
    variance = jnp.maximum(0.0, jnp.mean(squares, -1) - jnp.square(mean))
    return (x - mean[..., None]) * (jax.lax.rsqrt(variance[..., None] + 1e-6) * spread(p["scale"])) + spread(p["bias"])


def spread(v):
    """A vector of a layer along the last axes of an activation, as flax writes it."""
    return v.reshape((1, 1, *v.shape))


def times(x, w, summed=1):
    """``x @ w`` over the last `summed` axes of x and the first ones of w."""
    axes = tuple(range(x.ndim - summed, x.ndim)), tuple(range(summed))
    return jax.lax.dot_general(x, w, (axes, ((), ())))


def dense(name, p, low, x):
    """One linear layer; LoRA beside it, and nf4 codes in the kernel's place, where they are given."""
    kernel, summed = p["kernel"], 2 if name == "out" else 1
    if isinstance(kernel, dict):
        y = jax.checkpoint(lambda x, kernel: times(x, dequantise(name, kernel), summed))(x, kernel)
    else:
        y = times(x, kernel, summed)
    if low is not None:
        y = y + times(times(x, low["a"], summed), low["b"] * (ALPHA / R))
    return y + spread(p["bias"])


def dequantise(name, kernel):
    """nf4: two codes to a byte along the last input axis, groups along it too."""
    codes, scale = kernel["codes"], kernel["scale"]
    axis = 1 if name == "out" else 0
    pairs = jnp.stack([codes & 0xF, codes >> 4], axis=axis + 1)
    shape = tuple(2 * n if i == axis else n for i, n in enumerate(codes.shape))
    values = jnp.asarray(NF4, jnp.float32)[pairs.reshape(shape)]
    groups = scale.shape[axis]
    blocks = values.reshape(*shape[:axis], groups, shape[axis] // groups, *shape[axis + 1 :])
    return (blocks * jnp.expand_dims(scale, axis + 1)).reshape(shape)


def attention(p, low, x_BTD):
    q, k, v = (dense(n, p[n], low and low[n], x_BTD) for n in ("query", "key", "value"))
    y_BTHK = nn.dot_product_attention(q, k, v, mask=nn.make_causal_mask(x_BTD[..., 0]))
    return dense("out", p["out"], low and low["out"], y_BTHK)


def layer(x_BTD, parts):
    p, low = parts
    x_BTD = x_BTD + attention(p["attention"], low and low["attention"], norm(p["norm1"], x_BTD))
    y_BTF = jax.nn.gelu(dense("up", p["up"], low and low["up"], norm(p["norm2"], x_BTD)))
    return x_BTD + dense("down", p["down"], low and low["down"], y_BTF), None


def loss_by_hand(params, low, ids_BT, remat=False):
    """The same loss; `low` is None or the tree of LoRA's factors, shaped like ``params["layers"]``."""
    x_BTD = jnp.take(params["embed"]["embedding"], ids_BT, axis=0)

    def fresh(x_BTD, parts):  # jax remembers the trace of a scan's body by the function: a first trace is what counts
        return layer(x_BTD, parts)

    body = jax.checkpoint(fresh, prevent_cse=False) if remat else fresh
    x_BTD, _ = jax.lax.scan(body, x_BTD, (params["layers"], low))
    logits = norm(params["norm"], x_BTD) @ params["head"]["kernel"] + params["head"]["bias"]
    return loss_of(logits, ids_BT)


def example():
    """Random token ids."""
    return jax.random.randint(jax.random.key(1), (B, T), 0, V)


@partial(jax.jit)
def parameters(key):
    """Initial parameters; both versions read the same tree."""
    return Linen().init(key, example())["params"]


def nest(flat, prefix="layers/"):
    """``{"layers/up/kernel": leaf} -> {"up": leaf}``: LoRA's factors as the hand-written version takes them."""
    tree = {}
    for path, leaf in flat.items():
        *parents, last = path.removeprefix(prefix).removesuffix("/kernel").split("/")
        inside = tree
        for name in parents:
            inside = inside.setdefault(name, {})
        inside[last] = leaf
    return tree
