"""The Vision Transformer.

Legend of the shape suffixes: B batch, H height, W width, C channels, P side of a patch, T tokens, D width, N classes.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange

from jaxbig.errors import UserError
from jaxbig.models.transformer import Encoder

# name -> width, layers, heads
SIZES = {"Ti": (192, 12, 3), "S": (384, 12, 6), "B": (768, 12, 12), "L": (1024, 24, 16), "H": (1280, 32, 16)}


class ViT(nn.Module):
    """Vision Transformer: patches -> linear embedding + learned positions -> pre-norm encoder -> pool -> head.

    Submodules and parameters: ``patches``, ``positions`` [1, T, D], ``cls`` [1, 1, D] (for ``pool="cls"``),
    ``encoder`` and ``head``.

    Args:
        num_classes: width N of the output.
        patch: side P of a patch; it has to divide height and width.
        width: D.
        layers, heads, hidden: of the encoder; ``hidden`` None: 4 D.
        pool: "cls" (a learned token in front, whose output goes to the head) or "mean" (over all tokens).
        dropout: rate after the embedding and after each dense layer but those of query, key and value, as in the paper,
            which has none on attention weights; used when called with ``train=True`` (needs a "dropout" key).
        scan_layers, remat: see `Encoder`.
        dtype: dtype of the computation. Parameters are float32.

    Returns:
        logits [B, N].

    Raises:
        UserError: patches do not tile the images, `pool` is unknown, or heads do not divide the width.

    Example:
        >>> model = ViT(num_classes=5, patch=4, width=8, layers=1, heads=2)
        >>> logits, variables = jax.eval_shape(model.init_with_output, jax.random.key(0), jnp.ones((2, 8, 8, 1)))
        >>> variables["params"]["positions"].shape, logits.shape
        ((1, 5, 8), (2, 5))

    Reference:
        Dosovitskiy et al. (2020), "An image is worth 16x16 words", arXiv:2010.11929 (positions normal 0.02, head
        zero); mean pooling as Beyer, Zhai, Kolesnikov (2022), arXiv:2205.01580. Deviation: no layer between the
        encoder and the head in pre-training either.
    """

    num_classes: int = 10
    patch: int = 16
    width: int = 192
    layers: int = 12
    heads: int = 3
    hidden: int | None = None
    pool: str = "cls"
    dropout: float = 0.0
    scan_layers: bool = False
    remat: bool = False
    dtype: Any = None

    @nn.compact
    def __call__(self, x_BHWC: jax.Array, train: bool = False) -> jax.Array:
        if self.pool not in ("cls", "mean"):
            raise UserError(f"ViT: pool={self.pool!r}; use 'cls' or 'mean'")
        if x_BHWC.ndim != 4 or x_BHWC.shape[1] % self.patch or x_BHWC.shape[2] % self.patch:
            raise UserError(
                f"ViT: images of shape {x_BHWC.shape} are not tiled by patches of side {self.patch}; "
                "give [batch, height, width, channels] with sides that `patch` divides"
            )
        # The same as a convolution of stride P; as one product it is quick everywhere, also under a scan.
        x_BTP = rearrange(x_BHWC, "B (H i) (W j) C -> B (H W) (i j C)", i=self.patch, j=self.patch)
        x_BTD = nn.Dense(self.width, dtype=self.dtype, name="patches")(x_BTP)
        if self.pool == "cls":
            cls_1TD = self.param("cls", nn.initializers.zeros, (1, 1, self.width))
            cls_BTD = jnp.broadcast_to(cls_1TD.astype(x_BTD.dtype), (x_BTD.shape[0], 1, self.width))
            x_BTD = jnp.concatenate([cls_BTD, x_BTD], axis=1)
        positions_1TD = self.param("positions", nn.initializers.normal(0.02), (1, *x_BTD.shape[1:]))
        x_BTD = x_BTD + positions_1TD.astype(x_BTD.dtype)
        x_BTD = nn.Dropout(self.dropout, deterministic=not train)(x_BTD)
        x_BTD = Encoder(
            self.layers,
            self.heads,
            self.hidden or 4 * self.width,
            dropout=self.dropout,
            scan_layers=self.scan_layers,
            remat=self.remat,
            dtype=self.dtype,
            name="encoder",
        )(x_BTD, train)
        x_BD = x_BTD[:, 0] if self.pool == "cls" else x_BTD.mean(axis=1)
        return nn.Dense(self.num_classes, kernel_init=nn.initializers.zeros, dtype=self.dtype, name="head")(x_BD)


def vit(size: str, patch: int = 16, **options: Any) -> ViT:
    """A published Vision Transformer by its size.

    | size | width | layers | heads | parameters, patches of 16, 224 x 224, 1000 classes |
    |---|---|---|---|---|
    | Ti | 192 | 12 | 3 | 5,717,416 |
    | S | 384 | 12 | 6 | 22,050,664 |
    | B | 768 | 12 | 12 | 86,567,656 |
    | L | 1024 | 24 | 16 | 304,326,632 |
    | H | 1280 | 32 | 16 | 632,045,800 with patches of 14 |

    Args:
        size: "Ti", "S", "B", "L" or "H".
        patch: side of a patch.
        **options: fields of `ViT`: num_classes, pool, dropout, scan_layers, remat, dtype; they win over the table.

    Returns:
        the module.

    Raises:
        UserError: no such size.

    Example:
        >>> model = vit("S", patch=32, num_classes=10)
        >>> model.width, model.layers, model.heads
        (384, 12, 6)

    Reference:
        Dosovitskiy et al. (2020), arXiv:2010.11929, table 1 (B, L, H); Touvron et al. (2020), arXiv:2012.12877,
        table 1 (Ti, S).
    """
    if size not in SIZES:
        raise UserError(f"vit: size={size!r}; use one of {', '.join(SIZES)}")
    width, layers, heads = SIZES[size]
    return ViT(**{"patch": patch, "width": width, "layers": layers, "heads": heads, **options})
