"""Two public sets of credit data, from their files as the UCI repository and Kaggle give them."""

import os
from typing import NamedTuple

import numpy as np

from jaxbig.data.array import Batch
from jaxbig.data.table import features, read_table
from jaxbig.errors import UserError

GERMAN_COLUMNS = (
    "status", "duration", "history", "purpose", "amount", "savings", "employment", "rate", "personal", "debtors",
    "residence", "property", "age", "plans", "housing", "credits", "job", "liable", "telephone", "foreign", "class",
)  # fmt: skip
_DEFAULTS = ("Y", "default.payment.next.month", "default payment next month")


class Credit(NamedTuple):
    """A set of credit data.

    Attributes:
        arrays: ``number`` float32 [N, F], ``category`` int32 [N, C] where there are categories, ``label`` int32 [N].
        numbers: names of the F columns.
        categories: names of the C columns -> their values in the order of the codes.
    """

    arrays: Batch
    numbers: tuple[str, ...]
    categories: dict[str, tuple[str, ...]]


def card_default(path: str | os.PathLike) -> Credit:
    """The UCI set "default of credit card clients": 30,000 clients in Taiwan in 2005, 23 numbers each.

    Args:
        path: a csv file (gzipped or not) with a header and the columns ID, 23 numbers, and last the label: ``Y`` or
            ``default.payment.next.month``.

    Returns:
        `Credit` with ``number`` [30000, 23] and ``label``: 1 where the next month's payment was not made.

    Raises:
        UserError: as `read_table`; other columns.

    Example:
        >>> card_default("UCI_Credit_Card.csv")
        Traceback (most recent call last):
            ...
        jaxbig.errors.UserError: UCI_Credit_Card.csv: no such file or folder; it is the public UCI set ...

    Reference:
        Yeh and Lien (2009), "The comparisons of data mining techniques for the predictive accuracy of probability of
        default of credit card clients".
    """
    hint = 'it is the public UCI set "default of credit card clients" as csv; give its path'
    table = read_table(path, delimiter=",", header=True, hint=hint)
    names = list(table.columns)
    if len(names) != 25 or names[-1] not in _DEFAULTS or set(table.kinds.values()) != {"number"}:
        raise UserError(
            f"{path}: {len(names)} columns from {names[0]!r} to {names[-1]!r}, not ID, 23 numbers and "
            f"{' or '.join(_DEFAULTS[:2])}; save the set as csv with one line of names"
        )
    return Credit(_two_classes(path, features(table, names[-1], names[:1]), 0), tuple(names[1:-1]), {})


def german_credit(path: str | os.PathLike) -> Credit:
    """The Statlog set "German credit data": 1,000 applicants, 7 numbers and 13 categories each.

    Args:
        path: ``german.data``, separated by blanks, without a header.

    Returns:
        `Credit` with ``number`` [1000, 7], ``category`` [1000, 13] and ``label``: 1 for a bad risk (2 in the file).

    Raises:
        UserError: as `read_table`; other columns.

    Example:
        >>> german_credit("german.data")
        Traceback (most recent call last):
            ...
        jaxbig.errors.UserError: german.data: no such file or folder; it is the public Statlog set ...

    Reference:
        Hofmann (1994), UCI machine learning repository, "Statlog (German credit data)".
    """
    hint = 'it is the public Statlog set "German credit data"; give the path of german.data'
    table = read_table(path, delimiter=" ", header=False, hint=hint)
    if len(table.columns) != len(GERMAN_COLUMNS):
        raise UserError(f"{path}: {len(table.columns)} columns, not {len(GERMAN_COLUMNS)}; give german.data itself")
    table = read_table(path, delimiter=" ", header=False, names=GERMAN_COLUMNS)
    numbers = tuple(name for name in GERMAN_COLUMNS[:-1] if table.kinds[name] == "number")
    return Credit(_two_classes(path, features(table, "class"), 1), numbers, table.vocabulary)


def _two_classes(path: str | os.PathLike, batch: Batch, first: int) -> Batch:
    label = batch["label"] - first
    if label.dtype != np.int32 or not np.isin(label, (0, 1)).all():
        raise UserError(f"{path}: the last column is not {first} or {first + 1} in every row; give the set's own file")
    return batch | {"label": label}
