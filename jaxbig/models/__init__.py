"""Models: plain flax.linen modules that know no technique; the last layer of each is called ``head``."""

from jaxbig.models.bert import Bert
from jaxbig.models.cache import Cache, empty_cache
from jaxbig.models.cnn import CNN
from jaxbig.models.crnn import CRNN
from jaxbig.models.embed import sentence_embeddings
from jaxbig.models.encoding import piecewise_linear, quantile_edges
from jaxbig.models.families import FAMILIES, family_of
from jaxbig.models.gpt2 import GPT2
from jaxbig.models.head import replace_head
from jaxbig.models.llama import Llama
from jaxbig.models.logmel import frame_count, log_mel, mel_filters
from jaxbig.models.mlp import MLP
from jaxbig.models.patches import PatchConv
from jaxbig.models.pool import max_pool, max_pool_overlapping
from jaxbig.models.published_vit import PublishedViT
from jaxbig.models.reader import Reader
from jaxbig.models.resnet import ResNet, resnet
from jaxbig.models.rnn import RNN, Recurrent, RecurrentStack
from jaxbig.models.t5 import T5
from jaxbig.models.tabular import FTTransformer, TabularMLP
from jaxbig.models.transformer import Encoder, EncoderLayer, stack_layers, unstack_layers
from jaxbig.models.vit import ViT, vit

__all__ = [
    "CNN",
    "CRNN",
    "FAMILIES",
    "GPT2",
    "MLP",
    "RNN",
    "T5",
    "Bert",
    "Cache",
    "Encoder",
    "EncoderLayer",
    "FTTransformer",
    "Llama",
    "PatchConv",
    "PublishedViT",
    "Reader",
    "Recurrent",
    "RecurrentStack",
    "ResNet",
    "TabularMLP",
    "ViT",
    "empty_cache",
    "family_of",
    "frame_count",
    "log_mel",
    "max_pool",
    "max_pool_overlapping",
    "mel_filters",
    "piecewise_linear",
    "quantile_edges",
    "replace_head",
    "resnet",
    "sentence_embeddings",
    "stack_layers",
    "unstack_layers",
    "vit",
]
