"""Classification by descriptions of the classes: no image is trained on.

Legend of the shape suffixes: B images, K classes, M prompts of a class, P width of the embeddings.
"""

import jax
import jax.numpy as jnp

from jaxbig.errors import UserError
from jaxbig.models.embed import unit


def class_embeddings(prompts_KMP: jax.Array, there_KM: jax.Array | None = None) -> jax.Array:
    """A vector for each class, of what a text tower makes of its prompts: ``c = m / |m|, m = mean_i(t_i / |t_i|)``.

    Args:
        prompts_KMP: embeddings of prompts ("a photo of a cat", "a drawing of a cat"), normalised or not.
        there_KM: bool; which prompts there are, where classes have different numbers. None: all.

    Returns:
        [K, P], float32 at least.

    Raises:
        UserError: shapes do not fit.

    Example:
        >>> class_embeddings(jnp.array([[[2.0, 0.0], [0.0, 1.0]]])).round(3).tolist()
        [[0.7070000171661377, 0.7070000171661377]]

    Reference:
        Radford et al. (2021), "CLIP", arXiv:2103.00020, section 3.1.4: an ensemble over the space of embeddings.
    """
    if prompts_KMP.ndim != 3 or (there_KM is not None and there_KM.shape != prompts_KMP.shape[:2]):
        told = "" if there_KM is None else f", there {there_KM.shape}"
        raise UserError(f"class_embeddings: prompts {prompts_KMP.shape}{told}; give [K, M, P] and [K, M]")
    each_KMP = unit(prompts_KMP)
    if there_KM is not None:
        each_KMP = jnp.where(there_KM[..., None], each_KMP, 0)
    return unit(each_KMP.sum(axis=1))


def zero_shot(
    images_BP: jax.Array, classes_KP: jax.Array, scale: jax.Array | float = 1.0, bias: float = 0.0
) -> jax.Array:
    """Logits of classes: ``scale <v / |v|, c / |c|> + bias``.

    Args:
        images_BP: embeddings of images.
        classes_KP: of `class_embeddings`.
        scale, bias: numbers; of a `CLIP` ``exp(params["logit_scale"])`` and, where it has one, ``params["logit_bias"]``
            (with it, a sigmoid of the logits says of each class whether the image shows it).

    Returns:
        [B, K], float32 at least.

    Raises:
        UserError: the embeddings have different widths.

    Example:
        >>> zero_shot(jnp.array([[0.0, 5.0]]), jnp.array([[1.0, 0.0], [0.0, 1.0]]), scale=10.0).tolist()
        [[0.0, 10.0]]

    Reference:
        Radford et al. (2021), "CLIP", arXiv:2103.00020, section 3.1.2.
    """
    if images_BP.shape[-1] != classes_KP.shape[-1]:
        raise UserError(
            f"zero_shot: images {images_BP.shape} and classes {classes_KP.shape}; their last axes are one width"
        )
    return unit(images_BP) @ unit(classes_KP).T * scale + bias
