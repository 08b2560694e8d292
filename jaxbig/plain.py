"""`as_lora`: an adapter that changed its base leaves as a plain LoRA over the base that was there before."""

import re
from typing import Any

import jax.numpy as jnp
from jax.core import Tracer

from jaxbig.errors import UsageError
from jaxbig.lowrank import by_path, scale_of
from jaxbig.transform import Split, Transform
from jaxbig.tree import PyTree, paths
from jaxbig.tune.lora import lora
from jaxbig.weight import is_weight, materialise, wide

REWRITING = ("pissa", "olora")


def as_lora(transform: Transform, base: PyTree, start: Split, split: Split) -> tuple[Transform, Split]:
    """A trained `pissa` or `olora` as a LoRA of twice the rank: ``W + s [A, A0] [B; -B0] = W - s A0 B0 + s A B``.

    What PiSSA and OLoRA train belongs to a base of their own. The LoRA belongs to W itself, so that several can share
    one base, and can be exported where nobody knows of the other base.

    Args:
        transform: the technique; of a chain its link.
        base: the parameters that its `init` was given.
        start: the split of that `init`. It need not be kept: the same key and base make it again.
        split: the trained one. Of a chain, the parts of the link: ``Split(base, split.train["pissa"],
            split.state["pissa"])``.

    Returns:
        a `lora` transform, and its split over `base`: equal to `transform` over `split` up to the rounding of the base.

    Raises:
        UsageError: another technique, whose base is not W less a low-rank product (LoftQ's is codes); splits of other
            leaves; or ``start`` and `base` do not belong together (seen on concrete arrays only): another key or base,
            or a base that a later link quantised.

    Cost: twice the adapter's parameters, and its FLOPs.

    Example:
        >>> import jax
        >>> from jaxbig.compress.merge import merge
        >>> from jaxbig.tune.pissa import pissa
        >>> from jaxbig.usage import usage
        >>> base, x = {"w": jnp.arange(12.0).reshape(4, 3)}, jnp.ones((2, 4))
        >>> method = pissa(rank=1, where="w")
        >>> start = method.init(None, base, usage(lambda p, x: x @ p["w"], base, x))
        >>> trained = start._replace(train=jax.tree.map(lambda leaf: leaf + 0.5, start.train))
        >>> plain, split = as_lora(method, base, start, trained)
        >>> plain.config["technique"], split.train["w"]["a"].shape
        ('lora', (4, 2))
        >>> bool(jnp.allclose(merge(plain.apply(split))["w"], merge(method.apply(trained))["w"], atol=1e-5))
        True

    Reference: PEFT's conversion of such adapters; Meng et al. 2024, arXiv:2404.02948.
    """
    name = transform.config.get("technique")
    if name not in REWRITING:
        raise UsageError(f"as_lora: {name!r} leaves as no plain LoRA; it is one of {', '.join(REWRITING)}")
    if start.train.keys() != split.train.keys():
        odd = min(start.train.keys() ^ split.train.keys())
        raise UsageError(f"as_lora: {odd!r} is in one of the splits alone; give the parts of the link {name!r}")
    alphas = by_path(name, "alpha", transform.config["alpha"], split.train)
    train = {}
    for path, now in split.train.items():
        first, low = start.train[path], split.state[path]
        _check(path, paths(base).get(path), paths(start.params)[path], low, first, alphas[path])
        up = first["b"].ndim - len(low.out_axes) - 1
        train[path] = {
            "a": jnp.concatenate([now["a"], first["a"]], axis=-1),
            "b": jnp.concatenate([now["b"], -first["b"]], axis=up),
        }
    ranks = {re.escape(path): parts["a"].shape[-1] for path, parts in train.items()}
    rank = set(ranks.values()).pop() if len(set(ranks.values())) == 1 else ranks
    alpha = {re.escape(path): 2 * alpha for path, alpha in alphas.items() if alpha is not None} or None
    if alpha is not None and len(set(alpha.values())) == 1:
        alpha = next(iter(alpha.values()))
    return lora(rank, alpha, where=list(ranks)), Split(base, train, dict(split.state))


def _check(path: str, whole: Any, left: Any, low: Any, first: Any, alpha: Any) -> None:
    """That `whole` is what is `left` of it and the first product together."""
    if whole is None or is_weight(whole):
        raise UsageError(f"as_lora: the base has no array at {path}; give the parameters that init was given")
    dtype = wide(whole.dtype)
    scale = jnp.asarray(scale_of(first["a"].shape[-1], alpha), first["a"].dtype)
    again = low.replace(base=materialise(left).astype(dtype), scale=scale, **first).materialise()
    off = jnp.abs(again - whole.astype(dtype)).max() / jnp.maximum(jnp.abs(whole).max(), 1e-30).astype(dtype)
    if not isinstance(off, Tracer) and float(off) > max(1e-5, float(jnp.finfo(whole.dtype).eps)):
        raise UsageError(
            f"as_lora: at {path} the base is not the start's base and its A B together; give the base and the split "
            "of one init, before any link that quantises"
        )
