"""Data: sources, and batches in a reproducible order."""

from jaxbig.data.array import k_shot, order, select, size_of, split_fraction
from jaxbig.data.augment import Draw, compose
from jaxbig.data.digits import load_digits
from jaxbig.data.loader import Loader, Position
from jaxbig.data.prefetch import Prefetch

__all__ = [
    "Draw",
    "Loader",
    "Position",
    "Prefetch",
    "compose",
    "k_shot",
    "load_digits",
    "order",
    "select",
    "size_of",
    "split_fraction",
]
