"""Mixup and CutMix against their equations; padding never leaks; the loss of soft labels is the mixed loss."""

import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxbig.data import Draw, compose
from jaxbig.data.augment_mix import CutMix, Mixup
from jaxbig.errors import UserError
from jaxbig.objective import cross_entropy

RNG = np.random.default_rng(0)
COUNT = 1000
# Each example has a colour and a label of its own, so one can tell what it was mixed with.
BATCH = {
    "image": np.broadcast_to(np.arange(COUNT, dtype=np.float64)[:, None, None, None], (COUNT, 6, 8, 2)),
    "label": np.arange(COUNT),
}
DRAW = Draw(0, 0, np.arange(COUNT))


def test_mixup_mixes_images_and_labels_alike_with_a_neighbour():
    mixed = Mixup(COUNT, alpha=0.5, block=4)(BATCH, DRAW)
    assert mixed["label"].dtype == np.float32
    np.testing.assert_allclose(mixed["label"].sum(1), 1, rtol=1e-6)
    lam = mixed["label"][np.arange(COUNT), np.arange(COUNT)]
    for i, row in enumerate(mixed["label"]):
        (others,) = np.nonzero(row * (np.arange(COUNT) != i))
        assert len(others) <= 1
        assert all(i // 4 == other // 4 for other in others)
    np.testing.assert_allclose(
        mixed["image"], (mixed["label"] @ np.arange(COUNT))[:, None, None, None] + np.zeros((6, 8, 2)), rtol=1e-4
    )
    assert stats.kstest(lam, stats.beta(0.5, 0.5).cdf).pvalue > 1e-3


def test_cutmix_pastes_one_box_and_weighs_labels_by_area():
    mixed = CutMix(COUNT, block=2)(BATCH, DRAW)
    lam = mixed["label"][np.arange(COUNT), np.arange(COUNT)]
    for i in range(COUNT):
        pasted = mixed["image"][i] == i ^ 1
        np.testing.assert_array_equal(pasted, mixed["image"][i] != i)
        assert round(float(1 - pasted.mean()), 5) == round(float(lam[i]), 5)
        box = pasted.all(-1)
        assert box.sum() == box.any(0).sum() * box.any(1).sum()
    # For α = 1 the share that is drawn is uniform; boxes that touch no edge have its very size.
    side = np.sqrt(1 - DRAW.uniform("lam"))
    boxes = (mixed["image"] != BATCH["image"]).all(-1)
    whole = ~(boxes[:, [0, -1]].any((1, 2)) | boxes[:, :, [0, -1]].any((1, 2)))
    expected = np.floor(6 * side) * np.floor(8 * side)
    assert whole.sum() > 100
    np.testing.assert_array_equal(boxes[whole].sum((1, 2)), expected[whole])
    assert (boxes.sum((1, 2)) <= expected).all()


@pytest.mark.parametrize("act", [Mixup(5, p=0.25), CutMix(5, p=0.25)])
def test_only_a_share_is_mixed(act):
    batch = {"image": RNG.random((COUNT, 6, 6, 1)), "label": np.arange(COUNT) % 5}
    changed = (act(batch, DRAW)["image"] != batch["image"]).any((1, 2, 3))
    assert 0.1 < changed.mean() < 0.3


@pytest.mark.parametrize("act", [Mixup(12, alpha=1, block=8), CutMix(12, block=8)])
def test_padding_is_neither_mixed_nor_mixed_in(act):
    batch = {name: array[:12] for name, array in BATCH.items()} | {"mask": np.array([1.0] * 9 + [0] * 3)}
    for epoch in range(20):
        mixed = act(batch, Draw(0, epoch, np.arange(12)))
        np.testing.assert_array_equal(mixed["mask"], batch["mask"])
        np.testing.assert_array_equal(mixed["image"][9:], batch["image"][9:])
        assert (mixed["label"][:9, 9:] == 0).all()
        np.testing.assert_array_equal(mixed["label"][8], np.eye(12)[8])
    assert act(batch, Draw(0, 0, np.arange(12)))["image"].dtype == np.float64


def test_the_loss_of_a_mixed_label_is_the_mixed_loss():
    labels = np.arange(16) % 5
    mixed = compose(Mixup(5, alpha=1.0))({"image": BATCH["image"][:16], "label": labels}, Draw(0, 0, np.arange(16)))
    logits = jnp.array(RNG.normal(size=(16, 5)), jnp.float32)
    each = np.stack([cross_entropy(logits, np.full(16, c), 0.1) for c in range(5)], 1)
    np.testing.assert_allclose(cross_entropy(logits, mixed["label"], 0.1), (mixed["label"] * each).sum(1), rtol=1e-5)


def test_mixing_twice_and_whole_numbers():
    batch = {"image": RNG.integers(0, 256, (8, 4, 4, 3), np.uint8), "label": np.arange(8)}
    mixed = compose(CutMix(8), Mixup(8))(batch, Draw(0, 0, np.arange(8)))
    assert mixed["image"].dtype == np.uint8
    np.testing.assert_allclose(mixed["label"].sum(1), 1, rtol=1e-6)
    alone = Mixup(8)({name: array[:1] for name, array in batch.items()}, Draw(0, 0, np.arange(1)))
    np.testing.assert_array_equal(alone["image"], batch["image"][:1])


@pytest.mark.parametrize(
    ("act", "word"),
    [
        (lambda: Mixup(5, alpha=0), "Mixup: alpha=0"),
        (lambda: CutMix(5, block=1), "CutMix: block=1"),
        (lambda: Mixup(5)(BATCH, DRAW), "label 999, but num_classes=5"),
        (lambda: Mixup(5)({"image": BATCH["image"]}, DRAW), "no 'label'"),
    ],
)
def test_errors_say_what_and_how_to_mend(act, word):
    with pytest.raises(UserError, match=r"^[^\n]*$") as caught:
        act()
    assert word in str(caught.value)
