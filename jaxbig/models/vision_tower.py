"""The vision tower of CLIP and SigLIP.

Legend of the shape suffixes: B batch, H height, W width, C channels, N patches, T tokens, D width, F width of the
hidden layer, K width of a head, P width of the embeddings that two towers share, L layers.
"""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange

from jaxbig.errors import UserError
from jaxbig.models.attention import attention
from jaxbig.models.feedforward import FeedForward
from jaxbig.models.interpolate import resized_positions
from jaxbig.models.pre_norm import PreNormLayer
from jaxbig.models.self_attention import SelfAttention
from jaxbig.models.stack import recomputed, run_layers

POOLS = ("cls", "attention", None)
TASKS = ("features", "projection")


class AttentionPool(nn.Module):
    """``y + mlp(norm(y))``, where y is what one learned query, the probe, attends to.

    Parameters: ``probe`` [1, 1, D], ``qkv`` with a kernel [D, 3 D] as in the files, ``out``, ``norm``, ``mlp``.

    Args:
        heads: of which D is a multiple.
        mlp, norm: ``name -> module``.
        std: of the initialised kernels and probe.
        dtype: of the computation.

    Called with states [B, T, D].

    Returns:
        array [B, D].

    Reference:
        Lee et al. (2018), "Set Transformer", arXiv:1810.00825; Zhai et al. (2021), "Scaling vision Transformers",
        arXiv:2106.04560. The product that makes keys and values makes queries too, of which only the probe's counts.
    """

    heads: int
    mlp: Any
    norm: Any
    std: float = 0.02
    dtype: Any = None

    @nn.compact
    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        batch, _, width = x_BTD.shape
        init = nn.initializers.normal(self.std)
        probe = self.param("probe", init, (1, 1, width)).astype(x_BTD.dtype)
        x_BTD = jnp.concatenate([jnp.broadcast_to(probe, (batch, 1, width)), x_BTD], axis=1)
        dense = partial(nn.Dense, dtype=self.dtype, kernel_init=init)
        qkv_BTC = dense(3 * width, name="qkv")(x_BTD)
        q, k, v = (rearrange(part, "B T (H K) -> B T H K", H=self.heads) for part in jnp.split(qkv_BTC, 3, axis=-1))
        y_BTHK = attention(q[:, :1], k[:, 1:], v[:, 1:])
        y_B1D = dense(width, name="out")(rearrange(y_BTHK, "B T H K -> B T (H K)"))
        return (y_B1D + self.mlp(name="mlp")(self.norm(name="norm")(y_B1D)))[:, 0]


class VisionTower(nn.Module):
    """Patches + learned positions -> L pre-norm layers -> what stands for the image -> projection.

    With ``pool="cls"`` (CLIP) there is a learned token in front, a norm before the layers, no bias on the patches, and
    the last norm is of that token alone; else (SigLIP) the last norm is of all tokens.

    Submodules and parameters: ``patches``, ``positions`` [T, D], ``layer_0`` ... (scanned: ``layers``, see `Encoder`),
    ``norm``, with "cls" ``cls`` [D] and ``front_norm``, with "attention" ``pool``, and ``projection`` for that task.

    Args:
        image: side of the images that the positions are for; other sizes interpolate them, see `bicubic`.
        patch: side of a patch.
        width, layers, heads, hidden: D, L, heads (of which D is a multiple) and F.
        channels: C.
        activation: of the hidden layers.
        eps: of the norms.
        pool: what stands for the image: "cls", the token in front; "attention", see `AttentionPool`; None: nothing.
        projection: P, for the task of that name.
        task: "features" or "projection".
        attention_dropout: rate on the attention's shares; used with ``train=True`` (needs a "dropout" key).
        std: of the initialised kernels and tokens, but the projection's, whose is D ** -0.5.
        scan_layers, remat: see `Encoder`.
        dtype: of the computation; None: that of parameters. Statistics of norms and softmaxes are float32 at least.

    Called as ``apply({"params": params}, x_BHWC, train=False)``. Rows and columns that fill no patch are not looked at,
    as in the files' own models (SigLIP so400m cuts 384 pixels into 27 patches of 14).

    Returns:
        "projection": embeddings [B, P], not normalised. "features": a pair of the last hidden states [B, T, D] (with
        "cls" before the last norm, the token in front first) and what stands for the image [B, D]; with ``pool=None``
        the states alone.

    Raises:
        UserError: images that hold no patch or have another number of channels, heads that do not divide the width, an
            unknown `pool` or `task`, or the task "projection" without its width or without a pool.

    Example:
        >>> tower = VisionTower(image=8, patch=4, width=8, layers=2, heads=2, hidden=16, pool="attention")
        >>> params = tower.init(jax.random.key(0), jnp.ones((1, 8, 8, 3)))["params"]
        >>> states, pooled = tower.apply({"params": params}, jnp.ones((2, 8, 12, 3)))
        >>> params["positions"].shape, states.shape, pooled.shape
        ((4, 8), (2, 6, 8), (2, 8))

    Reference:
        Radford et al. (2021), "CLIP", arXiv:2103.00020; Zhai et al. (2023), "SigLIP", arXiv:2303.15343. Deviations:
        images of another size are taken without being asked; kernels begin with one standard deviation.
    """

    image: int
    patch: int
    width: int
    layers: int
    heads: int
    hidden: int
    channels: int = 3
    activation: str = "quick_gelu"
    eps: float = 1e-5
    pool: str | None = "cls"
    projection: int | None = None
    task: str = "features"
    attention_dropout: float = 0.0
    std: float = 0.02
    scan_layers: bool = False
    remat: bool = False
    dtype: Any = None

    @nn.compact
    def __call__(self, x_BHWC: jax.Array, train: bool = False) -> Any:
        self._check(x_BHWC.shape)
        x_BTD = self._embedded(x_BHWC)
        if self.pool == "cls":
            x_BTD = self._norm(name="front_norm")(x_BTD)
        x_BTD = self._stack(x_BTD, train)
        x_BD = None
        if self.pool == "cls":
            x_BD = self._norm(name="norm")(x_BTD[:, 0])
        else:
            x_BTD = self._norm(name="norm")(x_BTD)
        if self.pool == "attention":
            x_BD = AttentionPool(self.heads, self._mlp, self._norm, self.std, self.dtype, name="pool")(x_BTD)
        if self.task == "projection" and self.projection is not None:
            init = nn.initializers.normal(self.width**-0.5)
            dense = nn.Dense(self.projection, False, dtype=self.dtype, kernel_init=init, name="projection")
            return dense(x_BD)
        return x_BTD if self.pool is None else (x_BTD, x_BD)

    def _check(self, shape: tuple[int, ...]) -> None:
        if len(shape) != 4 or min(shape[1:3]) < self.patch:
            raise UserError(
                f"vision: images of shape {shape} hold no patch of side {self.patch}; give [batch, height, width, "
                "channels]"
            )
        if shape[-1] != self.channels:
            raise UserError(f"vision: images have {shape[-1]} channels, the model {self.channels}; channels come last")
        if self.width % self.heads:
            raise UserError(f"vision: width {self.width} is not a multiple of heads={self.heads}; change one of them")
        if self.pool not in POOLS or self.task not in TASKS:
            told = f"{', '.join(map(str, POOLS))}, and {', '.join(TASKS)}"
            raise UserError(f"vision: pool={self.pool!r} and task={self.task!r}; there are {told}")
        if self.task == "projection" and (self.projection is None or self.pool is None):
            raise UserError("vision: task='projection' needs the width of the embeddings, projection=, and a pool")

    @property
    def _norm(self) -> partial[nn.LayerNorm]:
        return partial(nn.LayerNorm, self.eps, dtype=self.dtype, use_fast_variance=False)

    @property
    def _mlp(self) -> partial[FeedForward]:
        return partial(FeedForward, self.hidden, self.activation, self.std, dtype=self.dtype)

    def _embedded(self, x_BHWC: jax.Array) -> jax.Array:
        init, sides, cls = nn.initializers.normal(self.std), (self.patch, self.patch), self.pool == "cls"
        cut = nn.Conv(
            self.width, sides, sides, "VALID", use_bias=not cls, dtype=self.dtype, kernel_init=init, name="patches"
        )  # fmt: skip
        grid_BHWD = cut(x_BHWC)
        rows, columns = grid_BHWD.shape[1:3]
        x_BTD = rearrange(grid_BHWD, "B H W D -> B (H W) D")
        if cls:
            token_D = self.param("cls", init, (self.width,)).astype(x_BTD.dtype)
            x_BTD = jnp.concatenate([jnp.broadcast_to(token_D, (len(x_BTD), 1, self.width)), x_BTD], axis=1)
        side = self.image // self.patch
        positions_TD = self.param("positions", init, (side * side + cls, self.width))
        return x_BTD + resized_positions(positions_TD, side, rows, columns).astype(x_BTD.dtype)

    def _stack(self, x_BTD: jax.Array, train: bool) -> jax.Array:
        rate = self.attention_dropout if train else 0.0
        attend = partial(SelfAttention, self.heads, True, rate, self.std, self.dtype)
        made = partial(recomputed(PreNormLayer, self.remat, self.scan_layers), attend, self._mlp, self._norm)
        return run_layers(made, self.layers, self.scan_layers, x_BTD)
