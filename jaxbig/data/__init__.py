"""Data: sources, and batches in a reproducible order."""

from jaxbig.data.array import Loader, Position, k_shot, order, select, size_of, split_fraction
from jaxbig.data.digits import load_digits

__all__ = ["Loader", "Position", "k_shot", "load_digits", "order", "select", "size_of", "split_fraction"]
