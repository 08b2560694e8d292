"""CLIP and SigLIP against transformers, read from the files that it writes: ten random configs each, and the towers."""

import functools
import json
import math
import random
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from models.carry import carry, leaves_of, shapes_of

import jaxbig
from jaxbig.compress.merge import merge
from jaxbig.errors import UserError
from jaxbig.hub.load import create
from jaxbig.hub.peft_files import Adapter
from jaxbig.hub.peft_write import write_peft
from jaxbig.lift import lift
from jaxbig.models import CLIP, TextTower, VisionTower, class_embeddings, zero_shot
from jaxbig.models.clip_families import DEFAULTS
from jaxbig.models.families import FAMILIES, family_of
from jaxbig.models.transformer import stack_layers
from jaxbig.objective import contrast
from jaxbig.tree import paths
from jaxbig.tune.lora import lora

V, TEXTS, IMAGES = 29, 3, 2
KINDS = {"clip": "CLIP", "siglip": "Siglip"}
EACH = pytest.mark.parametrize(
    "kind", [pytest.param("clip", marks=pytest.mark.slow), "siglip"]
)  # SigLIP has all that CLIP has, and a pool


def config(kind, number):
    """The fields of random config `number`: odd sizes, images that patches do not tile, towers of different shapes."""
    rng = random.Random(f"{kind} {number}")

    def tower():
        heads = rng.choice([1, 2, 3])
        return {
            "hidden_size": heads * rng.choice([3, 5]), "num_hidden_layers": rng.choice([1, 2, 3]),
            "num_attention_heads": heads, "intermediate_size": rng.choice([7, 12]),
            "hidden_act": rng.choice(["quick_gelu", "gelu", "gelu_pytorch_tanh"]),
            "layer_norm_eps": rng.choice([1e-6, 1e-3]),
        }  # fmt: skip

    text, vision = tower(), tower()
    patch = rng.choice([2, 3, 4])
    vision |= {"patch_size": patch, "image_size": patch * rng.choice([2, 3]) + rng.choice([0, 1])}
    vision |= {"num_channels": rng.choice([1, 3])}
    text |= {"vocab_size": V, "max_position_embeddings": rng.choice([7, 9]), "pad_token_id": 0, "bos_token_id": 1}
    text |= {"eos_token_id": 2 if rng.random() < 0.4 else V - 1}
    found = {"text_config": text, "vision_config": vision}
    if kind == "siglip":
        text["projection_size"] = vision["hidden_size"]
        return found
    width = rng.choice([5, 6])
    text["projection_dim"] = vision["projection_dim"] = width
    return found | {"projection_dim": width, "logit_scale_init_value": 1.3}


def theirs(torch, folder, kind, number):
    """transformers' model, written to a folder."""
    import transformers

    name = KINDS[kind]
    made = getattr(transformers, name + "Config")(**config(kind, number))
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made._attn_implementation = "eager"
        model = getattr(transformers, name + "Model")(made).double().eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.3 * torch.randn(parameter.shape, dtype=parameter.dtype))
        model.save_pretrained(folder)
    return model


def pair(torch, folder, kind, number, **options):
    """(their model, our family, module and parameters), from a saved folder's names."""
    from safetensors.numpy import load_file

    model = theirs(torch, folder, kind, number)
    fields = model.config.to_dict() | {"architectures": [KINDS[kind] + "Model"]}
    family = family_of(fields)
    module = family.module(fields, "contrastive", **options)
    return model, family, module, carry(module, family, load_file(folder / "model.safetensors"))


def batch(module, side=None, texts=TEXTS, images=IMAGES):
    """Ids with ends in them, an attention mask that hides what follows those, and images."""
    rng = np.random.default_rng(0)
    ids = rng.integers(3, V - 1, (texts, 7))
    mask = np.ones_like(ids)
    for row in range(texts):
        end = 6 - 2 * row % 5
        ids[row, end], mask[row, end + 1 :] = V - 1, 0
    side = module.vision.image if side is None else side
    return ids, mask, rng.normal(size=(images, side, side + (side != module.vision.image), module.vision.channels))


def given(torch, ids, mask, x):
    more = {} if mask is None else {"attention_mask": torch.tensor(mask)}
    return {"input_ids": torch.tensor(ids), "pixel_values": torch.tensor(np.moveaxis(x, -1, 1))} | more


@pytest.mark.parity
@pytest.mark.parametrize("number", [pytest.param(n, marks=[pytest.mark.slow] * (n > 1)) for n in range(10)])
@pytest.mark.parametrize("kind", KINDS)
def test_outputs(torch64, tmp_path, kind, number):
    """With padding and without, images of the size that positions are for and of another, scanned or not."""
    model, _, module, params = pair(torch64, tmp_path, kind, number, scan_layers=number % 2 == 1)
    called = jax.jit(module.apply)
    for padded, side in ((True, None), (False, 2 * module.vision.patch + 5)):
        ids, mask, x = batch(module, side)
        mask = mask if padded else None
        more = {} if side is None else {"interpolate_pos_encoding": True}
        with torch64.no_grad():
            found = model(**given(torch64, ids, mask, x), **more)
        expected = found.logits_per_image.numpy()
        ours = called({"params": params}, ids, x, segments=mask)
        assert ours.shape == expected.shape == (IMAGES, TEXTS)
        np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-9 * np.abs(expected).max())
        for method, arguments, name in (
            ("encode_text", (ids, None, mask), "text_embeds"),
            ("encode_image", (x,), "image_embeds"),
        ):
            one = module.apply({"params": params}, *arguments, method=method)
            one = one / np.linalg.norm(one, axis=-1, keepdims=True)
            np.testing.assert_allclose(one, found[name].numpy(), rtol=0, atol=1e-9)


@pytest.mark.parity
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_and_loss(torch64, tmp_path, kind):
    """Gradients of every parameter; our objective, in float32, is their ``return_loss=True``."""
    from safetensors.numpy import load_file

    model, family, module, params = pair(torch64, tmp_path, kind, 1, scan_layers=True, remat=True)
    ids, mask, x = batch(module, images=TEXTS)
    found = model(**given(torch64, ids, mask, x), return_loss=True)
    (found.logits_per_image**2).sum().backward()
    for parameter in model.parameters():  # the file writes names; let it write the gradients under them
        parameter.data = parameter.grad if parameter.grad is not None else torch64.zeros_like(parameter)
    model.save_pretrained(tmp_path)

    def squares(params):
        return jnp.square(module.apply({"params": params}, ids, x, segments=mask)).sum()

    ours = paths(jax.jit(jax.grad(squares))(params))
    expected, _ = leaves_of(module, family, load_file(tmp_path / "model.safetensors"))
    assert ours.keys() == expected.keys()
    for path, leaf in ours.items():
        np.testing.assert_allclose(leaf, expected[path], rtol=0, atol=1e-9 * np.abs(expected[path]).max() + 1e-9)
    inputs = ("text", "image", "at", "seen")
    objective = contrast(module, loss="sigmoid" if kind == "siglip" else "softmax", inputs=inputs)
    loss, _ = objective(params, {}, {"text": ids, "image": x, "at": np.arange(7), "seen": mask}, None)
    np.testing.assert_allclose(loss, found.loss.item(), rtol=1e-6)


@pytest.mark.parity
@pytest.mark.parametrize("kind", KINDS)
def test_dropout_falls_where_theirs_falls(torch64, tmp_path, kind, scaled_dropout):
    model, _, module, params = pair(torch64, tmp_path, kind, 2)
    for each in model.modules():
        if type(each).__name__.endswith(("CLIPAttention", "SiglipAttention")):
            each.dropout = 0.23
    towers = (tower.clone(attention_dropout=0.23) for tower in (module.text, module.vision))
    module = module.clone(**dict(zip(("text", "vision"), towers, strict=True)))
    ids, mask, x = batch(module)
    with torch64.no_grad():
        expected = model.train()(**given(torch64, ids, mask, x)).logits_per_image.numpy()
    ours = module.apply({"params": params}, ids, x, segments=mask, train=True)
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-9 * np.abs(expected).max())
    assert np.abs(module.apply({"params": params}, ids, x, segments=mask) - expected).max() > 1e-3


@pytest.mark.parity
@pytest.mark.parametrize("kind", KINDS)
def test_a_tower_of_the_whole_file(torch64, tmp_path, kind):
    """Loaded from the folder of both, as transformers can; written again, it is a tower that transformers loads."""
    import transformers

    model = theirs(torch64, tmp_path / "whole", kind, 4)
    module = jaxbig.load(tmp_path / "whole").module
    ids, _, x = batch(module)
    x_torch = torch64.tensor(np.moveaxis(x, -1, 1))
    for part, inputs, their in (
        ("text", ids, {"input_ids": torch64.tensor(ids)}),
        ("vision", x, {"pixel_values": x_torch}),
    ):
        ours = jaxbig.load(tmp_path / "whole", family=FAMILIES[f"{kind}_{part}_model"])
        assert ours.task == "features"
        assert ours.fresh == ()
        again = jaxbig.save(ours, ours.params, tmp_path / part)
        cls = getattr(transformers, f"{KINDS[kind]}{part.capitalize()}Model")
        tower = cls.from_pretrained(again, dtype=torch64.float64, attn_implementation="eager")
        with torch64.no_grad():
            expected, alone = getattr(model, f"{part}_model")(**their), tower.eval()(**their)
        for mine, name in zip(ours.apply(ours.params, inputs), ("last_hidden_state", "pooler_output"), strict=True):
            np.testing.assert_allclose(mine, expected[name].numpy(), rtol=0, atol=1e-9)
            np.testing.assert_allclose(alone[name].numpy(), expected[name].numpy(), rtol=0, atol=1e-12)
    other = "clip" if kind == "siglip" else "siglip"
    with pytest.raises(UserError, match="model_type is"):
        jaxbig.load(tmp_path / "whole", family=FAMILIES[f"{other}_text_model"])


@pytest.mark.parity
def test_fields_that_are_left_out_are_transformers_defaults(torch):
    import transformers

    for kind, name in KINDS.items():
        for part in ("text", "vision"):
            known = getattr(transformers, f"{name}{part.capitalize()}Config")().to_dict()
            told = DEFAULTS[f"{kind}_{part}_model"]
            assert told == {field: known[field] for field in told}
        fields = getattr(transformers, f"{name}Config")().to_dict()
        family = FAMILIES[kind]
        assert family.module({"model_type": kind}, "contrastive") == family.module(fields, "contrastive")
    older = {"text_config": {"hidden_act": "gelu", "hidden_size": 64}, "text_config_dict": {"hidden_size": 128}}
    known, ours = transformers.CLIPConfig(**older).text_config, FAMILIES["clip"].module(older, "contrastive").text
    assert (ours.width, ours.activation) == (known.hidden_size, known.hidden_act) == (128, "quick_gelu")


TEXT = {"vocabulary": V, "width": 8, "layers": 2, "heads": 2, "hidden": 12, "length": 9}
VISION = {"image": 9, "patch": 4, "width": 6, "layers": 2, "heads": 3, "hidden": 8}
PROJECTED = {"projection": 5, "task": "projection"}
WHOLE = {
    "clip": lambda **how: CLIP(
        TextTower(**TEXT, eos=V - 1, **PROJECTED, **how), VisionTower(**VISION, **PROJECTED, **how)
    ),
    "siglip": lambda **how: CLIP(
        TextTower(**TEXT, causal=False, pool="last", projection=6, bias=True, **how),
        VisionTower(**VISION, pool="attention", **how),
        math.log(10),
        -10.0,
    ),
}  # fmt: skip


def drawn(module, *inputs):
    rng, shapes = np.random.default_rng(1), jax.eval_shape(module.init, jax.random.key(0), *inputs)["params"]
    return jax.tree.map(lambda leaf: rng.normal(0, 0.3, leaf.shape).astype(np.float32), shapes)


@EACH
def test_scanned_with_remat_is_unrolled(kind):
    module, scanned = WHOLE[kind](), WHOLE[kind](scan_layers=True, remat=True)
    ids, mask, x = batch(module)
    x = x.astype(np.float32)
    params = drawn(module, ids, x)
    stacked = {name: stack_layers(leaf) if isinstance(leaf, dict) else leaf for name, leaf in params.items()}
    ours = jax.jit(scanned.apply)({"params": stacked}, ids, x, segments=mask)
    np.testing.assert_allclose(ours, jax.jit(module.apply)({"params": params}, ids, x, segments=mask), atol=1e-5)
    assert ours.dtype == jnp.float32


def test_what_stands_for_a_text():
    """The first end, the highest id, or the last token; what follows a causal end counts for nothing."""
    ids = np.array([[3, 9, 5, 9, 4], [9, 3, 4, 20, 5], [4, 4, 4, 4, 4]])
    tower = TextTower(**TEXT | {"layers": 1}, eos=9)
    params, rows = drawn(tower, ids), np.arange(3)
    other = ids.copy()
    other[:, 2:] = 7
    called = jax.jit(lambda pool, ids: tower.clone(pool=pool).apply({"params": params}, ids), static_argnums=0)
    for pool, places in (("eos", [1, 0, 0]), ("highest", [1, 3, 0]), ("last", [4, 4, 4])):
        states, pooled = called(pool, ids)
        np.testing.assert_array_equal(pooled, np.asarray(states)[rows, places])
    np.testing.assert_allclose(called("eos", ids)[1], called("eos", other)[1], atol=1e-6)


def test_zero_shot_classification_is_its_equations():
    rng = np.random.default_rng(0)
    images, prompts, there = (
        rng.normal(size=(4, 5)),
        rng.normal(size=(3, 2, 5)),
        np.array([[1, 1], [1, 0], [1, 1]], bool),
    )
    classes = []
    for each, its in zip(prompts, there, strict=True):
        mean = np.mean([prompt / np.linalg.norm(prompt) for prompt in each[its]], axis=0)
        classes.append(mean / np.linalg.norm(mean))
    found = class_embeddings(jnp.asarray(prompts), jnp.asarray(there))
    np.testing.assert_allclose(found, classes, rtol=1e-5)
    expected = 7 * images / np.linalg.norm(images, axis=1, keepdims=True) @ np.array(classes).T - 2
    np.testing.assert_allclose(zero_shot(jnp.asarray(images), found, 7.0, -2.0), expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(UserError, match="one width"):
        zero_shot(jnp.ones((1, 3)), jnp.ones((2, 4)))
    with pytest.raises(UserError, match="class_embeddings: prompts"):
        class_embeddings(jnp.ones((2, 3)))


FIELDS = {
    part: {"hidden_size": 6, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 7} | more
    for part, more in {
        "text": {"vocab_size": 11, "max_position_embeddings": 8, "projection_dim": 5},
        "vision": {"image_size": 8, "patch_size": 4, "projection_dim": 5},
    }.items()
}
BOTH = {"text_config": FIELDS["text"], "vision_config": FIELDS["vision"], "projection_dim": 5}


@pytest.mark.parametrize(
    ("kind", "task"),
    [
        (name, task)
        for name, family in FAMILIES.items()
        if name.startswith(("clip", "siglip"))
        for task in family.architectures.values()
    ],
)
def test_the_table_tells_each_leaf_once(kind, task):
    family, part = FAMILIES[kind], kind.split("_")[1:2]
    module = family.module(FIELDS[part[0]] if part else BOTH, task)
    told = [path.format(0) for path, _, _ in family.tensors(module)]
    assert sorted(told) == sorted(shapes_of(module, family))


@functools.cache
def made(kind):
    return create(BOTH | {"model_type": kind, "architectures": [f"{KINDS[kind]}Model"]})


@EACH
def test_there_and_back_without_torch(tmp_path, kind):
    """Made, written, read, whole and a tower; options reach both towers."""
    model = made(kind)
    folder = jaxbig.save(model, model.params, tmp_path / "whole")
    again = jaxbig.load(folder, scan_layers=True, compute_dtype="bfloat16")
    assert (again.module.text.scan_layers, again.module.vision.dtype, again.unused) == (True, "bfloat16", ())
    jax.tree.map(np.testing.assert_array_equal, jaxbig.load(folder).params, model.params)
    for part in ("text", "vision"):
        tower = jaxbig.load(folder, family=FAMILIES[f"{kind}_{part}_model"])
        for path, leaf in paths(tower.params).items():
            np.testing.assert_array_equal(leaf, paths(model.params[part])[path])
    begins = {"clip": [2.6592], "siglip": [math.log(10), -10]}[kind]
    assert [
        float(model.params[name].squeeze()) for name in ("logit_scale", "logit_bias")[: len(begins)]
    ] == pytest.approx(begins)


@EACH
def test_lora_on_the_unedited_model_stays_factored(kind):
    model = made(kind)
    ids, x = jnp.array([[1, 4, 10, 0], [1, 10, 0, 0]]), jax.random.normal(jax.random.key(0), (2, 8, 8, 3))
    transform = lora(rank=2)
    split = transform.init(jax.random.key(1), model.params, model.uses)
    kernels = {path for path in paths(model.params) if path.endswith("kernel")}
    assert kernels == set(split.train)
    moved = jax.tree.map(lambda leaf: leaf + 0.1 * jnp.ones_like(leaf), split.train)

    @jax.jit
    def both(train):
        tree = transform.apply(split._replace(train=train))
        return lift(model.apply, strict=True)(tree, ids, x), model.apply(merge(tree), ids, x)

    ours, merged = both(moved)
    jax.eval_shape(jax.grad(lambda train: both(train)[0].sum()), moved)
    np.testing.assert_allclose(ours, merged, rtol=1e-4, atol=1e-4)


def test_an_adapter_of_the_pool_is_none_of_peft_s(tmp_path):
    """Its queries, keys and values are one tensor of a torch module that PEFT treats as a whole; others are written."""
    model = made("siglip")
    for where, says in ((None, r"vision/pool/qkv/kernel is part of torch's"), (".*(query|up)/kernel", None)):
        technique = lora(rank=2, where=where)
        adapter = Adapter(technique, technique.init(jax.random.key(1), model.params, model.uses), {})
        if says is None:
            assert "base_model.model.vision_model.head.mlp.fc1.lora_A.weight" in write_peft(
                tmp_path / "adapter", adapter, model.uses, model.names
            )
            continue
        with pytest.raises(UserError, match=says):
            write_peft(tmp_path / "adapter", adapter, model.uses, model.names)


def shapes(module, *arguments):
    """What asking for a module's parameters says, nothing computed."""
    return jax.eval_shape(module.init, jax.random.key(0), *arguments)


ROW, PICTURE = np.ones((1, 3), int), np.ones((1, 9, 9, 3))


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda: shapes(TextTower(**TEXT | {"heads": 3}, eos=1), ROW), "multiple of"),
        (lambda: shapes(TextTower(**TEXT, eos=1), np.ones((1, 10), int)), "10 tokens, and 9 positions"),
        (lambda: shapes(TextTower(**TEXT), ROW), "give eos="),
        (lambda: shapes(TextTower(**TEXT, eos=1, pool="mean"), ROW), "pool='mean'"),
        (lambda: shapes(TextTower(**TEXT, eos=1, task="projection"), ROW), "give projection="),
        (lambda: shapes(VisionTower(**VISION), np.ones((1, 3, 9, 3))), "hold no patch"),
        (lambda: shapes(VisionTower(**VISION), np.ones((1, 9, 9, 1))), "1 channels, the model 3"),
        (lambda: shapes(VisionTower(**VISION | {"heads": 4}), PICTURE), "multiple of"),
        (lambda: shapes(VisionTower(**VISION, pool="eos"), PICTURE), "pool='eos'"),
        (lambda: shapes(VisionTower(**VISION, task="projection"), PICTURE), "needs the width"),
        (lambda: shapes(CLIP(TextTower(**TEXT, eos=1), VisionTower(**VISION)), ROW, PICTURE), "have width 6, those of"),
        (lambda: shapes(CLIP(TextTower(**TEXT, eos=1), VisionTower(**VISION, pool=None)), ROW, PICTURE), "has no pool"),
        (lambda: FAMILIES["clip"].module({"text_config": 3}, "contrastive"), "text_config or text_config_dict is no"),
        (lambda: FAMILIES["clip"].module({}, "features"), "clip: no head for the task 'features'"),
        (lambda: FAMILIES["clip_text_model"].module({"eos_token_id": [1, 2]}, "features"), r"eos_token_id is \[1, 2\]"),
        (
            lambda: create({"model_type": "siglip", "architectures": ["SiglipModel"]}, num_classes=3),
            "no option 'num_classes'",
        ),
    ],
)
def test_errors_say_what_to_change(act, message):
    with pytest.raises(UserError, match=message):
        act()


def test_layers_of_a_tower_are_checked_before_they_are_built(tmp_path):
    """As those of a model at the top of config.json are."""
    model = made("siglip")
    folder = jaxbig.save(model, model.params, tmp_path / "whole")
    told = json.loads((folder / "config.json").read_text())
    told["text_config"]["num_hidden_layers"] = 10**9
    (folder / "config.json").write_text(json.dumps(told))
    with pytest.raises(UserError, match="text_config: num_hidden_layers is 1000000000"):
        jaxbig.load(folder)


def test_published_sizes_have_their_number_of_parameters():
    """CLIP ViT-B/32: 151,277,313; its config's parts hold nothing but what differs from the defaults."""
    module = FAMILIES["clip"].module({"text_config": {}, "vision_config": {}}, "contrastive", scan_layers=True)
    leaves = jax.eval_shape(module.init, jax.random.key(0), *FAMILIES["clip"].example(module))
    assert sum(leaf.size for leaf in jax.tree.leaves(leaves)) == 151_277_313
