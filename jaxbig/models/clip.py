"""CLIP and SigLIP: texts and images in one space; `jaxbig.models.clip_families` tells which files they are.

Legend of the shape suffixes: B images, S texts, T tokens, H height, W width, C channels, P width of the embeddings.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxbig.errors import UserError
from jaxbig.models.embed import unit
from jaxbig.models.text_tower import TextTower
from jaxbig.models.vision_tower import VisionTower


class CLIP(nn.Module):
    """``exp(t) <v_i / |v_i|, u_j / |u_j|> + b`` for images i and texts j, with v and u what two towers make of them.

    Submodules and parameters: ``text``, ``vision``, ``logit_scale`` t and, where there is one, ``logit_bias`` b.

    Args:
        text, vision: the towers, whose embeddings have one width P.
        scale: t at initialisation.
        bias: b at initialisation; None: there is none (CLIP).

    Called as ``apply({"params": params}, tokens_ST, x_BHWC, positions=None, segments=None, train=False)``, see the
    towers; or of one tower alone ``apply(..., tokens_ST, method="encode_text")`` and ``apply(..., x_BHWC,
    method="encode_image")``.

    Returns:
        logits [B, S], image by text, float32 at least; the methods: embeddings [S, P] and [B, P], not normalised.

    Raises:
        UserError: widths that differ, or a vision tower without a pool; and what the towers raise.

    Example:
        >>> text = TextTower(11, 8, 1, 2, 16, length=6, eos=10, projection=5, task="projection")
        >>> vision = VisionTower(8, 4, 12, 1, 3, 16, projection=5, task="projection")
        >>> model, tokens, images = CLIP(text, vision), jnp.array([[1, 2, 10]]), jnp.ones((2, 8, 8, 3))
        >>> params = model.init(jax.random.key(0), tokens, images)["params"]
        >>> model.apply({"params": params}, tokens, images).shape
        (2, 1)
        >>> model.apply({"params": params}, images, method="encode_image").shape
        (2, 5)

    Reference:
        Radford et al. (2021), "Learning transferable visual models from natural language supervision",
        arXiv:2103.00020: t begins at ln(1 / 0.07); Zhai et al. (2023), "Sigmoid loss for language image pre-training",
        arXiv:2303.15343: t at ln 10 and b at -10, which transformers begins at 0. Deviations: CLIP's limit of t at
        ln 100 is the trainer's (clip the parameter after each step); an embedding of length 0 stays 0.
    """

    text: TextTower
    vision: VisionTower
    scale: float = 2.6592
    bias: float | None = None

    @nn.compact
    def __call__(
        self, tokens_ST: jax.Array, x_BHWC: jax.Array, positions: Any = None, segments: Any = None, train: bool = False
    ) -> jax.Array:
        text_SP = self.encode_text(tokens_ST, positions, segments, train)
        image_BP = self.encode_image(x_BHWC, train)
        if image_BP.shape[1] != text_SP.shape[1]:
            raise UserError(
                f"clip: embeddings of images have width {image_BP.shape[1]}, those of texts {text_SP.shape[1]}; "
                "give the towers one width"
            )
        wide = jnp.promote_types(image_BP.dtype, jnp.float32)
        shape = () if self.bias is None else (1,)  # as in the files
        scale = jnp.exp(self.param("logit_scale", nn.initializers.constant(self.scale), shape).astype(wide))
        logits_BS = unit(image_BP) @ unit(text_SP).T * scale
        if self.bias is None:
            return logits_BS
        return logits_BS + self.param("logit_bias", nn.initializers.constant(self.bias), shape).astype(wide)

    def encode_text(
        self, tokens_ST: jax.Array, positions: Any = None, segments: Any = None, train: bool = False
    ) -> jax.Array:
        """Embeddings of texts [S, P], not normalised."""
        found = self.text(tokens_ST, positions, segments, train)
        return found[1] if self.text.task == "features" else found

    def encode_image(self, x_BHWC: jax.Array, train: bool = False) -> jax.Array:
        """Embeddings of images [B, P], not normalised."""
        if self.vision.pool is None:
            raise UserError("clip: nothing stands for an image, since the vision tower has no pool; give it one")
        found = self.vision(x_BHWC, train)
        return found[1] if self.vision.task == "features" else found
