"""`describe`: a table of what a parameter tree holds."""

import html
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from jaxbig.transform import Split
from jaxbig.tree import nbytes, paths
from jaxbig.weight import innermost, is_weight


@dataclass(frozen=True)
class Row:
    """One leaf: its path, logical shape and dtype, the kind of leaf, trained parameters, and bytes held."""

    path: str
    shape: tuple[int, ...]
    dtype: str
    kind: str
    trainable: int
    bytes: int


HEADINGS = ("path", "shape", "dtype", "kind", "trainable", "bytes")


@dataclass(frozen=True)
class Table:
    """Rows with totals; prints as text, shows as HTML in a notebook."""

    rows: tuple[Row, ...]
    parameters: int
    trainable: int
    bytes: int

    def _cells(self) -> list[tuple[str, ...]]:
        body = [
            (
                row.path,
                "x".join(map(str, row.shape)) or "scalar",
                row.dtype,
                row.kind,
                f"{row.trainable:,}" if row.trainable else "-",
                f"{row.bytes:,}",
            )
            for row in self.rows
        ]
        share = f"{100 * self.trainable / self.parameters:.3g}%" if self.parameters else "0%"
        return [
            *body,
            ("total", f"{self.parameters:,} parameters", "", "", f"{self.trainable:,} ({share})", f"{self.bytes:,}"),
        ]

    def __str__(self) -> str:
        cells = [HEADINGS, *self._cells()]
        widths = [max(len(row[i]) for row in cells) for i in range(len(HEADINGS))]
        lines = [
            "  ".join(
                c.rjust(w) if i > 3 else c.ljust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))
            ).rstrip()
            for row in cells
        ]
        rule = "-" * max(map(len, lines))
        return "\n".join([lines[0], rule, *lines[1:-1], rule, lines[-1]])

    def _repr_html_(self) -> str:
        head = "".join(f"<th>{name}</th>" for name in HEADINGS)
        body = "".join(
            "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in self._cells()
        )
        return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def describe(params: Any) -> Table:
    """What a tree of parameters, or a `Split`, holds.

    Args:
        params: arrays, shapes or Weights; of a Split, what is trained is listed with the method's name in its path.

    Returns:
        a `Table`: path, logical shape, dtype, kind of leaf, trained parameters, bytes; with totals. Bytes are those of
        the arrays actually held (packed codes and scales, not the logical weight), state included.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxbig.tune.full import full
        >>> print(describe(full(where="b").init(None, {"a": jnp.ones((2, 3)), "b": jnp.ones(2)}, {})))
        path     shape         dtype    kind   trainable  bytes
        -------------------------------------------------------
        a        2x3           float32  array          -     24
        train/b  2             float32  array          2      8
        -------------------------------------------------------
        total    8 parameters                    2 (25%)     32
    """
    if not isinstance(params, Split):
        params = Split(params, {}, {})
    held = [_row(path, leaf, False) for path, leaf in paths(params.params).items()]
    trained = [_row(f"train/{path}", leaf, True) for path, leaf in paths(params.train).items()]
    state = [_row(f"state/{p}", leaf, False) for p, leaf in paths(params.state).items() if jax.tree.leaves(leaf)]
    # of a leaf whose rest is trained only the trained row counts
    count = sum(_size(row.shape) for row in held + trained if row.dtype)
    rows = held + trained + state
    return Table(tuple(rows), count, sum(row.trainable for row in rows), sum(row.bytes for row in rows))


def _size(shape: tuple[int, ...]) -> int:
    size = 1
    for n in shape:
        size *= n
    return size


def _row(path: str, leaf: Any, trained: bool) -> Row:
    if is_weight(leaf) and not _whole(leaf):
        return Row(path, (), "", f"{type(leaf).__name__} (rest in train)", 0, nbytes(leaf))
    leaf = leaf if hasattr(leaf, "dtype") else jax.eval_shape(jnp.asarray, leaf)  # a Python number
    kind = leaf.kind() if is_weight(leaf) else "array"
    shape = tuple(leaf.shape)
    return Row(path, shape, str(leaf.dtype), kind, _size(shape) if trained else 0, nbytes(leaf))


def _whole(leaf: Any) -> bool:
    bottom = innermost(leaf)
    return not (is_weight(bottom) and getattr(bottom, "base", bottom) is None)
