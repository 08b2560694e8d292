"""Draws are uniform and independent of the batch; what holds for every augmentation of one example."""

import dataclasses
import hashlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from scipy import stats

from jaxbig.data import Draw, Loader, compose
from jaxbig.data.augment_affine import Affine
from jaxbig.data.augment_audio import Noise, Shift, SpecAugment
from jaxbig.data.augment_image import Crop, Cutout, Flip, Jitter
from jaxbig.data.augment_mix import CutMix, Mixup
from jaxbig.data.augment_text import TokenDropout
from jaxbig.errors import UsageError, UserError

RNG = np.random.default_rng(0)
N = 24
ALL = {
    "image": RNG.integers(0, 256, (N, 10, 12, 3), np.uint8),
    "grey": RNG.random((N, 9, 9, 1), np.float32),
    "audio": RNG.normal(size=(N, 30)).astype(np.float32),
    "spectrum": RNG.normal(size=(N, 20, 8)).astype(np.float16),
    "ids": RNG.integers(0, 50, (N, 16)),
    "label": RNG.integers(0, 5, N),
}
# Each with the array that it changes.
EACH = {
    "affine": (Affine(20, 0.1, 0.2, 0.2), "image"),
    "affine, constant": (Affine(20, 0.1, 0.2, (0.5, 2.0), "constant", 0.5, "grey"), "grey"),
    "affine, reflect": (Affine(20, 0.1, 0.2, 0.2, "reflect", inputs="grey"), "grey"),
    "flip": (Flip(), "image"),
    "crop": (Crop(3, "reflect"), "image"),
    "cutout": (Cutout(4, inputs="grey"), "grey"),
    "jitter": (Jitter(0.4, 0.4, 0.4, 0.1), "image"),
    "shift": (Shift(0.5), "audio"),
    "noise": (Noise(0, 10), "audio"),
    "specaugment": (SpecAugment(2, 3, 2, 5, inputs="spectrum"), "spectrum"),
    "token dropout": (TokenDropout(0.3, 49, (0, 1)), "ids"),
    "composed": (compose(Flip(), Crop(2), compose(Cutout(3), Cutout(3))), "image"),
}


def at(rows):
    return {name: array[rows] for name, array in ALL.items()}


def augmented(act, rows, epoch=1, seed=0):
    rows = np.asarray(rows)
    return act(at(rows), Draw(seed, epoch, rows))


def test_draws_are_fixed_for_all_time():
    # Pinned: a change would silently change every run that somebody has published.
    draw = Draw(3, 2, np.array([7, 0, 10**12]))
    assert [hex(bits) for bits in draw.bits("angle")] == [
        "0xadb0cc7ed19c4509",
        "0x3c020d4511d6d450",
        "0x139ce8ffe9a9c48e",
    ]
    np.testing.assert_array_equal(draw.bits("angle", (2, 3)).reshape(3, 6)[:, 0], draw.bits("angle"))
    assert draw.bits("angle").tolist() != draw.within("0").bits("angle").tolist()


def test_draws_by_their_equation_in_plain_python():
    def mix(x):
        x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        x = (x ^ (x >> 27)) * 0x94D049BB133111EB % 2**64
        return x ^ (x >> 31)

    step, zero = 0x9E3779B97F4A7C15, Draw(0, 0, np.array([0]))
    assert mix(step) == 0xE220A8397B1DCDAF  # the first number of splitmix64 from seed 0, as its authors publish it
    key = int.from_bytes(hashlib.blake2b(b"0/0/x", digest_size=8).digest(), "little")
    expected = [mix((mix((key + step) % 2**64) + step * j) % 2**64) for j in (1, 2)]
    assert zero.bits("x", (2,))[0].tolist() == expected


@pytest.mark.parametrize("along", ["rows", "numbers", "epochs", "names"])
def test_draws_are_uniform_and_neighbours_are_independent(along):
    count = 20_000
    if along == "rows":
        drawn = Draw(0, 0, np.arange(count)).uniform("x")
    elif along == "numbers":
        drawn = Draw(0, 0, np.arange(1)).uniform("x", shape=(count,))[0]
    elif along == "epochs":
        drawn = np.array([Draw(0, epoch, np.arange(1)).uniform("x")[0] for epoch in range(count)])
    else:
        drawn = np.array([Draw(0, 0, np.arange(1)).uniform(f"x{i}")[0] for i in range(count)])
    assert 0 <= drawn.min() <= drawn.max() < 1
    assert stats.kstest(drawn, "uniform").pvalue > 1e-3
    pairs = np.histogram2d(drawn[:-1], drawn[1:], 16, [[0, 1], [0, 1]])[0]
    assert stats.chisquare(pairs.ravel()).pvalue > 1e-3
    bits = (drawn[:, None] * 2**53).astype(np.uint64) >> np.arange(53, dtype=np.uint64) & np.uint64(1)
    assert np.abs(bits.mean(0) - 0.5).max() < 5 * 0.5 / np.sqrt(count)


def test_integers_and_normals_have_their_distributions():
    draw = Draw(1, 0, np.arange(30_000))
    counts = np.bincount(draw.integers("i", 3, 10))
    assert counts[:3].sum() == 0
    assert stats.chisquare(counts[3:]).pvalue > 1e-3
    bounds = draw.integers("j", 0, np.arange(30_000) % 3 + 1)
    assert (bounds <= np.arange(30_000) % 3).all()
    normal = draw.normal("n", (3,))
    assert normal.shape == (30_000, 3)
    assert all(stats.kstest(normal[:, i], "norm").pvalue > 1e-3 for i in range(3))
    assert np.abs(np.corrcoef(normal.T) - np.eye(3)).max() < 5 / np.sqrt(30_000)


@pytest.mark.parametrize(("act", "name"), EACH.values(), ids=EACH)
def test_an_example_is_augmented_alike_in_any_batch_and_otherwise_in_another_epoch(act, name):
    rows = np.arange(N)
    whole = augmented(act, rows)
    assert whole[name].shape == ALL[name].shape
    assert whole[name].dtype == ALL[name].dtype
    shuffled = RNG.permutation(N)
    np.testing.assert_array_equal(augmented(act, shuffled)[name], whole[name][shuffled])
    for some in (rows[5:6], rows[[5, 5, 20]], rows[7:]):
        np.testing.assert_array_equal(augmented(act, some)[name], whole[name][some])
    for other in (augmented(act, rows, epoch=2), augmented(act, rows, seed=1), at(rows)):
        changed = [not np.array_equal(one, two) for one, two in zip(whole[name], other[name], strict=True)]
        assert np.mean(changed) > 0.2


@pytest.mark.parametrize(("act", "name"), EACH.values(), ids=EACH)
def test_nothing_else_is_touched(act, name):
    batch = at(np.arange(N)) | {"mask": (np.arange(N) < 20).astype(np.float32)}
    before = {key: array.copy() for key, array in batch.items()}
    result = act(batch, Draw(0, 0, np.arange(N)))
    assert result.keys() == batch.keys()
    for key, array in before.items():
        np.testing.assert_array_equal(batch[key], array)
        if key != name:
            np.testing.assert_array_equal(result[key], array)


def test_threads_draw_the_same():
    act, rows = EACH["composed"][0], np.arange(N)
    with ThreadPoolExecutor(4) as pool:
        many = [*pool.map(lambda epoch: augmented(act, rows, epoch)["image"], range(8))]
    for epoch, images in enumerate(many):
        np.testing.assert_array_equal(images, augmented(act, rows, epoch)["image"])


def test_parts_of_a_composition_draw_differently():
    marks = lambda batch, draw: batch | {"drawn": [*batch.get("drawn", []), draw.uniform("x").tolist()]}  # noqa: E731
    drawn = compose(marks, marks, compose(marks))({}, Draw(0, 0, np.arange(3)))["drawn"]
    assert len({tuple(numbers) for numbers in drawn}) == 3


@pytest.mark.parametrize("mix", [Mixup(5), CutMix(5)], ids=["mixup", "cutmix"])
def test_a_loader_gives_the_same_pixels_whatever_the_processes_and_threads(mix):
    act = compose(Affine(20, 0.1, 0.2, 0.2), Flip(), mix)
    options = {"seed": 1, "remainder": "pad", "augment": act}
    one = [*Loader(ALL, 16, **options).epoch(2)]
    parts = [[*Loader(ALL, 16, threads=2, process_index=i, process_count=4, **options).epoch(2)] for i in range(4)]
    for step, batch in enumerate(one):
        for name, array in batch.items():
            np.testing.assert_array_equal(np.concatenate([part[step][name] for part in parts]), array)
    assert one[-1]["mask"].tolist() == [1.0] * 8 + [0.0] * 8
    assert [*one[0]] == [*ALL, "mask"]


def test_augmentations_say_how_they_were_made():
    # So that a resumed run can tell that its augmentation has changed.
    act = compose(Affine(20), Flip(p=0.3))
    assert repr(act) == repr(compose(Affine(20), Flip(p=0.3))) != repr(compose(Affine(20), Flip(p=0.4)))
    assert all(dataclasses.is_dataclass(one) for one, _ in EACH.values())


@pytest.mark.parametrize(
    ("act", "word"),
    [
        (lambda: augmented(Flip(inputs="picture"), [0]), "no 'picture' in the batch, only audio"),
        (lambda: augmented(Flip(inputs="audio"), [0]), "[B, H, W, C]"),
        (lambda: augmented(Noise(inputs="ids"), [0]), "give floats"),
        (lambda: compose(Flip(), 3), "3 cannot be called"),
    ],
)
def test_errors_say_what_and_how_to_mend(act, word):
    with pytest.raises(UserError, match=r"^[^\n]*$") as caught:
        act()
    assert word in str(caught.value)
    assert isinstance(caught.value, UsageError) == ("called" in word)
