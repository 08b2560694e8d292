"""How an activation meets a weight, in labels: products and convolutions without a JAX primitive in sight.

Labels are letters, one an axis, as in `numpy.einsum`.
"""

import dataclasses
import string
from collections.abc import Callable
from typing import Any

from jax import lax

Array = Any


def contract(x, x_labels: str, w, w_labels: str, out: str, precision=None, preferred=None):
    """A two-operand einsum as one `lax.dot_general` and, only where the order asks for it, one transpose.

    Example:
        >>> import jax.numpy as jnp
        >>> contract(jnp.ones((2, 3)), "bi", jnp.ones((3, 4)), "io", "ob").shape
        (4, 2)
    """
    x, x_labels = _sum_out(x, x_labels, w_labels + out)
    w, w_labels = _sum_out(w, w_labels, x_labels + out)
    shared = [label for label in x_labels if label in w_labels]
    batch = [label for label in shared if label in out]
    summed = [label for label in shared if label not in out]
    free = [label for label in x_labels if label not in shared] + [label for label in w_labels if label not in shared]
    y = lax.dot_general(
        x, w,
        (([x_labels.index(i) for i in summed], [w_labels.index(i) for i in summed]),
         ([x_labels.index(i) for i in batch], [w_labels.index(i) for i in batch])),
        precision=precision, preferred_element_type=preferred,
    )  # fmt: skip
    order = tuple((batch + free).index(label) for label in out)
    return y if order == tuple(range(len(order))) else lax.transpose(y, order)


def _sum_out(x, labels: str, wanted: str):
    alone = [i for i, label in enumerate(labels) if label not in wanted]
    return (x.sum(alone), "".join(label for label in labels if label in wanted)) if alone else (x, labels)


@dataclasses.dataclass(frozen=True)
class Contraction:
    """One product of an activation with a weight: which axes meet, and the equation the model itself wrote.

    Attributes:
        x, w, out: labels of the axes of the activation, of the weight (in its own order) and of the result. A label of
            `w` is contracted (in x, not in out), free (in out only) or a batch axis (in both).
        equation: ``(x, array) -> y``, the model's own operation on a plain array; exact to the bit.
        precision, preferred: as in `jax.lax.dot_general`.
    """

    x: str
    w: str
    out: str
    equation: Callable[[Array, Array], Array]
    precision: Any = None
    preferred: Any = None

    def fresh(self) -> str:
        """A label that none of the operands uses (for a rank)."""
        return next(label for label in string.ascii_letters if label not in self.x + self.w + self.out)

    def labels(self, axes: tuple[int | None, ...], private: str = "") -> str:
        """Labels of a part whose axes stand for these logical axes; None takes the next letter of `private`."""
        letters = iter(private)
        return "".join(next(letters) if axis is None else self.w[axis] for axis in axes)

    def chain(self, x, *factors: tuple[Array, str]):
        """``x`` contracted with a product of factors, one after the other, beginning with the one that meets x's
        contracted axes: their product is never formed.

        Args:
            x: the activation, labelled ``self.x``.
            *factors: (array, labels) pairs.

        Returns:
            the result, labelled ``self.out``.
        """
        summed = set(self.x) & set(self.w) - set(self.out)
        waiting = sorted(factors, key=lambda factor: -len(summed & set(factor[1])))
        y, labels = x, self.x
        for i, (array, its) in enumerate(waiting):
            later = "".join(rest for _, rest in waiting[i + 1 :])
            keep = self.out if not later else "".join(
                dict.fromkeys(label for label in labels + its if label in self.out or label in later)
            )  # fmt: skip
            y, labels = contract(y, labels, array, its, keep, self.precision, self.preferred), keep
        return y


@dataclasses.dataclass(frozen=True)
class Convolution:
    """One convolution with a weight as its kernel, of a single group of channels.

    Attributes:
        w: labels of the kernel's axes in the weight's own order; ``o`` is the output channel, all others are inputs.
        out: labels of the result's axes; ``o`` is the channel.
        equation: ``(x, kernel) -> y``, the model's own convolution; the kernel's number of output channels is free.
        groups: number of feature or batch groups; anything but 1 has no factored form.
    """

    w: str
    out: str
    equation: Callable[[Array, Array], Array]
    groups: int = 1
