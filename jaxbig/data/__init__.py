"""Data: sources, readers of the public formats, splits, statistics, and batches in a reproducible order."""

from jaxbig.data.array import k_shot, order, select, size_of, split_fraction
from jaxbig.data.audio import Clips, WavFolder, read_wav
from jaxbig.data.augment import Draw, compose
from jaxbig.data.bucket import BucketLoader, Sequences
from jaxbig.data.cifar import cifar
from jaxbig.data.conversations import Preference, few_shot, read_conversations, read_preferences
from jaxbig.data.credit import card_default, german_credit
from jaxbig.data.digits import load_digits
from jaxbig.data.file import read_text
from jaxbig.data.idx import fashion_mnist, mnist, read_idx
from jaxbig.data.image import ImageFolder, PackedImages
from jaxbig.data.loader import Loader, Position
from jaxbig.data.npz import medmnist, read_npz
from jaxbig.data.packing import Example, first_fit, fitted, one_a_row, packed
from jaxbig.data.prefetch import Prefetch
from jaxbig.data.source import ArraySource, Mapped, Source, Subset, as_source, fingerprint
from jaxbig.data.speech import emodb, fsdd
from jaxbig.data.split import group_k_fold, k_fold, split_groups
from jaxbig.data.statistics import class_weights, moments, normalise
from jaxbig.data.table import features, read_table
from jaxbig.data.text import columns, read_aligned, read_lines, read_records
from jaxbig.data.texts import Texts
from jaxbig.data.tfds import tfds_source
from jaxbig.data.windows import windows

__all__ = [
    "ArraySource",
    "BucketLoader",
    "Clips",
    "Draw",
    "Example",
    "ImageFolder",
    "Loader",
    "Mapped",
    "PackedImages",
    "Position",
    "Preference",
    "Prefetch",
    "Sequences",
    "Source",
    "Subset",
    "Texts",
    "WavFolder",
    "as_source",
    "card_default",
    "cifar",
    "class_weights",
    "columns",
    "compose",
    "emodb",
    "fashion_mnist",
    "features",
    "few_shot",
    "fingerprint",
    "first_fit",
    "fitted",
    "fsdd",
    "german_credit",
    "group_k_fold",
    "k_fold",
    "k_shot",
    "load_digits",
    "medmnist",
    "mnist",
    "moments",
    "normalise",
    "one_a_row",
    "order",
    "packed",
    "read_aligned",
    "read_conversations",
    "read_idx",
    "read_lines",
    "read_npz",
    "read_preferences",
    "read_records",
    "read_table",
    "read_text",
    "read_wav",
    "select",
    "size_of",
    "split_fraction",
    "split_groups",
    "tfds_source",
    "windows",
]
