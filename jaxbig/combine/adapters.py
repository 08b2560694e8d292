"""Several LoRA adapters of one model as one: their factors added, joined, or factored anew."""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp

from jaxbig.combine.rule import LINEAR, Rule
from jaxbig.errors import UsageError
from jaxbig.transform import Split, key_for
from jaxbig.weight import wide

Array = Any


class Combined(NamedTuple):
    """An adapter: ``lora(rank=rank).apply(split)`` puts it on, with a scale of 1.

    Attributes:
        split: of LoRA: the first split's parameters, and every path that some adapter has.
        rank: of all its factors.
    """

    split: Split
    rank: int


class Part(NamedTuple):
    """What one adapter adds to a leaf: ``scale * a @ b``, a [*stack, I, r], b [*stack, r, O], and its weight."""

    a: Array
    b: Array
    scale: float
    weight: float

    @property
    def amount(self) -> float:
        return self.weight * self.scale


def add_lora(
    splits: Sequence[Split],
    weights: Sequence[float] | None = None,
    scales: Sequence[float] | None = None,
    rule: Rule = LINEAR,
    key: Any = None,
) -> Combined:
    """Adds factor to factor: ``A = rule(A_t, sgn(c_t) sqrt|c_t|)``, ``B = rule(B_t, sqrt|c_t|)``, ``c_t = w_t s_t``.

    The product of sums has cross terms that the sum of products has not: quick, of the same rank, and far from exact;
    `cat_lora` and `svd_lora` are not.

    Args:
        splits: of `jaxbig.lora` over one model, all of one rank; of a chain, its parts.
        weights: one number for each, negative ones too; None: 1.
        scales: ``alpha / rank`` of each adapter; None: 1, LoRA's default.
        rule: ``Rule()`` is PEFT's "linear", ``Rule("largest", density)`` "magnitude_prune", with signs "ties";
            ``Rule("random", density)`` "dare_linear", with signs "dare_ties". A layer's factor is ranked by itself.
        key: for a rule that draws.

    Returns:
        a `Combined`; a path that only some adapters have is combined of these.

    Raises:
        UsageError: no splits, several ranks, numbers or axes that do not fit, a rule that needs a key.

    Cost: as many bytes as all the adapters hold, thrice over, while it runs; the model's cost is one adapter's.

    Example:
        >>> import jax
        >>> from jaxbig import fidelity, lora, merge, task_arithmetic, usage
        >>> base, x, fn = {"w": jnp.eye(3)}, jnp.eye(3), lambda p, x: x @ p["w"]
        >>> method, uses = lora(rank=1, where="w"), usage(fn, base, x)
        >>> one, two = (method.init(jax.random.key(i), base, uses) for i in range(2))
        >>> one, two = (s._replace(train={"w": {"a": s.train["w"]["a"], "b": jnp.ones((1, 3))}}) for s in (one, two))
        >>> both = task_arithmetic(base, [merge(method.apply(one)), merge(method.apply(two))])
        >>> added = add_lora([one, two])
        >>> error = lambda c: fidelity(fn, both, lora(rank=c.rank).apply(c.split), [x]).max_error
        >>> added.rank, error(added) > 0.1, error(cat_lora([one, two])) < 1e-6
        (1, True, True)

    Reference: PEFT's ``add_weighted_adapter``; the rules are of Ilharco et al. 2022, arXiv:2212.04089, Yadav et al.
    2023, arXiv:2306.01708, and Yu et al. 2023, arXiv:2311.03099. Deviation: PEFT adds up a single adapter as "linear"
    whatever is asked for.
    """

    def one(path, parts):
        roots = [math.sqrt(abs(part.amount)) for part in parts]
        signed = [math.copysign(root, part.amount) for root, part in zip(roots, parts, strict=True)]
        stack = parts[0].a.ndim - 2
        keys = [None if key is None else key_for(key, f"{path}/{name}") for name in "ab"]
        return (
            rule([part.a for part in parts], signed, keys[0], stack),
            rule([part.b for part in parts], roots, keys[1], stack),
        )

    ranks = _ranks("add_lora", splits)
    if len(set(ranks)) > 1:
        raise UsageError(f"add_lora: adapters of ranks {ranks}; those of several ranks need cat_lora or svd_lora")
    return _combined("add_lora", splits, weights, scales, one, ranks[0])


def cat_lora(
    splits: Sequence[Split], weights: Sequence[float] | None = None, scales: Sequence[float] | None = None
) -> Combined:
    """Joins factors: ``A = [c_1 A_1, c_2 A_2, ...]``, ``B = [B_1; B_2; ...]``: ``A B = sum_t c_t A_t B_t``, exactly.

    Args:
        splits, weights, scales: as in `add_lora`; ranks may differ.

    Returns:
        a `Combined` of the sum of all ranks; zeros fill the factors of a path that only some adapters have.

    Raises:
        UsageError: no splits, or numbers or axes that do not fit.

    Cost: the bytes and FLOPs of all adapters together.

    Example:
        >>> import jax
        >>> from jaxbig import fidelity, lora, usage
        >>> base, x, fn = {"w": jnp.eye(3)}, jnp.eye(3), lambda p, x: x @ p["w"]
        >>> split = lora(rank=2, where="w").init(jax.random.key(0), base, usage(fn, base, x))
        >>> split.train["w"]["b"] = jnp.ones((2, 3))
        >>> nothing = cat_lora([split, split], weights=[1, -1])
        >>> nothing.rank
        4
        >>> print(fidelity(fn, base, lora(rank=4).apply(nothing.split), [x]))
        KL 0 nats, flips 0 of 3 (0%), error max 0 mean 0, bytes 36 -> 136

    Reference: PEFT's ``add_weighted_adapter``, "cat".
    """

    def one(path, parts):
        return (
            jnp.concatenate([part.a * part.amount for part in parts], axis=-1),
            jnp.concatenate([part.b for part in parts], axis=-2),
        )

    return _combined("cat_lora", splits, weights, scales, one, sum(_ranks("cat_lora", splits)))


def svd_lora(
    splits: Sequence[Split],
    weights: Sequence[float] | None = None,
    scales: Sequence[float] | None = None,
    rule: Rule = LINEAR,
    rank: int | None = None,
    key: Any = None,
) -> Combined:
    """Factors what all add together anew: ``A = U_r``, ``B = S_r V_r^T`` of ``U S V^T = rule(s_t A_t B_t, w_t)``.

    Of rank r it is the best approximation of that matrix (Eckart & Young), for each layer of a stack by itself.

    Args:
        splits, weights, scales: as in `add_lora`; ranks may differ.
        rule: ``Rule()`` is PEFT's "svd", ``Rule("largest", density)`` "magnitude_prune_svd", with signs "ties_svd";
            ``Rule("random", density)`` "dare_linear_svd", with signs "dare_ties_svd". A layer is ranked by itself.
        rank: r; None: the largest of the adapters'.
        key: for a rule that draws.

    Returns:
        a `Combined`; factors of weights with fewer singular values are filled with zeros.

    Raises:
        UsageError: no splits, a `rank` below 1, numbers or axes that do not fit, a rule that needs a key.

    Cost: with ``Rule()`` the weights' updates are not formed: ``O((I + O) R^2)`` FLOPs a layer, R the sum of all ranks;
    with another rule they are, a leaf at a time, and their whole decomposition costs ``O(I O min(I, O))``.

    Example:
        >>> import jax
        >>> from jaxbig import fidelity, lora, usage
        >>> base, x, fn = {"w": jnp.eye(3)}, jnp.eye(3), lambda p, x: x @ p["w"]
        >>> split = lora(rank=2, where="w").init(jax.random.key(0), base, usage(fn, base, x))
        >>> split.train["w"]["b"] = jnp.ones((2, 3))  # two equal rows: of rank 1
        >>> smaller = svd_lora([split], rank=1)
        >>> report = fidelity(fn, lora(rank=2).apply(split), lora(rank=1).apply(smaller.split), [x])
        >>> report.flips, report.max_error < 1e-6, report.before, report.after
        (0, True, 88, 64)

    Reference: PEFT's ``add_weighted_adapter``; the rules as in `add_lora`. Deviations: no clamping of the factors; PEFT
    adds up a single adapter as "linear" whatever is asked for, here it is decomposed too.
    """
    if rank is not None and rank < 1:
        raise UsageError(f"svd_lora: rank={rank}; it is a whole number of at least 1")
    ranks = _ranks("svd_lora", splits)
    goal = rank or max(ranks)

    def one(path, parts):
        if rule == LINEAR:
            thin = _thin(
                jnp.concatenate([part.a * part.amount for part in parts], axis=-1),
                jnp.concatenate([part.b for part in parts], axis=-2),
            )
        else:
            added = [part.a @ part.b * part.scale for part in parts]
            keyed = None if key is None else key_for(key, path)
            whole = rule(added, [part.weight for part in parts], keyed, parts[0].a.ndim - 2)
            thin = jnp.linalg.svd(whole, full_matrices=False)
        u, s, vt = thin
        return u[..., :goal], (s[..., None] * vt)[..., :goal, :]

    return _combined("svd_lora", splits, weights, scales, one, goal)


def _thin(a: Array, b: Array) -> tuple[Array, Array, Array]:
    """The singular value decomposition of ``a @ b``, which is not formed."""
    left, r = jnp.linalg.qr(a)
    right, l = jnp.linalg.qr(b.mT)
    u, s, vt = jnp.linalg.svd(r @ l.mT, full_matrices=False)
    return left @ u, s, vt @ right.mT


def _ranks(name: str, splits: Sequence[Split]) -> list[int]:
    """The largest rank of each adapter."""
    if not splits:
        raise UsageError(f"{name}: no adapters to combine; give one at least")
    for i, split in enumerate(splits):
        lora = all(set(part) == {"a", "b"} and path in split.state for path, part in split.train.items())
        if not split.train or not lora:
            raise UsageError(f"{name}: split {i} is not one of lora alone; of a chain give its part")
    return [max(part["a"].shape[-1] for part in split.train.values()) for split in splits]


def _combined(
    name: str,
    splits: Sequence[Split],
    weights: Sequence[float] | None,
    scales: Sequence[float] | None,
    function: Callable[[str, list[Part]], tuple[Array, Array]],
    rank: int,
) -> Combined:
    """``function(path, parts) -> (a, b)`` of each path, filled up to the rank and given its axes back."""
    train, state = {}, {}
    for path, parts, form, dtype in _parts(name, splits, weights, scales):
        a, b = function(path, parts)
        more = max(rank - a.shape[-1], 0)
        a = jnp.pad(a, [(0, 0)] * (a.ndim - 1) + [(0, more)])
        b = jnp.pad(b, [(0, 0)] * (b.ndim - 2) + [(0, more), (0, 0)])
        first = next(split.train[path] for split in splits if path in split.train)
        at = first["a"].ndim - 1 - len(form.in_axes)  # where the rank stands in b
        train[path] = {
            "a": a.reshape(*first["a"].shape[:-1], a.shape[-1]).astype(dtype),
            "b": b.reshape(*first["b"].shape[:at], b.shape[-2], *first["b"].shape[at + 1 :]).astype(dtype),
        }
        state[path] = form
    return Combined(splits[0]._replace(train=train, state=state), rank)


def _parts(name: str, splits, weights, scales) -> Iterator[tuple[str, list[Part], Any, Any]]:
    """Of each path: what every adapter adds there, the Weight's form, and the factors' dtype."""
    numbers = {"weights": weights, "scales": scales}
    for word, given in numbers.items():
        numbers[word] = [1.0] * len(splits) if given is None else [float(number) for number in given]
        if len(numbers[word]) != len(splits):
            raise UsageError(f"{name}: {len(splits)} adapters but {len(numbers[word])} {word}; give one for each")
    for path in dict.fromkeys(path for split in splits for path in split.train):
        having = [i for i, split in enumerate(splits) if path in split.train]
        form = splits[having[0]].state[path]
        dtype = jnp.result_type(*[splits[i].train[path][part].dtype for i in having for part in "ab"])
        found = []
        for i in having:
            a, b = (splits[i].train[path][part].astype(wide(dtype)) for part in "ab")
            stack = a.ndim - 1 - len(form.in_axes)
            a, b = a.reshape(*a.shape[:stack], -1, a.shape[-1]), b.reshape(*b.shape[: stack + 1], -1)
            if found and (a.shape[:-1], b.shape[-1]) != (found[0].a.shape[:-1], found[0].b.shape[-1]):
                raise UsageError(f"{name}: {path} has other shapes in split {i}; combine adapters of one model")
            found.append(Part(a, b, numbers["scales"][i], numbers["weights"][i]))
        yield path, found, form, dtype
