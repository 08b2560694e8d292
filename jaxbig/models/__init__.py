"""Models: plain flax.linen modules that know no technique; the last layer of each is called ``head``."""

from jaxbig.models.cnn import CNN, max_pool
from jaxbig.models.head import replace_head
from jaxbig.models.mlp import MLP
from jaxbig.models.transformer import Encoder, EncoderLayer, stack_layers, unstack_layers
from jaxbig.models.vit import ViT

__all__ = [
    "CNN",
    "MLP",
    "Encoder",
    "EncoderLayer",
    "ViT",
    "max_pool",
    "replace_head",
    "stack_layers",
    "unstack_layers",
]
