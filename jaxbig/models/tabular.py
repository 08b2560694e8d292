"""Networks for tables of numbers and categories: a Transformer over features, and a perceptron.

Inputs are mappings: ``{"numbers": [B, J] or [B, J, K], "categories": [B, M]}``, either of which may be missing.

Legend of the shape suffixes: B batch, J numerical features, K entries of an encoded number, M categorical features,
T tokens (1 + J + M), D width of a token, F width of a hidden layer, E edges of a feature's bins, N classes.
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange

from jaxbig.errors import UserError


def _uniform(fan_in: int) -> Any:
    """Uniform in ±1 / sqrt(fan_in), for arrays of any shape."""

    def init(key, shape, dtype=jnp.float32):
        return jax.random.uniform(key, shape, dtype, -1, 1) / fan_in**0.5

    return init


# The same for kernels of dense layers: torch's default, which the authors' code has.
UNIFORM = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


class Categories(nn.Module):
    """Embeddings of categorical features, one table ``table/embedding`` for all, each with rows of its own.

    Args:
        sizes: number of categories of each feature.
        width: D.
        dtype: dtype of the result.

    Returns:
        array [B, M, D]; NaN where a code is not in ``0 .. sizes[m] - 1``.

    Example:
        >>> embed = Categories((2, 3), width=4)
        >>> params = embed.init(jax.random.key(0), jnp.zeros((1, 2), int))
        >>> jnp.isnan(embed.apply(params, jnp.array([[1, 2], [0, 3]]))).any(-1).tolist()
        [[False, False], [False, True]]
    """

    sizes: Sequence[int]
    width: int
    dtype: Any = None

    @nn.compact
    def __call__(self, codes_BM: jax.Array) -> jax.Array:
        total, first_M = sum(self.sizes), jnp.array([0, *itertools.accumulate(self.sizes)][:-1])
        known_BM = (codes_BM >= 0) & (codes_BM < jnp.array(self.sizes))
        table = nn.Embed(total, self.width, dtype=self.dtype, embedding_init=_uniform(self.width), name="table")
        # A row that is not there gives NaN; another feature's row would be wrong without a word.
        return table(jnp.where(known_BM, codes_BM + first_M, total))


class Tokenizer(nn.Module):
    """Tokens from features: ``[cls]``, ``x_j w_j + b_j`` for numbers, ``e_m[code] + b_m`` for categories.

    A number that comes encoded as K entries (`piecewise_linear`) gives ``x_j W_j + b_j`` with W_j [K, D].
    Parameters: ``cls`` [D], ``numbers`` [J, D] (``numbers_kernel`` [J, K, D] if encoded), ``categories``, ``bias``
    [J + M, D].

    Args:
        categories: number of categories of each categorical feature.
        width: D.
        dtype: dtype of the computation.

    Returns:
        array [B, T, D].

    Example:
        >>> tokens, batch = Tokenizer((3,), width=4), {"numbers": jnp.ones((2, 5)), "categories": jnp.ones((2, 1), int)}
        >>> jax.eval_shape(tokens.init_with_output, jax.random.key(0), batch)[0].shape
        (2, 7, 4)

    Reference:
        Gorishniy, Rubachev, Khrulkov, Babenko (2021), arXiv:2106.11959, section 3.3; everything uniform in
        ±1/sqrt(D), as the authors' code has it. Deviation: [CLS] is the first token, not the last.
    """

    categories: Sequence[int]
    width: int
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Mapping[str, jax.Array]) -> jax.Array:
        parts, uniform = [], _uniform(self.width)
        numbers, codes_BM = _checked(x, self.categories)
        if numbers is not None:
            numbers = numbers.astype(self.dtype or jnp.promote_types(numbers.dtype, jnp.float32))
            if numbers.ndim == 2:
                w_JD = self.param("numbers", uniform, (numbers.shape[1], self.width)).astype(numbers.dtype)
                parts.append(numbers[..., None] * w_JD)
            else:
                w_JKD = self.param("numbers_kernel", uniform, (*numbers.shape[1:], self.width)).astype(numbers.dtype)
                parts.append(jnp.einsum("BJK,JKD->BJD", numbers, w_JKD))
        if codes_BM is not None:
            parts.append(Categories(self.categories, self.width, self.dtype, name="categories")(codes_BM))
        x_BTD = jnp.concatenate(parts, axis=1)
        x_BTD = x_BTD + self.param("bias", uniform, x_BTD.shape[1:]).astype(x_BTD.dtype)
        cls_D = self.param("cls", uniform, (self.width,)).astype(x_BTD.dtype)
        cls_BTD = jnp.broadcast_to(cls_D, (x_BTD.shape[0], 1, self.width))
        return jnp.concatenate([cls_BTD, x_BTD], axis=1)


def _checked(x: Any, categories: Sequence[int]) -> tuple[jax.Array | None, jax.Array | None]:
    """The numbers and the categories of an input, None where there are none."""
    if not isinstance(x, Mapping) or not {"numbers", "categories"} & set(x):
        given = sorted(x) if isinstance(x, Mapping) else f"an array of shape {x.shape}"
        raise UserError(f"tabular: the input is {given}; give a mapping with 'numbers' and/or 'categories'")
    numbers, codes = (None if x.get(name) is None else jnp.asarray(x[name]) for name in ("numbers", "categories"))
    if numbers is not None and numbers.ndim not in (2, 3):
        raise UserError(f"tabular: numbers of shape {numbers.shape}; give [batch, features] or [batch, features, K]")
    columns = 0 if codes is None else codes.shape[-1]
    if columns != len(categories) or (codes is not None and codes.ndim != 2):
        shape = None if codes is None else codes.shape
        raise UserError(
            f"tabular: categories of shape {shape} for {len(categories)} sizes; give [batch, {len(categories)}]"
        )
    return numbers, codes if columns else None


class FTTransformer(nn.Module):
    """FT-Transformer: `Tokenizer` - pre-norm Transformer - head of the [CLS] token::

        x <- x + attention(norm(x))                     no norm before the first attention
        x <- x + W_2 reglu(W_1 norm(x) + b_1) + b_2     reglu([a, g]) = a * relu(g)
        logits = W_head relu(norm(x[cls])) + b_head

    Submodules: ``tokens``, ``layer_0``, ``layer_1``, ..., ``norm``, ``head``.

    Args:
        num_classes: width N of the output; 1 for regression.
        categories: number of categories of each categorical feature.
        width: D. layers, heads: of the Transformer; heads divide D.
        hidden: F; None: 4/3 D.
        attention_dropout, hidden_dropout, residual_dropout: rates on attention weights, after reglu, and on both
            residual branches, used when called with ``train=True`` (needs a "dropout" key).
        remat: recompute each layer in the backward pass.
        dtype: dtype of the computation. Parameters are float32.

    Returns:
        logits [B, N].

    Raises:
        UserError: the input does not fit `categories`, or heads do not divide the width.

    Example:
        >>> model = FTTransformer(num_classes=2, categories=(3, 4), width=8, layers=2, heads=2)
        >>> row = {"numbers": jnp.ones((2, 5)), "categories": jnp.zeros((2, 2), int)}
        >>> logits, variables = jax.eval_shape(model.init_with_output, jax.random.key(0), row)
        >>> logits.shape, sorted(variables["params"])
        ((2, 2), ['head', 'layer_0', 'layer_1', 'norm', 'tokens'])

    Reference:
        Gorishniy, Rubachev, Khrulkov, Babenko (2021), "Revisiting deep learning models for tabular data",
        arXiv:2106.11959; the defaults are its default configuration (appendix E). Kernels uniform in
        ±1/sqrt(fan_in), biases zero. Deviation: F = 256 for D = 192, where the authors' code rounded down to 255.
    """

    num_classes: int
    categories: Sequence[int] = ()
    width: int = 192
    layers: int = 3
    heads: int = 8
    hidden: int | None = None
    attention_dropout: float = 0.2
    hidden_dropout: float = 0.1
    residual_dropout: float = 0.0
    remat: bool = False
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Mapping[str, jax.Array], train: bool = False) -> jax.Array:
        if self.width % self.heads:
            raise UserError(f"FTTransformer: width {self.width} is not a multiple of heads={self.heads}; change one")
        x_BTD = Tokenizer(self.categories, self.width, self.dtype, name="tokens")(x)
        layer = nn.remat(FTLayer) if self.remat else FTLayer
        for index in range(self.layers):
            x_BTD = layer(
                self.heads,
                self.hidden or self.width * 4 // 3,
                bool(index),
                (self.attention_dropout, self.hidden_dropout, self.residual_dropout),
                not train,
                self.dtype,
                name=f"layer_{index}",
            )(x_BTD)
        x_BD = nn.relu(nn.LayerNorm(epsilon=1e-5, dtype=self.dtype, name="norm")(x_BTD[:, 0]))
        return nn.Dense(self.num_classes, kernel_init=UNIFORM, dtype=self.dtype, name="head")(x_BD)


class FTLayer(nn.Module):
    """One layer of `FTTransformer`.

    Args:
        heads, hidden: see there.
        normed: a norm before the attention.
        rates: of dropout on attention weights, after reglu, on residual branches.
        deterministic: no dropout.
        dtype: dtype of the computation.

    Returns:
        array [B, T, D].
    """

    heads: int
    hidden: int
    normed: bool
    rates: tuple[float, float, float]
    deterministic: bool
    dtype: Any = None

    @nn.compact
    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        attention, hidden, residual = self.rates
        norm = {"epsilon": 1e-5, "dtype": self.dtype}
        y_BTD = nn.LayerNorm(name="attention_norm", **norm)(x_BTD) if self.normed else x_BTD
        y_BTD = nn.MultiHeadDotProductAttention(
            self.heads,
            dtype=self.dtype,
            kernel_init=UNIFORM,
            dropout_rate=attention,
            broadcast_dropout=False,
            deterministic=self.deterministic,
            name="attention",
        )(y_BTD, y_BTD)
        x_BTD = x_BTD + nn.Dropout(residual, deterministic=self.deterministic)(y_BTD)
        y_BTD = nn.LayerNorm(name="mlp_norm", **norm)(x_BTD)
        dense = {"kernel_init": UNIFORM, "dtype": self.dtype}
        a_BTF, g_BTF = jnp.split(nn.Dense(2 * self.hidden, name="mlp_in", **dense)(y_BTD), 2, axis=-1)
        h_BTF = nn.Dropout(hidden, deterministic=self.deterministic)(a_BTF * nn.relu(g_BTF))
        y_BTD = nn.Dense(x_BTD.shape[-1], name="mlp_out", **dense)(h_BTF)
        return x_BTD + nn.Dropout(residual, deterministic=self.deterministic)(y_BTD)


class TabularMLP(nn.Module):
    """Perceptron of a table: h_0 = [numbers, embeddings of the categories], h_{i+1} = dropout(relu(W_i h_i + b_i)).

    Submodules: ``categories``, ``dense_0``, ``dense_1``, ..., ``head``.

    Args:
        num_classes: width N of the output; 1 for regression.
        categories: number of categories of each categorical feature.
        features: widths of the hidden layers.
        embedding: width of a category's embedding.
        dropout: rate after each hidden layer, used when called with ``train=True`` (needs a "dropout" key).
        dtype: dtype of the computation. Parameters are float32.

    Returns:
        logits [B, N].

    Raises:
        UserError: the input does not fit `categories`.

    Example:
        >>> model = TabularMLP(num_classes=2, categories=(3, 4), features=(8,), embedding=2)
        >>> row = {"numbers": jnp.ones((2, 5)), "categories": jnp.zeros((2, 2), int)}
        >>> jax.eval_shape(model.init, jax.random.key(0), row)["params"]["dense_0"]["kernel"].shape
        (9, 8)

    Reference:
        Gorishniy, Rubachev, Khrulkov, Babenko (2021), arXiv:2106.11959, section 3.1; dense layers uniform in
        ±1/sqrt(fan_in), biases zero.
    """

    num_classes: int
    categories: Sequence[int] = ()
    features: Sequence[int] = (256, 256)
    embedding: int = 16
    dropout: float = 0.0
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Mapping[str, jax.Array], train: bool = False) -> jax.Array:
        parts = []
        numbers, codes_BM = _checked(x, self.categories)
        if numbers is not None:
            parts.append(rearrange(numbers, "B ... -> B (...)"))
        if codes_BM is not None:
            embedded_BMD = Categories(self.categories, self.embedding, self.dtype, name="categories")(codes_BM)
            parts.append(rearrange(embedded_BMD, "B M D -> B (M D)"))
        x_BF = jnp.concatenate(parts, axis=-1)
        for index, width in enumerate(self.features):
            x_BF = nn.relu(nn.Dense(width, kernel_init=UNIFORM, dtype=self.dtype, name=f"dense_{index}")(x_BF))
            x_BF = nn.Dropout(self.dropout, deterministic=not train)(x_BF)
        return nn.Dense(self.num_classes, kernel_init=UNIFORM, dtype=self.dtype, name="head")(x_BF)
