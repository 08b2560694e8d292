"""Whisper against transformers, whole and token by token; its spectrograms against the extractor's."""

import functools
import random
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from models.carry import carry, leaves_of, shapes_of

from jaxbig.compress.merge import merge
from jaxbig.compress.quantize import quantize
from jaxbig.errors import UsageError, UserError
from jaxbig.generate.seq2seq import generate
from jaxbig.lift import lift
from jaxbig.models import Whisper, empty_cache, mel_filters, whisper_log_mel
from jaxbig.models.families import FAMILIES, family_of
from jaxbig.transform import chain
from jaxbig.tree import paths
from jaxbig.tune.lora import lora
from jaxbig.usage import usage

V, SPECIAL = 23, {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 3}


def config(number):
    """The fields of random config `number`; the two halves differ."""
    rng = random.Random(f"whisper {number}")
    heads, others = rng.sample([1, 2, 3, 5], 2)
    return SPECIAL | {
        "vocab_size": V, "d_model": 2 * heads * others, "num_mel_bins": rng.choice([3, 5, 8]),
        "encoder_layers": rng.choice([1, 2, 3]), "decoder_layers": rng.choice([1, 2, 3]),
        "encoder_attention_heads": heads, "decoder_attention_heads": others, "encoder_ffn_dim": rng.choice([7, 12]),
        "decoder_ffn_dim": rng.choice([9, 11]), "max_source_positions": rng.choice([3, 7, 10]),
        "max_target_positions": rng.choice([11, 17]), "activation_function": rng.choice(["gelu", "relu", "gelu_new"]),
        "tie_word_embeddings": rng.random() < 0.6, "suppress_tokens": None, "begin_suppress_tokens": None,
        "init_std": 0.3, "num_labels": 5, "classifier_proj_size": 6,
    }  # fmt: skip


def pair(torch, folder, number, kind="ForConditionalGeneration", more=(), **options):
    """(their model, our family, module and parameters), from a saved folder's names; `more` fields of the config."""
    import transformers
    from safetensors.numpy import load_file

    cls = getattr(transformers, "Whisper" + kind)
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = transformers.WhisperConfig(**config(number) | dict(more), attn_implementation="eager")
        model = cls(made).double().eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.3 * torch.randn(parameter.shape, dtype=parameter.dtype))
        model.save_pretrained(folder)
    fields = made.to_dict() | {"architectures": [cls.__name__]}
    family = family_of(fields)
    module = family.module(fields, family.architectures[cls.__name__], **options)
    return model, family, module, carry(module, family, load_file(folder / "model.safetensors"))


def inputs(module, count=6):
    """Spectrograms [3, 2 S, F] and tokens [3, count]."""
    rng = np.random.default_rng(0)
    return rng.normal(size=(3, 2 * module.encoder_length, module.mels)), rng.integers(4, module.vocabulary, (3, count))


def said(torch, model, x, tokens=None, **more):
    given = {} if tokens is None else {"decoder_input_ids": torch.tensor(tokens)}
    with torch.no_grad():
        found = model(torch.tensor(np.swapaxes(x, 1, 2)), **given, **more)
    return (found.logits if hasattr(found, "logits") else found.last_hidden_state).numpy()


def agree(ours, expected):
    assert ours.shape == expected.shape
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-9 * np.abs(expected).max())


@pytest.mark.parity
@pytest.mark.parametrize("number", [pytest.param(n, marks=[pytest.mark.slow] * (n > 1)) for n in range(10)])
def test_outputs(torch64, tmp_path, number):
    """Teacher-forced: logits, or states of a model without a head."""
    kind = "Model" if number % 4 == 3 else "ForConditionalGeneration"
    model, _, module, params = pair(torch64, tmp_path, number, kind, scan_layers=number % 3 == 1)
    x, tokens = inputs(module)
    agree(jax.jit(module.apply)({"params": params}, x, tokens), said(torch64, model, x, tokens))


@pytest.mark.parity
@pytest.mark.parametrize("scan", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_classes_of_sounds(torch64, tmp_path, scan):
    model, _, module, params = pair(torch64, tmp_path, 1, "ForAudioClassification", scan_layers=scan)
    x, _ = inputs(module)
    agree(jax.jit(module.apply)({"params": params}, x), said(torch64, model, x))


@pytest.mark.parity
def test_gradients(torch64, tmp_path):
    model, family, module, params = pair(torch64, tmp_path, 2, scan_layers=True, remat=True)
    x, tokens = inputs(module)
    given = torch64.tensor(np.swapaxes(x, 1, 2)), torch64.tensor(tokens)
    (model(given[0], decoder_input_ids=given[1]).logits ** 2).sum().backward()
    for parameter in model.parameters():  # the file writes names; let it write the gradients under them
        parameter.data = parameter.grad if parameter.grad is not None else torch64.zeros_like(parameter)
    model.save_pretrained(tmp_path)
    from safetensors.numpy import load_file

    loss = lambda params: jnp.square(module.apply({"params": params}, x, tokens)).sum()  # noqa: E731
    ours = paths(jax.jit(jax.grad(loss))(params))
    expected, _ = leaves_of(module, family, load_file(tmp_path / "model.safetensors"))
    assert ours.keys() == expected.keys()
    for path, leaf in ours.items():
        assert np.abs(expected[path]).max() > 0 or path == "encoder/positions", path
        np.testing.assert_allclose(leaf, expected[path], rtol=0, atol=1e-9 * np.abs(expected[path]).max())


@pytest.mark.parity
def test_dropout_falls_where_theirs_falls(torch64, tmp_path, scaled_dropout):
    """The rates are others, and what a rate falls on is scaled by it, on both sides."""
    rates = {"dropout": 0.11, "attention_dropout": 0.23, "activation_dropout": 0.31}
    model, _, module, params = pair(torch64, tmp_path, 0, more=rates)
    x, tokens = inputs(module)
    expected = said(torch64, model.train(), x, tokens)
    agree(jax.jit(lambda: module.apply({"params": params}, x, tokens, train=True))(), expected)


@pytest.mark.parity
def test_padding_before_a_text(torch64, tmp_path):
    """Positions by the mask, as transformers' ``generate`` counts them."""
    model, _, module, params = pair(torch64, tmp_path, 0)
    x, tokens = inputs(module)
    there = np.arange(6) >= np.array([[2], [0], [3]])
    places = np.maximum(there.cumsum(axis=1) - 1, 0)
    more = {"decoder_attention_mask": torch64.tensor(there.astype(int)), "decoder_position_ids": torch64.tensor(places)}
    expected = said(torch64, model, x, tokens, **more)
    call = jax.jit(lambda: module.apply({"params": params}, x, tokens, places, there.astype(int)))
    agree(call()[there], expected[there])


@pytest.mark.parity
@pytest.mark.parametrize("scan", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_greedy_texts(torch64, tmp_path, real_data, scan):
    """Four spoken digits, after a forced start; the features are cut to the few seconds that the model hears."""
    fields = {"max_source_positions": 50, "max_target_positions": 40, "num_mel_bins": 80, "tie_word_embeddings": False}
    model, _, module, params = pair(torch64, tmp_path, 4, more=fields, scan_layers=scan)
    x = np.asarray(whisper_log_mel(jnp.asarray(digits(real_data, 4), jnp.float64), seconds=1))
    start, count = [3, 7, 5, 9], 30
    options = {"decoder_input_ids": torch64.tensor([start] * 4), "max_new_tokens": count, "do_sample": False}
    model.generation_config.eos_token_id = None
    with torch64.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = model.generate(torch64.tensor(np.swapaxes(x, 1, 2)), **options).numpy()
    expected = expected[:, -count:]
    assert len(np.unique(expected)) > 4
    assert (expected != expected[:1]).any()
    assert generate(module, params, x, start=start, max_tokens=count) == expected.tolist()


def digits(real_data, count):
    """Spoken digits of several speakers, float32 [count, S], at 16,000 samples a second by repeating each."""
    archive = np.load(real_data("speech_fsdd/fsdd.npz"))
    starts, audio = archive["offsets"], archive["audio"]
    clips = [audio[starts[i] : starts[i + 1]][:8000] for i in range(0, 740 * count, 740)]
    return np.stack([np.pad(clip, (0, 8000 - len(clip))).repeat(2) for clip in clips]).astype(np.float32) / 32768


@pytest.mark.parity
@pytest.mark.parametrize("mels", [80, 128])
def test_spectrograms_are_the_extractor_s(torch, real_data, mels):
    """Of spoken digits, whole and cut. Both compute in float32, where a few bins of a million lie so far below the
    loudest that rounding moves them: theirs by up to 1.6e-5 of what its own equations say in float64."""
    import transformers

    waves = digits(real_data, 4)
    for seconds, sounds in ((30, waves), (1, np.tile(waves, 2))):
        extractor = transformers.WhisperFeatureExtractor(feature_size=mels, chunk_length=seconds)
        theirs = extractor(list(sounds), sampling_rate=16000, return_tensors="np")["input_features"]
        ours = jax.jit(lambda waves, seconds=seconds: whisper_log_mel(waves, mels, seconds))(sounds)
        assert ours.shape == (4, 100 * seconds, mels)
        apart = np.abs(np.swapaxes(ours, 1, 2) - theirs)
        assert apart.max() < 2e-5
        assert (apart > 1e-5).sum() <= 15


def test_spectrograms_are_their_equations():
    """Of a frame in the middle and of the first, which hears the sound's mirror image."""
    wave = np.random.default_rng(0).normal(size=4000) * np.exp(-np.arange(4000) / 300)
    with jax.enable_x64(True):
        found = np.asarray(whisper_log_mel(jnp.asarray(wave), mels=8, seconds=0.5))
        filters = mel_filters(16000, 400, 8)
    assert found.shape == (50, 8)
    whole = np.concatenate([wave[200:0:-1], wave, np.zeros(4000)])
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(400) / 400)
    powers = [np.abs(np.fft.rfft(whole[160 * t : 160 * t + 400] * hann)) ** 2 @ filters for t in range(49)]
    y = np.log10(np.maximum(powers, 1e-10))
    assert (y < y.max() - 8).any()
    np.testing.assert_allclose(found[:49], (np.maximum(y, y.max() - 8) + 4) / 4, rtol=1e-9)


SMALL = {
    "vocabulary": 13, "width": 8, "layers": 2, "heads": 2, "hidden": 12, "length": 9, "encoder_layers": 1,
    "encoder_heads": 4, "encoder_hidden": 10, "encoder_length": 4, "mels": 5,
}  # fmt: skip
TOKENS = np.random.default_rng(2).integers(0, 13, (2, 5))
SOUND = np.random.default_rng(3).normal(size=(2, 8, 5)).astype(np.float32)


def made(**more):
    """A small model and parameters without zeros or ones."""
    module = Whisper(**SMALL | more)
    given = (SOUND,) if module.task == "audio_classification" else (SOUND, TOKENS)
    rng, shapes = np.random.default_rng(1), jax.eval_shape(module.init, jax.random.key(0), *given)["params"]
    return module, jax.tree.map(lambda leaf: jnp.asarray(rng.normal(0, 0.4, leaf.shape), jnp.float32), shapes), given


def stacked(params):
    """The parameters of the scanned model of an unrolled one's."""
    found = {}
    for half, tree in params.items():
        layers = [tree[f"layer_{i}"] for i in range(sum(name.startswith("layer_") for name in tree))]
        rest = {name: leaf for name, leaf in tree.items() if not name.startswith("layer_")}
        found[half] = rest | ({"layers": jax.tree.map(lambda *each: jnp.stack(each), *layers)} if layers else {})
    return found


@pytest.mark.parametrize("scan", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_scanned_with_remat_is_unrolled_and_cached_is_whole(scan):
    """The first tokens at once, then one by one, from keys and values that are made once."""
    module, params, _ = made(encoder_layers=2)
    whole = jax.jit(module.apply)({"params": params}, SOUND, TOKENS)
    if scan:
        module, params = module.clone(scan_layers=True, remat=True), stacked(params)
        np.testing.assert_allclose(jax.jit(module.apply)({"params": params}, SOUND, TOKENS), whole, atol=2e-5)
    apply = functools.partial(module.apply, {"params": params})
    memory = jax.jit(lambda: apply(apply(SOUND, method="encode"), method="memory"))()
    step = jax.jit(lambda tokens, cache: apply(tokens, memory, cache=cache, method="decode"))
    cache, found = empty_cache(module, 2, 6), []
    for part in (TOKENS[:, :2], TOKENS[:, 2:3], TOKENS[:, 3:4], TOKENS[:, 4:]):
        logits, cache = step(part, cache)
        found.append(logits)
    np.testing.assert_allclose(np.concatenate(found, axis=1), whole, atol=2e-5)
    assert int(cache.index) == 5


@pytest.mark.slow
def test_fewer_frames_and_one_token_s_logits():
    """An odd number of frames has half a state more; `logits_at` picks what all would have said."""
    module, params, _ = made(layers=1, tied=False)
    at = np.array([1, 4])

    @jax.jit
    def both(x):
        states = module.apply({"params": params}, x, method="encode")
        picked = module.apply({"params": params}, TOKENS, states, logits_at=at, method="decode")
        return states, picked, module.apply({"params": params}, x, TOKENS)

    states, picked, whole = both(SOUND[:, :5])
    assert states.shape == (2, 3, 8)
    np.testing.assert_allclose(picked, whole[np.arange(2), at], atol=1e-5)


@pytest.mark.parametrize("technique", ["lora", pytest.param("lora over int8", marks=pytest.mark.slow)])
@pytest.mark.parametrize("task", ["seq2seq_lm", pytest.param("audio_classification", marks=pytest.mark.slow)])
def test_every_kernel_stays_factored(task, technique):
    """LoRA on the module as it is: `usage` sees every kernel, nothing is expanded, factored is merged."""
    module, params, given = made(task=task, tied=False, layers=1, scan_layers=task == "seq2seq_lm")
    fn = lambda params, *given: module.apply({"params": params}, *given)  # noqa: E731
    uses = usage(fn, params, *given)
    for path, found in uses.items():
        if path.endswith("kernel"):
            assert {use.kind for use in found} <= {"product", "conv"}, path
            assert found, path
    assert {path for path, found in uses.items() if any(use.head for use in found)} == {"head/kernel"}
    transform = lora(rank=2) if technique == "lora" else chain(quantize("int8"), lora(rank=2))
    split = transform.init(jax.random.key(0), params, uses)
    rng = np.random.default_rng(4)
    moved = jax.tree.map(lambda leaf: leaf + 0.1 * rng.normal(size=leaf.shape).astype(np.float32), split.train)
    kernels = {path for path in paths(params) if path.endswith("kernel") and path != "head/kernel"}
    assert kernels <= set(split.train.get("lora", split.train))

    @jax.jit
    def both(train):
        tree = transform.apply(split._replace(train=train))
        return lift(fn, strict=True)(tree, *given), fn(merge(tree), *given)

    ours, merged = both(moved)
    np.testing.assert_allclose(ours, merged, rtol=1e-4, atol=1e-4 * float(jnp.abs(merged).max()))
    # traced only: a derivative that expanded a weight would warn, and a warning is an error
    jax.eval_shape(jax.grad(lambda train: both(train)[0].sum()), moved)


@pytest.mark.slow
def test_tuned_models_write_token_by_token():
    """Encoder, memory and decoder are lifted each by itself; the parts say what the whole says."""
    module, params, given = made(layers=1)
    fn = lambda params, *given, **more: module.apply({"params": params}, *given, **more)  # noqa: E731
    transform = lora(rank=2, where=".*/(query|key|value)/kernel")
    split = transform.init(jax.random.key(0), params, usage(fn, params, *given))
    tree = transform.apply(split._replace(train=jax.tree.map(lambda leaf: leaf + 0.1, split.train)))
    lifted = lift(fn, strict=True)

    @jax.jit
    def both():
        states = lifted(tree, SOUND, method="encode")
        memory = lifted(tree, states, method="memory")
        parts = lifted(tree, TOKENS, memory, cache=empty_cache(module, 2, 5), method="decode")[0]
        return parts, lifted(tree, *given)

    np.testing.assert_allclose(*both(), atol=2e-5)


def test_a_text_is_what_the_whole_model_says():
    """Without a cache, one token more each time; the start is the module's where none is given."""
    module, params, _ = made(layers=1, start=3)
    whole = jax.jit(lambda text: module.apply({"params": params}, SOUND, text))
    text = np.full((2, 7), 3)
    for at in range(6):
        text[:, at + 1] = whole(text)[:, at].argmax(-1)
    assert generate(module, params, SOUND, max_tokens=6) == text[:, 1:].tolist()
    for prompts, options, message in (
        ([[5, 6]], {}, r"a Whisper reads; give spectrograms, an array \[batch, frames, 5\]"),
        (SOUND, {"max_tokens": 9}, "start has 1 ids and max_tokens is 9, more than the model's 9 positions"),
        (SOUND, {"start": [13]}, "the vocabulary has 0 to 12"),
        (SOUND[:0], {}, "no prompts"),
    ):
        with pytest.raises(UsageError, match=message):
            generate(module, params, prompts, **options)


FIELDS = {
    "model_type": "whisper", "vocab_size": 13, "d_model": 8, "encoder_layers": 1, "decoder_layers": 1,
    "encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 12, "decoder_ffn_dim": 12,
    "max_source_positions": 4, "max_target_positions": 9, "num_mel_bins": 5, "classifier_proj_size": 6,
}  # fmt: skip
CLASSES = {
    "WhisperForConditionalGeneration": "seq2seq_lm", "WhisperForAudioClassification": "audio_classification",
    "WhisperModel": "features",
}  # fmt: skip


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("task", CLASSES.values())
def test_the_table_tells_each_leaf_once(task, tied):
    family = FAMILIES["whisper"]
    assert family.architectures == CLASSES
    module = family.module(FIELDS | {"tie_word_embeddings": tied}, task)
    told = [path.format(0) for path, _, _ in family.tensors(module)]
    assert sorted(told) == sorted(shapes_of(module, family))


def test_whisper_tiny_has_as_many_parameters_as_it_should():
    """39M in the paper: 37,760,640 with the encoder's 576,000 numbers of positions, which are not trained."""
    sizes = {"d_model": 384, "vocab_size": 51865, "encoder_layers": 4, "decoder_layers": 4, "num_mel_bins": 80}
    sizes |= {"encoder_attention_heads": 6, "decoder_attention_heads": 6, "max_source_positions": 1500}
    sizes |= {"encoder_ffn_dim": 1536, "decoder_ffn_dim": 1536, "max_target_positions": 448}
    module = FAMILIES["whisper"].module(FIELDS | sizes, "seq2seq_lm", scan_layers=True)
    shapes = jax.eval_shape(module.init, jax.random.key(0), *FAMILIES["whisper"].example(module))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == 37_760_640


def shapes(module, *arguments, **more):
    """What asking for a module's parameters says, nothing computed."""
    return jax.eval_shape(lambda: module.init(jax.random.key(0), *arguments, **more))


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda: shapes(Whisper(**SMALL), np.ones((1, 9, 5)), TOKENS), "at most 8 frames"),
        (lambda: shapes(Whisper(**SMALL), np.ones((1, 5, 8)), TOKENS), "give .batch, frames, 5."),
        (lambda: shapes(Whisper(**SMALL), SOUND, np.ones((2, 10), int)), "10 tokens, and 9 positions"),
        (lambda: shapes(Whisper(**SMALL), SOUND), "needs the tokens"),
        (lambda: shapes(Whisper(**SMALL, task="audio_classification"), SOUND, TOKENS), "takes no tokens"),
        (lambda: shapes(Whisper(**SMALL, task="causal_lm"), SOUND, TOKENS), "task='causal_lm'"),
        (lambda: shapes(Whisper(**SMALL | {"heads": 3}), SOUND, TOKENS), "not a multiple of 3 heads"),
        (lambda: shapes(Whisper(**SMALL | {"width": 2, "encoder_heads": 1}), SOUND, TOKENS), "4 or more"),
        (lambda: shapes(Whisper(**SMALL), SOUND, TOKENS, method="encode"), "no segments"),
        (lambda: FAMILIES["whisper"].module(FIELDS | {"scale_embedding": True}, "features"), "scale_embedding is True"),
        (lambda: FAMILIES["whisper"].module(FIELDS, "masked_lm"), "no head for the task"),
        (lambda: FAMILIES["whisper"].module({"model_type": "whisper"}, "features"), "has no 'vocab_size'"),
        (lambda: whisper_log_mel(np.ones(9), seconds=0.01), "160 samples"),
    ],
)
def test_errors_say_what_to_change(act, message):
    with pytest.raises(UserError, match=message):
        act()
