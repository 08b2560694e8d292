"""Data: sources, and batches in a reproducible order."""

from jaxbig.data.array import Loader, Position, k_shot, order, select, size_of, split_fraction
from jaxbig.data.digits import load_digits
from jaxbig.data.source import ArraySource, Mapped, Source, Subset, as_source, fingerprint

__all__ = [
    "ArraySource",
    "Loader",
    "Mapped",
    "Position",
    "Source",
    "Subset",
    "as_source",
    "fingerprint",
    "k_shot",
    "load_digits",
    "order",
    "select",
    "size_of",
    "split_fraction",
]
