"""Rules where a weight meets an activation: products, convolutions, look-ups."""

import string

import jax
import jax.numpy as jnp
from jax import lax

from jaxbig.contraction import Contraction, Convolution
from jaxbig.lift.control import unstacked
from jaxbig.lift.interpreter import Interpreter, View, bind, rule
from jaxbig.weight import conv, product, restack


@rule("dot_general")
def _dot_general(interpreter: Interpreter, eqn, inputs):
    if all(isinstance(value, View) for value in inputs):
        inputs = [interpreter.dense(inputs[0], eqn, "a product of two weights"), inputs[1]]
    left = isinstance(inputs[0], View)
    view, x = inputs if left else inputs[::-1]
    if not jnp.issubdtype(x.dtype, jnp.inexact):  # a weight's parts in an integer's dtype would be no weight any more
        x = x.astype(eqn.outvars[0].aval.dtype)
    plan = _plan_product(view, x, eqn, left)
    if plan is None:
        return NotImplemented
    c, x, finish = plan
    y = product(view.weight, x, c)
    if y is NotImplemented:
        return NotImplemented
    interpreter.tell(view, "product", x, c, eqn)
    return [finish(y)]


def _plan_product(view: View, x, eqn, left: bool):
    """The contraction in terms of the weight's own axes, x arranged for it, and what arranges the result.

    None if a reshape of the weight mixed contracted, batch and free axes.
    """
    (lc, rc), (lb, rb) = eqn.params["dimension_numbers"]
    (wc, xc), (wb, xb) = ((lc, rc), (lb, rb)) if left else ((rc, lc), (rb, lb))
    letters = iter(string.ascii_letters)
    w = {axis: next(letters) for axis in range(len(view.perm))}
    names, units = {}, ""
    for ours, theirs in view.groups():
        if len({(a in wc, a in wb) for a in ours}) > 1:
            return None
        its = "".join(w[t] for t in theirs)
        names |= dict.fromkeys(ours, "") | ({ours[0]: its} if ours else {})
        units += "" if ours else its
    own = {axis: next(letters) for axis in range(x.ndim) if axis not in xc and axis not in xb}
    partner = {**dict(zip(xc, wc, strict=True)), **dict(zip(xb, wb, strict=True))}
    x_free, w_free = "".join(own.values()), "".join(names[a] for a in range(len(view.shape)) if a not in (*wc, *wb))
    free = w_free + x_free if left else x_free + w_free
    order, batch = list(range(x.ndim)), list(wb)
    if units or any(len(names[a]) != 1 for a in names):  # what is merged or split has to lie side by side
        home = {v: k for k, v in partner.items()}
        batch = sorted(wb)
        order = [home[a] for a in batch] + list(own) + [home[a] for a in sorted(wc)]
    x_labels = "".join(own[a] if a in own else names[partner[a]] for a in order) + units
    # an axis of length 1 that the model dropped (one layer of a stack) belongs to the stack: in x, weight and result
    out = units + "".join(names[a] for a in batch) + free
    sizes = {letter: view.weight.shape[axis] for axis, letter in w.items()} | {own[a]: x.shape[a] for a in own}
    moved = lax.transpose(x, order)

    def equation(x_, array):  # transposes and reshapes that change nothing leave no trace in the program
        back = lax.transpose(x_.reshape(moved.shape), [order.index(i) for i in range(len(order))])
        operands = [view.apply(array), back] if left else [back, view.apply(array)]
        y = bind(eqn, operands)[0]
        y = lax.transpose(y, [wb.index(a) for a in batch] + list(range(len(wb), y.ndim)))
        return y.reshape(tuple(sizes[letter] for letter in out))

    def finish(y):
        y = y.reshape(tuple(view.shape[a] for a in batch) + eqn.outvars[0].aval.shape[len(wb) :])
        return lax.transpose(y, [batch.index(a) for a in wb] + list(range(len(wb), y.ndim)))

    c = Contraction(
        x_labels, "".join(w.values()), out, equation, eqn.params["precision"], eqn.params["preferred_element_type"]
    )
    return c, moved.reshape(tuple(sizes[letter] for letter in x_labels)), finish


@rule("conv_general_dilated")
def _conv(interpreter: Interpreter, eqn, inputs):
    x, view = inputs
    sizes = tuple(view.weight.shape[p] for p in view.perm) if isinstance(view, View) else ()
    if isinstance(x, View) or view.shape != sizes:
        return NotImplemented
    spec = eqn.params["dimension_numbers"]
    labels = dict.fromkeys(range(len(sizes)), "")
    for axis, letter in zip(spec.rhs_spec, "oi" + "abcdefgh", strict=False):
        labels[view.perm[axis]] = letter
    out = dict(zip(spec.out_spec, "no" + string.ascii_uppercase, strict=False))
    groups = eqn.params["feature_group_count"] * eqn.params["batch_group_count"]
    c = Convolution(
        "".join(labels[a] for a in range(len(sizes))),
        "".join(out[a] for a in range(len(out))),
        lambda x, w: bind(eqn, [x, lax.transpose(w, view.perm)])[0],
        groups,
    )
    y = conv(view.weight, x, c)
    if y is NotImplemented:
        return NotImplemented
    interpreter.tell(view, "conv", x, c, eqn)
    return [y]


@rule("gather")
def _gather(interpreter: Interpreter, eqn, inputs):
    view, indices = inputs
    d = eqn.params["dimension_numbers"]
    if not isinstance(view, View) or len(d.start_index_map) != 1 or not view.plain:
        return NotImplemented
    axis, stack = int(d.start_index_map[0]), tuple(d.operand_batching_dims)
    whole = tuple(1 if a == axis or a in stack else n for a, n in enumerate(view.shape))
    if d.collapsed_slice_dims != (axis,) or eqn.params["slice_sizes"] != whole or stack != tuple(range(len(stack))):
        return NotImplemented
    ids, at = indices[..., 0], d.start_indices_batching_dims
    # one table for each layer of a stack, and ids of its own for each
    own = jnp.moveaxis(ids, at, stack)
    flat = own.reshape(*own.shape[: len(stack)], -1)
    flat = flat if "IN_BOUNDS" in str(eqn.params["mode"]) else jnp.clip(flat, 0, view.shape[axis] - 1)
    rows = _rows(view.weight, flat, axis)
    if rows is NotImplemented:
        return NotImplemented
    interpreter.tell(view, "lookup", ids, (axis, stack), eqn)
    rest = tuple(n for a, n in enumerate(view.shape) if a != axis and a not in stack)
    y = jnp.moveaxis(rows, axis, len(stack)).reshape(own.shape + rest)
    y = _fill(jnp.moveaxis(y, stack, at), ids, view.shape[axis], eqn)
    batch = [i for i in range(y.ndim) if i not in d.offset_dims]
    return [jnp.moveaxis(y, range(y.ndim), [*batch, *d.offset_dims])]


def _rows(weight, ids, axis: int):
    """Rows of a table by 1-D ids, or of each table of a stack by its own."""
    if ids.ndim == 1:
        return weight.lookup(ids, axis - weight.ndim)
    parts = unstacked(weight)
    if parts is None:
        return NotImplemented
    stacked, shared = parts
    refused = []

    def layer(part, ids):
        rows = _rows(restack(part, shared), ids, axis - 1)
        refused.append(rows is NotImplemented)
        return ids if rows is NotImplemented else rows

    rows = jax.vmap(layer)(stacked, ids)
    return NotImplemented if any(refused) else rows


def _fill(y, ids, size: int, eqn):
    """What `jnp.take` puts where an index is out of range (NaN unless told otherwise)."""
    if "FILL" not in str(eqn.params["mode"]):
        return y
    inside = ((ids >= 0) & (ids < size)).reshape(ids.shape + (1,) * (y.ndim - ids.ndim))
    value = eqn.params["fill_value"]
    return jnp.where(inside, y, jnp.asarray(jnp.nan if value is None else value, y.dtype))
