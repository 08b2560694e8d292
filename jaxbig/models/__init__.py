"""Models: plain flax.linen modules that know no technique; the last layer of each is called ``head``."""

from jaxbig.models.bert import Bert
from jaxbig.models.cache import Cache, empty_cache
from jaxbig.models.clip import CLIP
from jaxbig.models.cnn import CNN
from jaxbig.models.crnn import CRNN
from jaxbig.models.embed import sentence_embeddings
from jaxbig.models.encoding import piecewise_linear, quantile_edges
from jaxbig.models.families import FAMILIES, family_of
from jaxbig.models.gemma import Gemma
from jaxbig.models.gpt2 import GPT2
from jaxbig.models.head import replace_head
from jaxbig.models.llama import Llama
from jaxbig.models.logmel import frame_count, log_mel, mel_filters, whisper_log_mel
from jaxbig.models.mlp import MLP
from jaxbig.models.patches import PatchConv
from jaxbig.models.pool import max_pool, max_pool_overlapping
from jaxbig.models.published_vit import PublishedViT
from jaxbig.models.reader import Reader
from jaxbig.models.resnet import ResNet, resnet
from jaxbig.models.rnn import RNN, Recurrent, RecurrentStack
from jaxbig.models.t5 import T5
from jaxbig.models.tabular import FTTransformer, TabularMLP
from jaxbig.models.text_tower import TextTower
from jaxbig.models.transformer import Encoder, EncoderLayer, stack_layers, unstack_layers
from jaxbig.models.vision_tower import VisionTower
from jaxbig.models.vit import ViT, vit
from jaxbig.models.whisper import Whisper
from jaxbig.models.zero_shot import class_embeddings, zero_shot

__all__ = [
    "CLIP",
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
    "Gemma",
    "Llama",
    "PatchConv",
    "PublishedViT",
    "Reader",
    "Recurrent",
    "RecurrentStack",
    "ResNet",
    "TabularMLP",
    "TextTower",
    "ViT",
    "VisionTower",
    "Whisper",
    "class_embeddings",
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
    "whisper_log_mel",
    "zero_shot",
]
