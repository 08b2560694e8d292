"""Bottleneck adapters: two thin layers with a nonlinearity between them, behind or beside a product."""

from typing import Any

import jax
import jax.numpy as jnp

from jaxbig.contraction import contract
from jaxbig.errors import UsageError
from jaxbig.lift import lift
from jaxbig.site import Site, sites
from jaxbig.transform import Split, Transform, key_for, selected, technique
from jaxbig.tree import paths, replace
from jaxbig.weight import Weight, aligned, product, static

ACTIVATIONS = {"relu": jax.nn.relu, "gelu": jax.nn.gelu, "silu": jax.nn.silu, "tanh": jnp.tanh, "none": lambda x: x}
PLACEMENTS = ("houlsby", "pfeiffer", "parallel")


class Bottleneck(Weight):
    """A kernel W with a small network behind its product y = x W: ``y + s (f(y D + d) U + u)``; parallel: f(x D + d).

    It stands for no array, because f is not linear: it is multiplied by, or it is an error.

    Attributes:
        base: an array or a Weight.
        down: ``[*stack, *read, r]``, `read` the output axes, or the input axes of a parallel one; down_bias:
            ``[*stack, r]``; up: ``[*stack, r, *out]``; up_bias: ``[*stack, *out]``; scale: a scalar.
        in_axes, out_axes: logical axes of the base, counted from the right.
        activation: a name in `ACTIVATIONS`. parallel: whether it reads the product's input.
    """

    base: Any
    down: Any
    down_bias: Any
    up: Any
    up_bias: Any
    scale: Any
    in_axes: tuple[int, ...] = static()
    out_axes: tuple[int, ...] = static()
    activation: str = static()
    parallel: bool = static(default=False)

    def axes(self):
        stack = tuple(i for i in range(-self.ndim, 0) if i not in self.in_axes + self.out_axes)
        read = self.in_axes if self.parallel else self.out_axes
        return {
            "base": aligned(self.base),
            "down": (*stack, *read, None),
            "down_bias": (*stack, None),
            "up": (*stack, None, *self.out_axes),
            "up_bias": (*stack, *self.out_axes),
            "scale": (),
        }

    def materialise(self):
        raise UsageError(
            "bottleneck: the model does not multiply activations by an adapted kernel but uses it otherwise, and an "
            "adapter with a nonlinearity stands for no array; choose other leaves with where="
        )

    def product(self, x, c):
        y = product(self.base, x, c)
        if y is NotImplemented or not set(c.labels(self.out_axes)) <= set(c.out) - set(c.x):
            return NotImplemented
        mapping, rank = self.axes(), c.fresh()
        of = {name: c.labels(mapping[name], rank) for name in ("down", "down_bias", "up", "up_bias")}
        inner = "".join(label for label in c.out if label not in c.labels(self.out_axes)) + rank
        read, labels = (x, c.x) if self.parallel else (y, c.out)
        part = lambda name: getattr(self, name).astype(y.dtype)  # noqa: E731
        h = contract(read, labels, part("down"), of["down"], inner) + _along(part("down_bias"), of["down_bias"], inner)
        z = contract(ACTIVATIONS[self.activation](h), inner, part("up"), of["up"], c.out)
        return y + part("scale") * (z + _along(part("up_bias"), of["up_bias"], c.out))


def _along(bias: Any, its: str, labels: str) -> Any:
    """A bias with axes of length 1 where the result has others, for adding."""
    order = sorted(range(len(its)), key=lambda i: labels.index(its[i]))
    moved, sizes = jnp.transpose(bias, order), dict(zip(its, bias.shape, strict=True))
    return moved.reshape([sizes.get(label, 1) for label in labels])


@technique
def bottleneck(
    size: int | None = None,
    placement: str = "houlsby",
    where: Any = None,
    activation: str = "relu",
    scale: float = 1.0,
):
    """Trains small networks between frozen layers: ``h <- h + scale * (U f(D h + d) + u)``.

    Args:
        size: r, the width of the bottleneck; None: a sixteenth of the kernel's outputs, at least 1.
        placement: "houlsby": behind every product that ends in a residual stream (attention's output and the
            feed-forward's); "pfeiffer": behind those of them that have more inputs than outputs (the feed-forward's);
            "parallel": where "pfeiffer" is, but reading what the product reads.
        where: the kernels; None: those of the placement, as `jaxbig.usage.usage` finds them in the program.
        activation: f: relu, gelu, silu, tanh or none.
        scale: of what is added; 4 in the parallel adapters of the paper.

    Returns:
        a Transform. ``train[path] = {"down": [*stack, *read, r], "down_bias": [*stack, r], "up": [*stack, r, *out],
        "up_bias": [*stack, *out]}``. `apply` leaves the tree as it is; what is added stands in no parameter, so `wrap`
        puts it around the model: call ``lift(transform.wrap(split, fn))(transform.apply(split), ...)``, as the trainer
        does. Merging the tree leaves it out for the same reason.

    Raises:
        UsageError: nothing in the model is of the placement's kind, or a selected kernel is not multiplied.

    Init: D normal with standard deviation 0.01, all else zero: the model is unchanged.

    Cost: ``2 r d + r + d`` parameters for a kernel of d outputs; forward ``4 r d`` FLOPs a row.

    Example:
        >>> from jaxbig.usage import usage
        >>> params, x = {"w": jnp.ones((4, 4))}, jnp.ones((2, 4))
        >>> fn = lambda p, x: x + x @ p["w"]
        >>> split = bottleneck(2).init(jax.random.key(0), params, usage(fn, params, x))
        >>> jax.tree.map(jnp.shape, split.train)
        {'w': {'down': (4, 2), 'down_bias': (2,), 'up': (2, 4), 'up_bias': (4,)}}
        >>> split.train["w"]["up_bias"] = jnp.ones(4)
        >>> bottleneck(2).wrap(split, fn)(params, x)[0].tolist()
        [6.0, 6.0, 6.0, 6.0]

    Reference: Houlsby et al. 2019, arXiv:1902.00751; Pfeiffer et al. 2020 (AdapterFusion), arXiv:2005.00247; He et al.
    2021, arXiv:2110.04366. Deviations: an adapter reads the product before the layer's own bias b is added, which is
    the same family of functions (d takes D b up) from another start; U is zero at first, where Houlsby draws both from
    a narrow normal; a parallel adapter stands beside one product, where He et al. put it beside the whole feed-forward
    layer; layer norms are not trained along (chain it with a technique that does).
    """
    if placement not in PLACEMENTS:
        raise UsageError(f"bottleneck: placement={placement!r}; it is one of {', '.join(PLACEMENTS)}")
    if activation not in ACTIVATIONS:
        raise UsageError(f"bottleneck: activation={activation!r}; it is one of {', '.join(ACTIVATIONS)}")
    if size is not None and (not isinstance(size, int) or size < 1):
        raise UsageError(f"bottleneck: size={size!r}; it is a whole number of at least 1")

    def init(key, params, known):
        chosen = where if where is not None else _placed(placement, params, known)
        train, state = {}, {}
        for path, site in sites("bottleneck", chosen, params, known).items():
            train[path] = _start(key_for(key, path), site, size, placement == "parallel")
            state[path] = Bottleneck(
                None, None, None, None, None, None, site.in_axes, site.out_axes, activation, placement == "parallel"
            )
        return Split(params, train, state)

    def wrap(split, fn):
        def adapted(params, *args, **kwargs):
            leaves = paths(params)
            dressed = {
                path: split.state[path].replace(base=leaves[path], scale=jnp.asarray(scale, parts["up"].dtype), **parts)
                for path, parts in split.train.items()
            }
            return lift(fn)(replace(params, dressed), *args, **kwargs)

        return adapted

    return Transform("bottleneck", init, lambda split, key=None: split.params, wrap=wrap)


def _placed(placement: str, params: Any, uses: Any) -> list[str]:
    """The kernels of a placement, as patterns."""

    def ends_in_a_stream(path, leaf):
        residual = [use for use in uses.get(path, ()) if use.residual and use.kind == "product"]
        if not residual or placement == "houlsby":
            return bool(residual)
        inputs, outputs = Site(leaf, residual[0]).matrix
        return inputs > outputs

    return [path.replace(".", r"\.") for path in selected(None, params, ends_in_a_stream)]


def _start(key: Any, site: Site, size: int | None, parallel: bool) -> dict[str, Any]:
    r = size or max(1, site.matrix[1] // 16)
    read = site.inputs if parallel else site.outputs
    return {
        "down": 0.01 * jax.random.normal(key, (*site.stack, *read, r), site.dtype),
        "down_bias": jnp.zeros((*site.stack, r), site.dtype),
        "up": jnp.zeros((*site.stack, r, *site.outputs), site.dtype),
        "up_bias": jnp.zeros((*site.stack, *site.outputs), site.dtype),
    }
