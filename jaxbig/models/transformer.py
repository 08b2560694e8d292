"""The pre-norm Transformer encoder, with its layers unrolled or stacked.

Legend of the shape suffixes: B batch, T tokens, D width of the model, F width of the hidden layer, L layers.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxbig.errors import UserError
from jaxbig.models.stack import recomputed, run_layers

GLOROT_UNIFORM = nn.initializers.xavier_uniform()


class EncoderLayer(nn.Module):
    """One pre-norm layer: x <- x + attention(norm(x)); x <- x + mlp(norm(x)), mlp(x) = W_2 gelu(W_1 x + b_1) + b_2.

    Args:
        heads: number of attention heads; it has to divide D.
        hidden: width F of the hidden layer.
        dropout: rate after each dense layer but those of query, key and value.
        deterministic: no dropout.
        dtype: dtype of the computation; the statistics of the norms are float32 always.

    Returns:
        array [B, T, D].

    Example:
        >>> layer = EncoderLayer(heads=2, hidden=8)
        >>> params = jax.eval_shape(layer.init, jax.random.key(0), jnp.ones((1, 3, 4)))["params"]
        >>> sorted(params)
        ['attention', 'attention_norm', 'mlp_in', 'mlp_norm', 'mlp_out']

    Reference:
        Xiong et al. (2020), "On layer normalization in the Transformer architecture", arXiv:2002.04745; Glorot and
        Bengio (2010) for the initialisation, as Dosovitskiy et al. (2020), arXiv:2010.11929, use it.
    """

    heads: int
    hidden: int
    dropout: float = 0.0
    deterministic: bool = True
    dtype: Any = None

    @nn.compact
    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        width = x_BTD.shape[-1]
        if width % self.heads:
            raise UserError(f"encoder: width {width} is not a multiple of heads={self.heads}; change one of them")
        # Biases that are not quite zero are part of the recipe that the ViT authors published with their code.
        small = nn.initializers.normal(1e-6)
        y_BTD = nn.LayerNorm(dtype=self.dtype, name="attention_norm")(x_BTD)
        y_BTD = nn.MultiHeadDotProductAttention(
            self.heads, dtype=self.dtype, kernel_init=GLOROT_UNIFORM, deterministic=True, name="attention"
        )(y_BTD, y_BTD)
        x_BTD = x_BTD + nn.Dropout(self.dropout, deterministic=self.deterministic)(y_BTD)
        y_BTD = nn.LayerNorm(dtype=self.dtype, name="mlp_norm")(x_BTD)
        dense = {"kernel_init": GLOROT_UNIFORM, "bias_init": small, "dtype": self.dtype}
        h_BTF = nn.gelu(nn.Dense(self.hidden, name="mlp_in", **dense)(y_BTD), approximate=False)
        h_BTF = nn.Dropout(self.dropout, deterministic=self.deterministic)(h_BTF)
        y_BTD = nn.Dense(width, name="mlp_out", **dense)(h_BTF)
        return x_BTD + nn.Dropout(self.dropout, deterministic=self.deterministic)(y_BTD)


class Encoder(nn.Module):
    """A stack of `EncoderLayer` and a last layer norm.

    Unrolled, the layers are called ``layer_0``, ``layer_1``, ...; scanned, there is one set of parameters called
    ``layers`` whose arrays have a first axis of length L, the program has the size of one layer, and compiling takes
    the time of one layer. `stack_layers` and `unstack_layers` turn one tree of parameters into the other.

    Args:
        layers: number L of layers.
        heads: number of attention heads.
        hidden: width F of the hidden layers.
        dropout: rate after the dense layers, see `EncoderLayer`; used when called with ``train=True`` (needs a
            "dropout" key).
        scan_layers: stacked parameters and `nn.scan` in place of an unrolled loop.
        remat: recompute each layer in the backward pass; memory for L + 1 activations of size [B, T, D] and those of
            one layer.
        dtype: dtype of the computation. Parameters are float32.

    Returns:
        array [B, T, D].

    Example:
        >>> encoder = Encoder(layers=3, heads=1, hidden=8, scan_layers=True)
        >>> params = jax.eval_shape(encoder.init, jax.random.key(0), jnp.ones((1, 2, 4)))["params"]
        >>> params["layers"]["mlp_in"]["kernel"].shape
        (3, 4, 8)

    Reference:
        Vaswani et al. (2017), arXiv:1706.03762; Xiong et al. (2020), arXiv:2002.04745; Chen et al. (2016),
        "Training deep nets with sublinear memory cost", arXiv:1604.06174, for `remat`.
    """

    layers: int
    heads: int
    hidden: int
    dropout: float = 0.0
    scan_layers: bool = False
    remat: bool = False
    dtype: Any = None

    @nn.compact
    def __call__(self, x_BTD: jax.Array, train: bool = False) -> jax.Array:
        layer = recomputed(EncoderLayer, self.remat, self.scan_layers)
        made = partial(layer, self.heads, self.hidden, self.dropout, not train, self.dtype)
        x_BTD = run_layers(made, self.layers, self.scan_layers, x_BTD)
        return nn.LayerNorm(dtype=self.dtype, name="norm")(x_BTD)


def stack_layers(encoder: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters of a scanned `Encoder` from those of an unrolled one.

    Args:
        encoder: tree with ``layer_0``, ``layer_1``, ... of equal structure; it is not changed.

    Returns:
        tree with ``layers``, every array with a first axis of length L; other entries as they were.

    Raises:
        UserError: there is no ``layer_0``.

    Example:
        >>> stack_layers({"layer_0": {"w": jnp.zeros(2)}, "layer_1": {"w": jnp.ones(2)}})["layers"]["w"].tolist()
        [[0.0, 0.0], [1.0, 1.0]]
    """
    count = sum(name.startswith("layer_") for name in encoder)
    names = [f"layer_{index}" for index in range(count)]
    if not names or any(name not in encoder for name in names):
        raise UserError(f"stack_layers: no layer_0 ... layer_{max(count - 1, 0)} among {sorted(encoder)}")
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(encoder[name] for name in names))
    return {name: value for name, value in encoder.items() if name not in names} | {"layers": stacked}


def unstack_layers(encoder: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters of an unrolled `Encoder` from those of a scanned one; the inverse of `stack_layers`.

    Args:
        encoder: tree with ``layers``; it is not changed.

    Returns:
        tree with ``layer_0``, ``layer_1``, ...

    Raises:
        UserError: there is no ``layers``.

    Example:
        >>> sorted(unstack_layers({"layers": {"w": jnp.zeros((2, 3))}, "norm": {}}))
        ['layer_0', 'layer_1', 'norm']
    """
    if "layers" not in encoder:
        raise UserError(f"unstack_layers: no 'layers' among {sorted(encoder)}; these parameters are not stacked")
    count = jax.tree.leaves(encoder["layers"])[0].shape[0]
    rest = {name: value for name, value in encoder.items() if name != "layers"}
    return rest | {f"layer_{i}": jax.tree.map(lambda leaf, i=i: leaf[i], encoder["layers"]) for i in range(count)}
