"""The text tower of CLIP and SigLIP.

Legend of the shape suffixes: B batch, T tokens, D width, F width of the hidden layer, V vocabulary, P width of the
embeddings that two towers share, L layers.
"""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxbig.errors import UserError
from jaxbig.models.feedforward import FeedForward
from jaxbig.models.pre_norm import PreNormLayer
from jaxbig.models.self_attention import SelfAttention, segment_mask
from jaxbig.models.stack import recomputed, run_layers

POOLS = ("eos", "highest", "last")
TASKS = ("features", "projection")


class TextTower(nn.Module):
    """Embedding + learned positions -> L pre-norm layers -> norm -> one token of each text -> projection.

    Submodules and parameters: ``embed``, ``positions``, ``layer_0`` ... (scanned: ``layers``, see `Encoder`), ``norm``
    and, where there is one, ``projection``.

    Args:
        vocabulary, width, layers, heads, hidden: V, D, L, heads (of which D is a multiple) and F.
        length: number of learned positions.
        activation: of the hidden layers.
        eps: of the norms.
        causal: a token sees none after it (CLIP).
        pool: the token that stands for its text: "eos", the first whose id is `eos` (the first of all where there is
            none); "highest", the one of the highest id (CLIP's first files); "last", padding or not (SigLIP).
        eos: id of the token that ends a text, for "eos".
        projection: P; None: there is no projection.
        bias: of the projection (SigLIP).
        task: "features" or "projection".
        attention_dropout: rate on the attention's shares; used with ``train=True`` (needs a "dropout" key).
        std: of the initialised kernels and tables, but the projection's, whose is D ** -0.5.
        scan_layers, remat: see `Encoder`.
        dtype: of the computation; None: that of parameters. Statistics of norms and softmaxes are float32 at least.

    Called as ``apply({"params": params}, tokens_BT, positions=None, segments=None, train=False)``: `positions` int
    [B, T], by default 0 ... T - 1; `segments` int or bool [B, T]: an attention mask of zeros and ones, where 0 is
    padding, which nobody sees. A row is one text.

    Returns:
        "projection": embeddings [B, P], not normalised. "features": a pair of the last hidden states [B, T, D] and what
        stands for the text, [B, D] before a projection without a bias (CLIP), [B, P] after one with (SigLIP).

    Raises:
        UserError: more tokens than positions, heads that do not divide the width, an unknown `pool` or `task`, "eos"
            without its id, or the task "projection" without one.

    Example:
        >>> tower = TextTower(11, 8, 2, 2, 16, length=6, eos=10, projection=5, task="projection")
        >>> tokens = jnp.array([[1, 2, 10, 0]])
        >>> found, variables = jax.eval_shape(tower.init_with_output, jax.random.key(0), tokens)
        >>> variables["params"]["layer_1"]["attention"]["query"]["kernel"].shape, found.shape
        ((8, 8), (1, 5))

    Reference:
        Radford et al. (2021), "CLIP", arXiv:2103.00020; Zhai et al. (2023), "SigLIP", arXiv:2303.15343. Deviation:
        kernels begin with one standard deviation, not with CLIP's that fall with width and depth.
    """

    vocabulary: int
    width: int
    layers: int
    heads: int
    hidden: int
    length: int
    activation: str = "quick_gelu"
    eps: float = 1e-5
    causal: bool = True
    pool: str = "eos"
    eos: int | None = None
    projection: int | None = None
    bias: bool = False
    task: str = "features"
    attention_dropout: float = 0.0
    std: float = 0.02
    scan_layers: bool = False
    remat: bool = False
    dtype: Any = None

    @nn.compact
    def __call__(self, tokens_BT: jax.Array, positions: Any = None, segments: Any = None, train: bool = False) -> Any:
        self._check(tokens_BT.shape[1] if positions is None else 0)
        tokens_BT, init = jnp.asarray(tokens_BT), nn.initializers.normal(self.std)
        table = partial(nn.Embed, features=self.width, dtype=self.dtype, embedding_init=init)
        positions = jnp.arange(tokens_BT.shape[1]) if positions is None else positions
        learned = table(self.length, name="positions")(jnp.broadcast_to(positions, tokens_BT.shape))
        x_BTD = self._stack(table(self.vocabulary, name="embed")(tokens_BT) + learned, segments, train)
        x_BTD = self._norm(name="norm")(x_BTD)
        x_BD = jnp.take_along_axis(x_BTD, self._place(tokens_BT)[:, None, None], axis=1)[:, 0]
        if self.projection is not None and (self.bias or self.task == "projection"):
            init = nn.initializers.normal(self.width**-0.5)
            dense = nn.Dense(self.projection, self.bias, dtype=self.dtype, kernel_init=init, name="projection")
            x_BD = dense(x_BD)
        return (x_BTD, x_BD) if self.task == "features" else x_BD

    def _check(self, tokens: int) -> None:
        if self.width % self.heads:
            raise UserError(f"text: width {self.width} is not a multiple of heads={self.heads}; change one of them")
        if tokens > self.length:
            raise UserError(f"text: {tokens} tokens, and {self.length} positions; use shorter texts")
        if self.pool not in POOLS or self.task not in TASKS:
            told = f"{', '.join(POOLS)}, and {', '.join(TASKS)}"
            raise UserError(f"text: pool={self.pool!r} and task={self.task!r}; there are {told}")
        if self.pool == "eos" and self.eos is None:
            raise UserError("text: pool='eos' needs the id of the token that ends a text; give eos=")
        if self.task == "projection" and self.projection is None:
            raise UserError("text: task='projection' needs the width of the embeddings; give projection=")

    @property
    def _norm(self) -> partial[nn.LayerNorm]:
        return partial(nn.LayerNorm, self.eps, dtype=self.dtype, use_fast_variance=False)

    def _stack(self, x_BTD: jax.Array, segments: Any, train: bool) -> jax.Array:
        shape, seen_B1TT = x_BTD.shape[:2], None
        if self.causal or segments is not None:
            segments = jnp.ones(shape, bool) if segments is None else jnp.broadcast_to(segments, shape)
            seen_B1TT = segment_mask(segments, self.causal)
        rate = self.attention_dropout if train else 0.0
        attend = partial(SelfAttention, self.heads, True, rate, self.std, self.dtype)
        mlp = partial(FeedForward, self.hidden, self.activation, self.std, dtype=self.dtype)
        made = partial(recomputed(PreNormLayer, self.remat, self.scan_layers), attend, mlp, self._norm)
        return run_layers(made, self.layers, self.scan_layers, x_BTD, seen_B1TT)

    def _place(self, tokens_BT: jax.Array) -> jax.Array:
        """Where the token stands that stands for its text: int [B]."""
        if self.pool == "last":
            return jnp.full(tokens_BT.shape[0], tokens_BT.shape[1] - 1)
        return (tokens_BT if self.pool == "highest" else tokens_BT == self.eos).argmax(axis=1)
