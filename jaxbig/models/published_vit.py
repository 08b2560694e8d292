"""Vision Transformers as they are published; `jaxbig.models.vit_families` tells which they are.

Legend of the shape suffixes: B batch, H height, W width, C channels, P side of a patch, N patches, T tokens, D width, F
width of the hidden layer, K classes, L layers.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange

from jaxbig.errors import UserError
from jaxbig.models.feedforward import FeedForward
from jaxbig.models.interpolate import resized_positions
from jaxbig.models.pre_norm import PreNormLayer
from jaxbig.models.self_attention import SelfAttention
from jaxbig.models.stack import recomputed, run_layers

TASKS = ("image_classification", "features")
READS = ("cls", "both", "mean")


class SwiGLU(nn.Module):
    """``W_down (silu(g) * h) + b_down`` with (g, h) the halves of ``W_up x + b_up``.

    Args:
        hidden: F.
        std: of the initialised kernels.
        dtype: of the computation.

    Returns:
        array [B, T, D].
    """

    hidden: int
    std: float = 0.02
    dtype: Any = None

    @nn.compact
    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        dense = partial(nn.Dense, dtype=self.dtype, kernel_init=nn.initializers.normal(self.std))
        gate_BTF, h_BTF = jnp.split(dense(2 * self.hidden, name="up")(x_BTD), 2, axis=-1)
        return dense(x_BTD.shape[-1], name="down")(nn.silu(gate_BTF) * h_BTF)


class PublishedViT(nn.Module):
    """Patches -> convolution + learned positions -> L pre-norm layers -> norm -> head.

    Submodules and parameters: ``patches``, ``cls`` [1, 1, D], ``teacher`` [1, 1, D] and ``mask`` [1, D] where there are
    such tokens, ``positions`` [1, T, D], ``layer_0`` ... (scanned: ``layers``, see `Encoder`), ``norm``, ``head`` and,
    where a head reads the teacher's token, ``teacher_head``.

    Args:
        image: side of the images that the positions are for; other sizes interpolate them, see `bicubic`.
        patch: P.
        channels: C.
        width, layers, heads, hidden: D, L, heads (of which D is a multiple) and F.
        activation: of the hidden layers.
        swiglu: hidden layers are `SwiGLU`s.
        eps: of the norms.
        bias: of the products that make queries, keys and values.
        scale: see `PreNormLayer`.
        teacher: a second token in front, DeiT's for distillation.
        mask_token: a vector that stands for hidden patches.
        reads: what the head reads: "cls"; "both", the mean of a head of the first and one of the teacher's token;
            "mean", the first token and the mean of the patches, joined.
        task: "image_classification" or "features".
        num_classes: K.
        attention_dropout, dropout, layer_dropout: rates on the attention's shares, on the embedding, and on what each
            half of a layer adds; used with ``train=True`` (need a "dropout" key).
        std: of the initialised kernels and tokens.
        scan_layers, remat: see `Encoder`.
        dtype: of the computation; None: that of parameters. Statistics of norms and softmaxes are float32 at least.

    Called as ``apply({"params": params}, x_BHWC, train=False, masked=None)``; `masked` bool [B, N]: patches that are
    hidden.

    Returns:
        logits [B, K], float32 at least; for "features" the last hidden states [B, T, D], tokens in front first.

    Raises:
        UserError: patches do not tile the images, another number of channels, heads do not divide the width, `masked`
            without a mask token, "both" without a teacher's, or an unknown `task` or `reads`.

    Example:
        >>> model = PublishedViT(image=8, patch=4, width=8, layers=2, heads=2, hidden=16, num_classes=5)
        >>> logits, variables = jax.eval_shape(model.init_with_output, jax.random.key(0), jnp.ones((2, 8, 12, 3)))
        >>> variables["params"]["positions"].shape, logits.shape
        ((1, 5, 8), (2, 5))

    Reference:
        Dosovitskiy et al. (2020), arXiv:2010.11929; Touvron et al. (2020), "DeiT", arXiv:2012.12877; Oquab et al.
        (2023), "DINOv2", arXiv:2304.07193. Deviations from transformers: images of another size are taken without being
        asked (its ViT wants ``interpolate_pos_encoding=True``), but rows and columns that fill no patch are an error;
        "features" has no pooler; there is no stochastic depth (``drop_path_rate``).
    """

    image: int
    patch: int
    width: int
    layers: int
    heads: int
    hidden: int
    channels: int = 3
    activation: str = "gelu"
    swiglu: bool = False
    eps: float = 1e-12
    bias: bool = True
    scale: float | None = None
    teacher: bool = False
    mask_token: bool = False
    reads: str = "cls"
    task: str = "image_classification"
    num_classes: int = 2
    attention_dropout: float = 0.0
    dropout: float = 0.0
    layer_dropout: float = 0.0
    std: float = 0.02
    scan_layers: bool = False
    remat: bool = False
    dtype: Any = None

    @nn.compact
    def __call__(self, x_BHWC: jax.Array, train: bool = False, masked: Any = None) -> jax.Array:
        if x_BHWC.ndim != 4 or x_BHWC.shape[1] % self.patch or x_BHWC.shape[2] % self.patch:
            raise UserError(
                f"vit: images of shape {x_BHWC.shape} are not tiled by patches of side {self.patch}; "
                "give [batch, height, width, channels] with sides that `patch` divides"
            )
        if self.width % self.heads:
            raise UserError(f"vit: width {self.width} is not a multiple of heads={self.heads}; change one of them")
        if x_BHWC.shape[-1] != self.channels:
            raise UserError(
                f"vit: images have {x_BHWC.shape[-1]} channels, the model {self.channels}; channels come last"
            )
        if self.task not in TASKS or self.reads not in READS:
            told = f"{', '.join(TASKS)}, and {', '.join(READS)}"
            raise UserError(f"vit: task={self.task!r} and reads={self.reads!r}; there are {told}")
        if self.reads == "both" and not self.teacher:
            raise UserError("vit: reads='both' reads a teacher's token; set teacher=True")
        x_BTD = self._embedded(x_BHWC, masked)
        x_BTD = nn.Dropout(self.dropout, deterministic=not train)(x_BTD)
        x_BTD = self._norm(name="norm")(self._stack(x_BTD, train))
        return x_BTD if self.task == "features" else self._head(x_BTD)

    @property
    def _norm(self) -> Callable[..., nn.LayerNorm]:
        return partial(nn.LayerNorm, self.eps, dtype=self.dtype, use_fast_variance=False)

    def _embedded(self, x_BHWC: jax.Array, masked: Any) -> jax.Array:
        init, sides = nn.initializers.normal(self.std), (self.patch, self.patch)
        cut = nn.Conv(self.width, sides, sides, "VALID", dtype=self.dtype, kernel_init=init, name="patches")
        grid_BHWD = cut(x_BHWC)
        rows, columns = grid_BHWD.shape[1:3]
        x_BND = rearrange(grid_BHWD, "B H W D -> B (H W) D")
        if self.mask_token:
            hidden_1D = self.param("mask", nn.initializers.zeros, (1, self.width)).astype(x_BND.dtype)
            x_BND = x_BND if masked is None else jnp.where(jnp.asarray(masked)[..., None], hidden_1D, x_BND)
        elif masked is not None:
            raise UserError("vit: `masked` is given, and this model has no mask token")
        front = [self.param(name, init, (1, 1, self.width)) for name in ("cls", "teacher")[: 1 + self.teacher]]
        side = self.image // self.patch
        positions_1TD = self.param("positions", init, (1, len(front) + side * side, self.width))
        positions_TD = resized_positions(positions_1TD[0], side, rows, columns)
        tokens = [jnp.broadcast_to(token.astype(x_BND.dtype), (x_BND.shape[0], 1, self.width)) for token in front]
        return jnp.concatenate([*tokens, x_BND], axis=1) + positions_TD.astype(x_BND.dtype)

    def _stack(self, x_BTD: jax.Array, train: bool) -> jax.Array:
        rates = (self.attention_dropout, self.layer_dropout) if train else (0.0, 0.0)
        attend = partial(SelfAttention, self.heads, self.bias, rates[0], self.std, self.dtype)
        mlp = partial(FeedForward, self.hidden, self.activation, self.std, dtype=self.dtype)
        if self.swiglu:
            mlp = partial(SwiGLU, self.hidden, self.std, self.dtype)
        layer = recomputed(PreNormLayer, self.remat, self.scan_layers)
        made = partial(layer, attend, mlp, self._norm, self.scale, rates[1])
        return run_layers(made, self.layers, self.scan_layers, x_BTD)

    def _head(self, x_BTD: jax.Array) -> jax.Array:
        init = nn.initializers.normal(self.std)
        dense = partial(nn.Dense, self.num_classes, dtype=self.dtype, kernel_init=init)
        x_BD = x_BTD[:, 0]
        if self.reads == "mean":
            x_BD = jnp.concatenate([x_BD, x_BTD[:, 1 + self.teacher :].mean(axis=1)], axis=-1)
        logits = dense(name="head")(x_BD)
        if self.reads == "both":
            logits = (logits + dense(name="teacher_head")(x_BTD[:, 1])) / 2
        return logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
