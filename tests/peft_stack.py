"""A small model twice: a torch module for PEFT, and a function of our tree, its layers scanned or unrolled.

Legend: B batch, T time, D width, F inner width, L layers, V vocabulary.
"""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxbig.usage import usage

L, V, D, F = 3, 11, 6, 8
SHAPES = {"norm/scale": (D,), "norm/bias": (D,), "up": (D, 2, F // 2), "down": (F, D)}
TORCH = {"norm/scale": "norm.weight", "norm/bias": "norm.bias", "up": "up.weight", "down": "down.weight"}


def normed(p, x):
    x = x - x.mean(-1, keepdims=True)
    return x * jax.lax.rsqrt((x**2).mean(-1, keepdims=True) + 1e-5) * p["scale"] + p["bias"]


def layer(x_BTD, p):
    inner = jnp.tanh(jnp.einsum("btd,dhk->bthk", normed(p["norm"], x_BTD), p["up"]))
    return x_BTD + inner.reshape(*x_BTD.shape[:-1], F) @ p["down"]


def ours(params, ids_BT, image_BHWC):
    """A table, layers with heads, a convolution and a head with a bias."""
    x = params["emb"][ids_BT]
    if "layers" in params:
        x, _ = jax.lax.scan(lambda x, p: (layer(x, p), None), x, params["layers"])
    else:
        for i in range(L):
            x = layer(x, params[f"layer_{i}"])
    dims = ("NHWC", "HWIO", "NHWC")
    image_BHWC = image_BHWC.astype(params["conv"].dtype)
    y = jax.lax.conv_general_dilated(image_BHWC, params["conv"], (1, 1), "VALID", dimension_numbers=dims)
    pooled = jnp.concatenate([x.mean(1), jnp.tanh(y).mean((1, 2))], axis=-1)
    return pooled @ params["head"]["kernel"] + params["head"]["bias"]


def names(path):
    """Our leaves, of either tree, as parameters of the torch module."""
    known = {"emb": "emb.weight", "conv": "conv.weight", "head/kernel": "head.weight", "head/bias": "head.bias"}
    if path in known:
        return known[path]
    first, _, rest = path.partition("/")
    if first == "layers":
        return [f"layers.{i}.{TORCH[rest]}" for i in range(L)]
    return f"layers.{first.removeprefix('layer_')}.{TORCH[rest]}"


def drawn(dtype=np.float32, kernel=(3, 2)):
    """A tree of scanned layers."""
    random = np.random.default_rng(0)
    nested = {name: (L, *shape) for name, shape in SHAPES.items()}
    layers = {"norm": {"scale": nested["norm/scale"], "bias": nested["norm/bias"]}, "up": nested["up"],
              "down": nested["down"]}  # fmt: skip
    shapes = {"emb": (V, D), "layers": layers, "conv": (*kernel, 2, 4), "head": {"kernel": (D + 4, 3), "bias": (3,)}}
    draw = lambda shape: jnp.asarray(random.normal(size=shape).astype(dtype))  # noqa: E731
    return jax.tree.map(draw, shapes, is_leaf=lambda x: isinstance(x, tuple))


def unrolled(params):
    """The same tree with a layer each."""
    rest = {name: leaf for name, leaf in params.items() if name != "layers"}
    return rest | {f"layer_{i}": jax.tree.map(lambda leaf: leaf[i], params["layers"]) for i in range(L)}  # noqa: B023


def inputs():
    random = np.random.default_rng(1)
    return random.integers(0, V, (2, 5)), random.normal(size=(2, 5, 4, 2)).astype(np.float32)


def uses_of(params):
    return usage(ours, params, *inputs())


def torch_and_peft():
    """Both modules, or a skip."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what importing them says is not ours to mend
        peft = pytest.importorskip("peft")
    return pytest.importorskip("torch"), peft


def theirs(torch, params):
    """The torch module with our numbers, in float64."""
    nn, kernel = torch.nn, params["conv"].shape[:2]

    class Layer(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.LayerNorm(D)
            self.up, self.down = nn.Linear(D, F, bias=False), nn.Linear(F, D, bias=False)

        def forward(self, x):
            return x + self.down(torch.tanh(self.up(self.norm(x))))

    class Stack(nn.Module):
        def __init__(self):
            super().__init__()
            self.emb, self.layers = nn.Embedding(V, D), nn.ModuleList([Layer() for _ in range(L)])
            self.conv, self.head = nn.Conv2d(2, 4, kernel, bias=False), nn.Linear(D + 4, 3)

        def forward(self, ids, image):
            x = self.emb(ids)
            for layer in self.layers:
                x = layer(x)
            y = torch.tanh(self.conv(image)).mean((2, 3))
            return self.head(torch.cat([x.mean(1), y], -1))

    model, one = Stack().double().eval(), unrolled(params)
    flat = lambda array: torch.tensor(np.asarray(array, np.float64))  # noqa: E731
    state = {"emb.weight": flat(one["emb"]), "conv.weight": flat(one["conv"].transpose(3, 2, 0, 1)),
             "head.weight": flat(one["head"]["kernel"].T), "head.bias": flat(one["head"]["bias"])}  # fmt: skip
    for i in range(L):
        its, at = one[f"layer_{i}"], f"layers.{i}."
        state |= {at + "norm.weight": flat(its["norm"]["scale"]), at + "norm.bias": flat(its["norm"]["bias"])}
        state |= {at + "up.weight": flat(its["up"].reshape(D, F).T), at + "down.weight": flat(its["down"].T)}
    model.load_state_dict(state)
    return model


def logits(torch, model):
    """Of the torch module, or of PEFT's around it."""
    ids, image = inputs()
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        return model(torch.tensor(ids), torch.tensor(image.transpose(0, 3, 1, 2), dtype=torch.float64)).numpy()
