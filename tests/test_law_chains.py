"""The laws over chains: every ordered pair of techniques, triples that cover the pairs, and chains without sense."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from law_models import Case
from law_trial import (
    BASIC,
    KINDS,
    called,
    check_base_is_safe,
    check_every_leaf_learns,
    check_factored_is_merged,
    jit,
    rebuilt,
    run_trial,
    shapes,
    stir,
    tiers,
)

from jaxbig import checkpoint, registry
from jaxbig.compress.merge import merge
from jaxbig.errors import UsageError
from jaxbig.registry import REGISTRY
from jaxbig.transform import chain
from jaxbig.usage import usage

QUANTISERS = ("int8", "int4", "nf4", "loftq")
TAKEN = ("bitfit", "ln_tuning")  # whose second of a chain finds nothing left
REWRITING = ("pissa", "olora", "loftq")  # which take their start out of a plain array
WEIGHTS = (*QUANTISERS, "prune", "2:4")  # after which a leaf is none


def apply(params, ids, key=None):
    """A table, a norm, two layers and a head: the smallest model on which every technique has something to do."""
    x = params["table"][ids]
    x = x / jnp.sqrt((x**2).mean(-1, keepdims=True)) * params["norm"]["scale"]
    x = jnp.tanh(x @ params["value"]["kernel"] + params["value"]["bias"])
    x = x + x.mean(axis=-2, keepdims=True)
    x = x + jnp.tanh(x) @ params["second"]["kernel"] + params["second"]["bias"]
    return x @ params["head"]


def _model() -> Case:
    random = np.random.default_rng(0)
    shape = {"table": (7, 8), "norm": {"scale": (8,)}, "value": {"kernel": (8, 12), "bias": (12,)},
             "second": {"kernel": (12, 12), "bias": (12,)}, "head": (12, 5)}  # fmt: skip
    params = jax.tree.map(
        lambda size: jnp.asarray(random.normal(size=size), jnp.float32), shape, is_leaf=lambda x: isinstance(x, tuple)
    )
    return Case(apply, params, jnp.array([[0, 3, 6], [5, 5, 1]]))


MODEL = _model()
USES = usage(apply, MODEL.params, MODEL.inputs)


def why_not(names) -> str | None:
    """What the error of a chain has to say, or None for a chain that makes sense.

    `full` takes every leaf that has no codes, so that only codes are left to those that follow; BitFit takes every
    bias, LN-tuning every scale; tables are not coded; codes cannot be quantised again; what takes its start from a
    weight takes it from an array.
    """
    seen = set()
    for name in names:
        if (
            name in REWRITING
            and seen & set(WEIGHTS)
            and ("full" not in seen or seen_before_full(names) & set(QUANTISERS))
        ):
            return "starts from a plain array"
        if name in QUANTISERS and seen & set(QUANTISERS) and "full" not in seen:
            return "quantised already"
        if "full" in seen and name != "freeze":
            coded = bool(seen_before_full(names) & set(QUANTISERS))
            if name in QUANTISERS and coded:
                return "quantised already"
            if not (coded and name not in (*TAKEN, "trainable_tokens", *QUANTISERS, "full")):
                return "belong to other links"
        if name in TAKEN and name in seen:
            return "belong to other links"
        seen.add(name)
    return None


def seen_before_full(names) -> set:
    return set(itertools.takewhile(lambda name: name != "full", names))


def build(names):
    return chain(*[REGISTRY[name].factory(**REGISTRY[name].arguments[0]) for name in names])


def check(names):
    transform = build(names)
    reason = why_not(names)
    if reason is not None:
        with pytest.raises(UsageError, match=r"^[^\n]*$") as caught:
            transform.init(jax.random.key(5), MODEL.params, USES)
        assert reason in str(caught.value)
        return
    if sum(REGISTRY[name].prompts for name in names) > 1:
        split = transform.init(jax.random.key(5), MODEL.params, USES)
        with pytest.raises(UsageError, match=r"virtual tokens.*give one of them more"):
            called(transform, split, apply)(MODEL.inputs)
        return
    tried = run_trial(transform, MODEL, MODEL, USES)
    check_factored_is_merged(tried)
    check_base_is_safe(tried)
    check_every_leaf_learns(tried)
    assert tried.traces == 1
    if all(REGISTRY[name].identity for name in names):
        jax.tree.map(np.testing.assert_array_equal, tried.at_init.tree, MODEL.params)
    template = jax.eval_shape(lambda: rebuilt(transform).init(jax.random.key(5), MODEL.params, USES))
    assert jax.tree.structure(template) == jax.tree.structure(tried.split)
    assert shapes(jax.tree.leaves(template)) == shapes(jax.tree.leaves(tried.split))


PAIRS = list(itertools.product(BASIC, repeat=2))
OTHERS = [name for name in REGISTRY if name not in BASIC]


def test_pairs_without_sense_say_why():
    for names in [names for names in PAIRS if why_not(names)]:
        check(names)


@pytest.mark.slow  # what makes sense comes in the triples too
@pytest.mark.parametrize("names", [names for names in PAIRS if not why_not(names)], ids="+".join)
def test_pairs(names):
    check(names)


def in_the_middle():
    """Each other technique over codes or a mask and under the next one and BitFit; what rewrites its base over an
    adapter instead."""
    below = itertools.cycle(["nf4", "prune", "int8", "2:4", "int4"])
    adapters = [name for name in OTHERS if name not in REWRITING]
    for name, following in zip(adapters, adapters[1:] + adapters[:1], strict=True):
        yield (next(below), name, following, "bitfit")
    for i, name in enumerate(REWRITING):
        yield (adapters[i], name, adapters[i + 1], "bitfit")


@pytest.mark.parametrize("names", tiers(in_the_middle(), lambda n: n[1] in (*KINDS, *REWRITING[:2])), ids="+".join)
def test_each_other_technique_in_the_middle(names):
    check(names)


# The same rows replaced twice: the first link's are never read, and learn nothing (`test_trainable_tokens.py`).
HIDDEN = ("trainable_tokens", "trainable_tokens")
ALL_PAIRS = [
    names for names in itertools.product(REGISTRY, repeat=2) if not set(names) <= set(BASIC) and names != HIDDEN
]


@pytest.mark.slow
@pytest.mark.parametrize("names", ALL_PAIRS, ids="+".join)
def test_all_pairs(names):
    check(names)


def covering_triples():
    """Triples in which every ordered pair that makes sense comes as first and second, second and third, and apart."""
    good = [names for names in PAIRS if why_not(names) is None and names[0] != names[1] and "freeze" not in names]
    wanted = {(places, pair) for pair in good for places in ((0, 1), (1, 2), (0, 2))}
    triples = [t for t in itertools.product(BASIC, repeat=3) if why_not(t) is None and "freeze" not in t]
    chosen = []
    while wanted:
        gains = {t: {(p, (t[p[0]], t[p[1]])) for p in ((0, 1), (1, 2), (0, 2))} & wanted for t in triples}
        best = max(triples, key=lambda t: len(gains[t]))
        if not gains[best]:
            return chosen
        chosen.append(best)
        wanted -= gains[best]
    return chosen


TRIPLES = covering_triples()


@pytest.mark.slow  # the fast tier has one in `test_chains_under_scan_remat_and_vmap_and_from_a_checkpoint`
@pytest.mark.parametrize("names", TRIPLES, ids="+".join)
def test_triples(names):
    check(names)


def test_the_triples_cover_every_pair_that_makes_sense():
    covered = {pair for triple in TRIPLES for pair in itertools.combinations(triple, 2)}
    good = {names for names in PAIRS if why_not(names) is None and names[0] != names[1] and "freeze" not in names}
    reachable = {
        pair
        for triple in itertools.product(BASIC, repeat=3)
        if why_not(triple) is None
        for pair in itertools.combinations(triple, 2)
    }
    assert good & reachable <= covered


@pytest.mark.parametrize("names", [("full", "lora", "int8"), ("int4", "lora", "nf4"), ("bitfit", "prune", "bitfit")])
def test_triples_without_sense(names):
    assert why_not(names)
    check(names)


def stacked_model():
    """Three layers, held as a stack, a table and a head; as the scan of a remat, and written out."""
    random = np.random.default_rng(1)
    sizes = {"table": (7, 8), "layers": {"up": (3, 8, 12), "bias": (3, 12), "down": (3, 12, 8)}, "head": (8, 5)}
    params = jax.tree.map(
        lambda size: jnp.asarray(random.normal(size=size) / 2, jnp.float32), sizes, is_leaf=lambda x: type(x) is tuple
    )

    def layer(x, layer):
        return x + jnp.tanh(x @ layer["up"] + layer["bias"]) @ layer["down"]

    def scanned(params, ids):
        body = jax.checkpoint(lambda x, its: (layer(x, its), None), prevent_cse=False)
        return jax.lax.scan(body, params["table"][ids], params["layers"])[0] @ params["head"]

    def written_out(params, ids):
        x = params["table"][ids]
        for i in range(3):
            x = layer(x, jax.tree.map(lambda leaf, i=i: leaf[i], params["layers"]))
        return x @ params["head"]

    return scanned, written_out, params


def covering_pairs():
    """Triples, fewer than above: every pair that makes sense comes in some order and some place."""
    pairs = {names: {frozenset(pair) for pair in itertools.combinations(names, 2)} for names in TRIPLES}
    wanted, chosen = set().union(*pairs.values()), []
    while wanted:
        chosen.append(max(TRIPLES, key=lambda names: len(pairs[names] & wanted)))
        wanted -= pairs[chosen[-1]]
    return chosen


@pytest.mark.parametrize("names", tiers(covering_pairs(), lambda n: set(n) == {"lora", "int4", "2:4"}), ids="+".join)
def test_chains_under_scan_remat_and_vmap_and_from_a_checkpoint(names, tmp_path):
    """Laws 5 and 6: two adapters at once on two inputs, against merged layers written out; and saved to the bit."""
    scanned, written_out, params = stacked_model()
    ids = jnp.array([[0, 3, 6], [5, 5, 1]])
    transform, uses = build(names), usage(scanned, params, ids[0])
    split = transform.init(jax.random.key(5), params, uses)
    trains = [stir(split.train, seed) for seed in (1, 2)]

    def both(train, rest, ids):
        def loss(train):
            logits = called(transform, rest._replace(train=train), scanned)(ids)
            return (logits**2).sum(), logits

        def plain(train):
            logits = written_out(merge(transform.apply(rest._replace(train=train))), ids)
            return (logits**2).sum(), logits

        return [jax.grad(function, has_aux=True)(train) for function in (loss, plain)]

    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *trains)
    ours, theirs = jit(jax.vmap(both, in_axes=(0, None, 0)))(stacked, split._replace(train=None), ids)
    size = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(theirs))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * size), ours, theirs)

    checkpoint.save(tmp_path, 0, split, {"transform": transform.config})
    again = registry.build(checkpoint.read_manifest(tmp_path)["transform"])
    restored = checkpoint.restore(tmp_path, jax.eval_shape(lambda: again.init(jax.random.key(5), params, uses)))
    assert jax.tree.structure(restored) == jax.tree.structure(split)
    for one, other in zip(jax.tree.leaves(restored), jax.tree.leaves(split), strict=True):
        assert one.dtype == other.dtype
        assert np.asarray(one).tobytes() == np.asarray(other).tobytes()


def test_order_means_what_it_says():
    """LoRA over what is pruned stays dense after merging; pruning first and training all keeps the zeros."""
    adapted = run_trial(build(("prune", "lora")), MODEL, MODEL, USES)
    masked = run_trial(build(("prune", "full")), MODEL, MODEL, USES)
    zeros = adapted.at_init.tree["value"]["kernel"] == 0
    assert 0.2 < float(zeros.mean()) < 0.8
    assert bool((adapted.stirred.tree["value"]["kernel"][zeros] != 0).any())
    assert bool((masked.stirred.tree["value"]["kernel"][zeros] == 0).all())


def test_a_base_trained_by_a_later_link_carries_the_update():
    tried = run_trial(build(("lora", "full")), MODEL, MODEL, USES)
    train = {**tried.split.train, "lora": stir(tried.split.train["lora"])}
    plain = tried.transform.apply(tried.split)["value"]["kernel"]
    moved = tried.transform.apply(tried.split._replace(train=train))["value"]["kernel"]
    assert plain.kind() == moved.kind() == "LowRank r=2"
    assert bool((plain.materialise() != moved.materialise()).any())
    logits = called(tried.transform, tried.split._replace(train=train), apply)(MODEL.inputs)
    assert bool((logits != tried.at_init.factored).any())
