"""EVA: a LoRA that starts from what its layers are fed, with more ranks where their inputs vary more."""

import math
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxbig.calibrate import Moments
from jaxbig.errors import UsageError
from jaxbig.lowrank import by_path, check_rank
from jaxbig.site import Site, sites
from jaxbig.transform import Transform
from jaxbig.tree import PyTree
from jaxbig.tune.lora import lora
from jaxbig.usage import Uses


class _Inputs(NamedTuple):
    """The principal components of a leaf's inputs: directions [*stack, k, I], their singular values [*stack, k] and
    the share of the variance that each explains, the mean over the stack [k], largest first."""

    directions: np.ndarray
    values: np.ndarray
    shares: np.ndarray


def eva(
    stats: Mapping[str, Moments],
    params: PyTree,
    uses: Uses,
    rank: int | Mapping[str, int] = 8,
    rho: float = 2.0,
    alpha: float | None = None,
    where: Any = None,
    whiten: bool = False,
) -> Transform:
    """A `lora` whose A starts as the principal components of each layer's inputs, B as zero.

    It is no technique of its own but a start for one: what comes back is a `lora` with the ranks that the data ask for,
    in name and in `config`, so a manifest, which can hold no arrays, rebuilds all but the start; and whoever restores
    a checkpoint has no use for that. It goes into a chain as any link, over codes too.

    Args:
        stats: of `jaxbig.calibrate`, with ``gram=True``.
        params: the parameters, or their shapes; uses: of the model. They say what `where` selects.
        rank: the mean rank r; or pattern -> rank, of which the first that matches a leaf's path holds for it.
        rho: a layer's rank is at most ``round(rho * r)``; 1: all have r.
        alpha: the scale is ``alpha / r`` for all layers, whatever rank each gets; None: a scale of 1.
        where: the weights; None: every product and every ungrouped convolution except the model's head and tables.
        whiten: divides each component by the root of its singular value.

    Returns:
        a Transform, a `lora` over the layers that got a rank at all; ``train[path]`` as there.

    Raises:
        UsageError: a `rho` below 1, a `rank` below 1; a selected leaf of which `stats` has no Gram matrix.

    Init: the components are those of the inputs' covariance, the largest of each one's entries positive; the model is
    unchanged, as B is zero. Ranks: of all components of all layers those that explain the largest share of their
    layer's variance, as many as there were ranks.

    Cost: an eigendecomposition, ``O(I^3)`` a layer, on the host.

    Example:
        >>> from jaxbig.calibrate import calibrate
        >>> from jaxbig.usage import usage
        >>> fn = lambda p, x: jnp.tanh(x @ p["w"])
        >>> params, x = {"w": jnp.ones((3, 4))}, jnp.array([[1.0, 0.0, 5.0], [1.0, 0.5, -5.0]])
        >>> uses, stats = usage(fn, params, x), calibrate(fn, params, [(x,)], gram=True)
        >>> method = eva(stats, params, uses, rank=1, where="w")
        >>> print(method.init(None, params, uses).train["w"]["a"].round(2).T)
        [[ 0.   -0.05  1.  ]]
        >>> method.config["technique"]
        'lora'

    Reference: Paischer et al. 2024, arXiv:2410.07170. Deviations: PEFT has the components from a singular value
    decomposition that is updated batch by batch until they settle; the Gram matrix of all batches has them exactly. A
    stack of layers is one leaf and has one rank, chosen by the mean of its layers' shares and counted once for each;
    convolutions are fed patches. PEFT leaves out padding by a mask; leave it out of what `calibrate` is given.
    """
    check_rank("eva", rank)
    if rho < 1:
        raise UsageError(f"eva: rho={rho}; it is at least 1, where all layers have the same rank")
    found = sites("eva", where, params, uses)
    wanted = by_path("eva", "rank", rank, found)
    most = {path: min(round(rho * wanted[path]), site.matrix[0]) for path, site in found.items()}
    inputs = {path: _components(path, site, stats, most[path]) for path, site in found.items()}
    layers = {path: math.prod(site.stack) for path, site in found.items()}
    ranks = {path: n for path, n in _shared_out(inputs, layers, wanted).items() if n}
    scales = None if alpha is None else {re.escape(path): alpha * n / wanted[path] for path, n in ranks.items()}
    plain = lora({re.escape(path): n for path, n in ranks.items()}, scales, where=[re.escape(path) for path in ranks])

    def init(key, params, uses):
        split = plain.init(jax.random.key(0) if key is None else key, params, uses)
        train = {}
        for path, parts in split.train.items():
            a = inputs[path].directions[..., : ranks[path], :]
            if whiten:
                a = a / np.sqrt(inputs[path].values[..., : ranks[path], None])
            a = np.swapaxes(a, -1, -2).reshape(parts["a"].shape)
            train[path] = {"a": jnp.asarray(a, parts["a"].dtype), "b": jnp.zeros_like(parts["b"])}
        return split._replace(train=train)

    return plain._replace(init=init)


def _components(path: str, site: Site, stats: Mapping[str, Moments], count: int) -> _Inputs:
    moments = stats.get(path)
    if moments is None or moments.gram is None:
        raise UsageError(
            f"eva: there is no Gram matrix of what {path} is fed; calibrate(..., gram=True) a function that multiplies "
            "by it, or choose other leaves with where="
        )
    total = np.asarray(moments.total, np.float64).reshape(*site.stack, -1)
    n = np.asarray(moments.count, np.float64).reshape(*site.stack, 1, 1)
    scatter = np.asarray(moments.gram, np.float64) - total[..., :, None] * total[..., None, :] / n
    squares, vectors = np.linalg.eigh(scatter)
    squares = np.maximum(squares[..., ::-1], 0)  # rounding leaves less than nothing where nothing varies
    whole = squares.sum(-1, keepdims=True)
    shares = squares / np.where(whole > 0, whole, 1)
    directions = np.swapaxes(vectors[..., ::-1], -1, -2)[..., :count, :]
    largest = np.take_along_axis(directions, np.abs(directions).argmax(-1)[..., None], -1)
    shares = shares[..., :count].reshape(-1, count).mean(0)
    return _Inputs(directions * np.sign(largest), np.sqrt(squares[..., :count]), shares)


def _shared_out(inputs: dict[str, _Inputs], layers: dict[str, int], wanted: dict[str, int]) -> dict[str, int]:
    """A rank for each path: the components of largest share, while the budget lasts; the first path where they tie."""
    left = sum(wanted[path] * layers[path] for path in inputs)
    ranks = dict.fromkeys(inputs, 0)
    every = [(share, path) for path, its in inputs.items() for share in its.shares]
    for _, path in sorted(every, key=lambda pair: -pair[0]):
        if layers[path] <= left:
            ranks[path] += 1
            left -= layers[path]
    return ranks
