"""Chains, partitions, injected numbers: what is threaded where, and what a config rebuilds."""

import functools
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxbig import checkpoint
from jaxbig.compress.merge import merge
from jaxbig.compress.prune import prune
from jaxbig.compress.quantize import quantize
from jaxbig.errors import UsageError, UserError
from jaxbig.inject import inject_hyperparams
from jaxbig.lift import lift
from jaxbig.objective import Aux
from jaxbig.optim import Optimizer
from jaxbig.partition import partition
from jaxbig.registry import build
from jaxbig.step import init_state, make_step, reset_slots
from jaxbig.transform import Split, Transform, chain, key_for, technique
from jaxbig.tree import paths
from jaxbig.tune.bitfit import bitfit
from jaxbig.tune.full import freeze, full
from jaxbig.tune.lora import lora
from jaxbig.usage import usage

KEY = jax.random.key(0)
X = jnp.linspace(-1, 1, 12).reshape(3, 4)
PARAMS = {
    "body": {"kernel": jnp.linspace(-1, 1, 24).reshape(4, 6), "bias": jnp.ones(6)},
    "head": {"kernel": jnp.linspace(1, 2, 12).reshape(6, 2), "bias": jnp.zeros(2)},
}


def model(params, x):
    return (
        jnp.tanh(x @ params["body"]["kernel"] + params["body"]["bias"]) @ params["head"]["kernel"]
        + params["head"]["bias"]
    )


USES = usage(model, PARAMS, X)


def stir(train):
    return jax.tree.map(lambda leaf: leaf + 0.3, train)


def counting(name, log):
    """A technique that trains nothing, keeps a counter, and writes down in which order it is asked."""

    def init(key, params, uses):
        log.append(("init", name))
        return Split(params, {}, {"steps": jnp.zeros((), jnp.int32)})

    def apply(split, key=None):
        log.append(("apply", name))
        return split.params

    def update(split, grads, step):
        return split._replace(state={"steps": split.state["steps"] + step})

    return Transform(name, init, apply, update)


def test_a_chain_goes_through_its_links_in_order_and_numbers_equal_names():
    log = []
    transform = chain(counting("one", log), counting("two", log), counting("one", log))
    split = transform.init(KEY, PARAMS, USES)
    transform.apply(split)
    assert [name for what, name in log if what == "init"] == ["one", "two", "one"]
    assert [name for what, name in log if what == "apply"] == ["one", "two", "one"]
    assert list(split.train) == list(split.state) == ["one", "two", "one_1"]


def test_links_of_one_kind_draw_from_keys_of_their_own():
    split = chain(lora(rank=2), lora(rank=2)).init(KEY, PARAMS, USES)
    first, second = split.train["lora"]["body/kernel"]["a"], split.train["lora_1"]["body/kernel"]["a"]
    assert bool((first != second).all())


def test_a_leaf_s_key_depends_on_its_path_alone():
    wide = lora(rank=2, where=".*kernel").init(KEY, PARAMS, USES).train["body/kernel"]["a"]
    narrow = lora(rank=2, where="body/kernel").init(KEY, PARAMS, USES).train["body/kernel"]["a"]
    np.testing.assert_array_equal(wide, narrow)
    assert bool(key_for(KEY, "a") != key_for(KEY, "b"))


@pytest.mark.parametrize("mixed", [chain, lambda *links: partition(dict(zip(("head/.*", ".*"), links, strict=True)))])
def test_update_is_threaded(mixed):
    transform = mixed(counting("one", []), counting("two", []))
    split = transform.init(KEY, PARAMS, USES)
    after = jax.jit(transform.update)(split, {"one": {}, "two": {}}, 3)
    assert {name: int(state["steps"]) for name, state in after.state.items()} == {"one": 3, "two": 3}
    jax.tree.map(np.testing.assert_array_equal, after.params, split.params)


def prompt(length):
    """A made-up technique that is no weight: rows put before the input, taken off the output again."""

    def wrap(split, fn):
        def with_prompt(params, x):
            return fn(params, jnp.concatenate([split.train["prompt"], x]))[length:]

        return with_prompt

    return Transform(
        "prompt",
        lambda key, params, uses: Split(params, {"prompt": jnp.ones((length, 4))}, {}),
        lambda split, key=None: split.params,
        wrap=wrap,
    )


def mean_first(params, x):
    """A model whose rows see each other, so that a prompt matters."""
    return model(params, x + x.mean(0))


@pytest.mark.parametrize(
    "transform",
    [
        chain(lora(rank=2), prompt(2), prompt(3)),
        partition({"body/.*": chain(lora(rank=2), prompt(2)), "head/.*": prompt(3)}),
    ],
    ids=["chain", "partition"],
)
def test_wraps_compose(transform):
    split = transform.init(KEY, PARAMS, USES)

    def loss(train, x):
        now = split._replace(train=train)
        y = lift(transform.wrap(now, mean_first))(transform.apply(now), x)
        return (y**2).sum(), y

    (_, y), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(stir(split.train), X)
    assert y.shape == (3, 2)
    prompts = [grad for path, grad in paths(grads).items() if path.endswith("prompt")]
    assert sorted(p.shape for p in prompts) == [(2, 4), (3, 4)]
    assert all(bool((grad != 0).any()) for grad in prompts)
    merged = merge(transform.apply(split._replace(train=stir(split.train))))
    rows = jnp.concatenate([jnp.full((5, 4), 1.3), X])
    np.testing.assert_allclose(y, mean_first(merged, rows)[5:], rtol=1e-5)


def test_a_partition_s_first_match_wins_and_the_rest_is_frozen():
    transform = partition({"head/kernel": full(), ".*/kernel": lora(rank=2)})
    split = transform.init(KEY, PARAMS, USES)
    assert set(paths(split.train)) == {"full/head/kernel", "lora/body/kernel/a", "lora/body/kernel/b"}
    params = transform.apply(split._replace(train=stir(split.train)))
    np.testing.assert_allclose(params["head"]["kernel"], PARAMS["head"]["kernel"] + 0.3)
    assert params["body"]["kernel"].kind() == "LowRank r=2"
    np.testing.assert_array_equal(params["head"]["bias"], PARAMS["head"]["bias"])
    assert jax.tree.structure(merge(params)) == jax.tree.structure(PARAMS)


def test_a_partition_over_quantised_leaves():
    transform = chain(quantize("int8"), partition({"head/.*": lora(rank=1, where="head/kernel"), ".*": bitfit()}))
    split = transform.init(KEY, PARAMS, USES)
    assert set(paths(split.train)) == {
        "partition/bitfit/body/bias", "partition/lora/head/kernel/a", "partition/lora/head/kernel/b"}  # fmt: skip
    assert transform.apply(split)["head"]["kernel"].kind() == "LowRank(Quantized int8) r=1"


def test_a_pattern_that_matches_nothing_is_an_error_that_names_what_is_near():
    with pytest.raises(UsageError, match=r"^where='boddy/kernel' matches no parameter; .*body/kernel"):
        partition({"boddy/kernel": lora(), ".*": freeze()}).init(KEY, PARAMS, USES)


def test_a_sweep_over_an_injected_number_is_a_vmap_and_compiles_once():
    transform = inject_hyperparams(lora)(rank=2, alpha=1.0)
    split = transform.init(KEY, PARAMS, USES)
    split = split._replace(train=stir(split.train))
    count = []

    def at(alpha):
        count.append(1)
        state = {**split.state, "hyperparams": {**split.state["hyperparams"], "alpha": alpha}}
        return lift(model, strict=True)(transform.apply(split._replace(state=state)), X)

    alphas = jnp.array([0.5, 1.0, 8.0])
    swept = jax.jit(jax.vmap(at))(alphas)
    one, seen = jax.jit(at), len(count)
    for i, alpha in enumerate(alphas):
        np.testing.assert_allclose(swept[i], one(alpha), rtol=1e-5, atol=1e-6)
        plain = lora(rank=2, alpha=float(alpha)).apply(split._replace(state=split.state["inner"]))
        np.testing.assert_allclose(swept[i], lift(model)(plain, X), rtol=1e-5, atol=1e-6)
    assert (seen, len(count)) == (1, 2)


def test_an_injected_number_that_only_the_init_reads_does_no_harm():
    transform = inject_hyperparams(prune)(sparsity=0.25)
    split = transform.init(KEY, PARAMS, USES)
    masked = jax.jit(transform.apply)(split)
    assert float(masked["body"]["kernel"].mask.mean()) == 0.75


CONFIGS = [
    chain(quantize("nf4", group=2), lora(rank=2, alpha=3.0, where=["body/.*kernel", "head/kernel"]), bitfit()),
    partition({"head/.*": full(), ".*": chain(prune(0.5), lora(rank=1))}),
    chain(inject_hyperparams(lora)(rank=2, alpha=4.0), bitfit()),
    inject_hyperparams(lora)(rank=2, dropout=0.5),
    partition({("head/kernel", "body/kernel"): lora(rank=2), ".*bias": full()}),
    lora(rank=np.int64(2), alpha=np.float32(3), where=("body/.*kernel", "head/kernel"), dropout=jnp.float32(0.5)),
]


@pytest.mark.parametrize("transform", CONFIGS)
def test_a_config_survives_json_and_rebuilds_the_same_transform(transform):
    again = build(json.loads(json.dumps(transform.config)))
    ours, theirs = transform.init(KEY, PARAMS, USES), again.init(KEY, PARAMS, USES)
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)
    key = jax.random.key(9)
    one = lift(model)(transform.apply(ours._replace(train=stir(ours.train)), key), X)
    np.testing.assert_array_equal(one, lift(model)(again.apply(theirs._replace(train=stir(theirs.train)), key), X))
    assert again.config == transform.config == json.loads(json.dumps(transform.config))


def test_a_partition_by_several_patterns_can_be_saved(tmp_path):
    transform = partition({("head/kernel", "body/kernel"): lora(rank=2), ".*bias": full()})
    checkpoint.save(tmp_path, 0, transform.init(KEY, PARAMS, USES), {"transform": transform.config})
    assert build(checkpoint.read_manifest(tmp_path)["transform"]).config == transform.config


@technique
def doubled(where: Any = None) -> Transform:
    """A technique of the user's own."""
    return full(where)._replace(name="doubled")


def test_a_technique_of_the_users_own_is_rebuilt_by_its_name():
    for transform in (doubled(where="head/.*"), chain(lora(rank=2), doubled()), inject_hyperparams(doubled)()):
        assert build(json.loads(json.dumps(transform.config))).config == transform.config


def test_two_techniques_of_one_name_are_told_apart():
    def lora(rank: int = 1) -> Transform:
        return freeze()

    with pytest.raises(
        UsageError, match=r"technique lora: jaxbig\.tune\.lora and .*test_transform both .*; rename yours"
    ):
        technique(lora)
    assert build({"technique": "lora", "rank": 3}).config["rank"] == 3

    def many(*links) -> Transform:
        return freeze()

    with pytest.raises(UsageError, match=r"technique many: takes .*; name its parameters"):
        technique(many)


def test_numbers_are_injected_into_the_links_of_a_chain():
    for mixed in (
        lambda: inject_hyperparams(chain)(quantize("int8"), lora(rank=2)),
        lambda: inject_hyperparams(partition)({".*": lora(rank=2)}),
    ):
        with pytest.raises(UsageError, match="takes transforms, not numbers; inject into each link"):
            mixed()
    split = chain(quantize("nf4", group=2), inject_hyperparams(lora)(rank=2)).init(KEY, PARAMS, USES)
    assert set(split.state["lora"]["hyperparams"]) == {"dropout"}


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"technique": "lorra"}, "no technique is called 'lorra'; import the module that defines it"),
        ({"technique": "inject_hyperparams", "of": {"technique": "lorra"}}, "no technique is called 'lorra'"),
        ({"technique": "lora", "ranks": 3}, "another version"),
    ],
)
def test_a_config_that_cannot_be_built_says_why(config, words):
    with pytest.raises(UsageError, match=words):
        build(config)


def test_a_chain_nests():
    inner = chain(lora(rank=2), bitfit())
    split = chain(quantize("int8"), inner).init(KEY, PARAMS, USES)
    assert set(split.train) == {"quantize", "chain"}
    assert set(split.train["chain"]) == {"lora", "bitfit"}


def test_whole_numbers_for_floating_arguments_are_injected_too():
    split = inject_hyperparams(lora)(rank=2, alpha=8, where="w").init(
        jax.random.key(0),
        {"w": jnp.ones((4, 3))},
        usage(lambda p, x: x @ p["w"], {"w": jnp.ones((4, 3))}, jnp.ones((1, 4))),
    )
    assert sorted(split.state["hyperparams"]) == ["alpha", "dropout"]


def restarting(every: int) -> Transform:
    """Trains `body/kernel`, and every so many steps has the slots of its first column start again."""

    def reset(split, step):
        first = jnp.arange(split.train["body/kernel"].shape[1]) == 0
        return {"body/kernel": first & ((step + 1) % every == 0)}

    return full(where="body/kernel")._replace(name="restarting", reset=reset)


RESETTING = {
    "alone": (restarting(2), ""),
    "in a chain": (chain(lora(rank=2, where="head/kernel"), restarting(2)), "restarting/"),
    "in a partition": (partition({"head/.*": full(), ".*": restarting(2)}), "restarting/"),
    "with numbers injected": (inject_hyperparams(lambda: restarting(2))(), ""),
}


@pytest.mark.parametrize(("transform", "name"), RESETTING.values(), ids=RESETTING)
@pytest.mark.parametrize(
    "optimizer", [pytest.param(optax.adam(0.1), marks=pytest.mark.slow), Optimizer("adamw", 0.1).build()]
)
def test_slots_start_again_where_a_technique_says_so(transform, name, optimizer):
    def objective(params, variables, batch, key):
        loss = jnp.mean(model(params, batch) ** 2)
        return loss, Aux({"loss": (loss, jnp.float32(1))}, variables)

    base, state = init_state(transform.init(KEY, PARAMS, USES), optimizer, KEY)
    step = make_step(objective, transform, optimizer)
    plain = make_step(objective, transform._replace(reset=lambda split, step: {}), optimizer)
    state, _ = step(base, state, X)
    before = jax.tree.map(jnp.array, state)
    untouched, _ = plain(base, jax.tree.map(jnp.array, state), X)
    state, _ = step(base, state, X)  # the second step resets
    path = f"{name}body/kernel"
    moments = {
        where: (paths(before.opt_state)[where], slot, paths(untouched.opt_state)[where])
        for where, slot in paths(state.opt_state).items()
    }
    mine = {where: slots for where, slots in moments.items() if where.endswith(path)}
    assert len(mine) == 2  # both of Adam's
    close = functools.partial(np.testing.assert_allclose, rtol=3e-7)  # two programs: a last bit may differ
    for was, now, kept in mine.values():
        assert (was != 0).all()
        assert (now[:, 0] == 0).all()
        close(now[:, 1:], kept[:, 1:])
    for where, (_, now, kept) in moments.items():
        if where not in mine:
            close(now, kept)
    close(paths(state.split.train)[path], paths(untouched.split.train)[path])


def test_a_reset_that_names_nothing_says_so():
    with pytest.raises(UserError, match="'nowhere' is no trained leaf; there are w"):
        reset_slots((), {"w": jnp.ones(2)}, {"nowhere": jnp.array(True)})
