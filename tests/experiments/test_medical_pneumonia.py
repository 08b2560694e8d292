"""The pneumonia experiment from end to end: on images that a threshold tells apart, and on real ones."""

import itertools
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from jaxbig.experiment import load, parse
from jaxbig.significance import bootstrap

EXPERIMENT = load(Path(__file__).parents[2] / "experiments" / "vision" / "medical_pneumonia.py")

MODULE = sys.modules[EXPERIMENT.config.__module__]


def write(path: Path, sizes=(96, 32, 32)) -> None:
    """A set in MedMNIST's layout: pneumonia is brighter in the middle."""
    rng, arrays = np.random.default_rng(0), {}
    for split, size in zip(("train", "val", "test"), sizes, strict=True):
        labels = (np.arange(size) % 3 > 0).astype(np.uint8)
        images = rng.integers(60, 120, (size, 28, 28))
        images[:, 8:20, 8:20] += 100 * labels[:, None, None]
        arrays |= {f"{split}_images": images.astype(np.uint8), f"{split}_labels": labels[:, None]}
    np.savez(path, **arrays)


def run(folder: Path, *words: str) -> dict:
    config = parse(EXPERIMENT, ["--workdir", str(folder / "run"), *words])
    EXPERIMENT.main(config)
    return json.loads((folder / "run" / "results.json").read_text())


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pneumonia")
    write(folder / "pneumoniamnist.npz")
    words = [
        "--data.dir",
        str(folder),
        "--epochs",
        "4",
        "--seeds",
        "2",
        "--blocks",
        "1",
        "--channels",
        "2",
        "--batch-size",
        "16",
    ]
    first = run(folder, *words, "--lr", "0.02", "--ema", "0.5")
    return folder, words, first


@pytest.mark.slow
def test_it_learns_and_tells(found):
    folder, _, results = found
    assert len(results["table"]) == 2 * 2 * (1 + 3 + 3)
    row = {(r["network"], r["split"], r["metric"], r["threshold"]): r["mean"] for r in results["table"]}
    assert row["each", "test", "auc", "any"] > 0.9
    for who, split, threshold in itertools.product(("each", "together"), ("val", "test"), ("0.5", "val")):
        accuracy, sensitivity, specificity = (
            row[who, split, name, threshold] for name in ("accuracy", "sensitivity", "specificity")
        )
        assert accuracy == pytest.approx((21 * sensitivity + 11 * specificity) / 32)
    page = (folder / "run" / "report.html").read_text()
    assert page.count("<figure>") >= 5


@pytest.mark.slow
def test_resumed_when_done_it_says_the_same(found):
    folder, words, first = found
    assert run(folder, *words, "--lr", "0.02", "--ema", "0.5", "--resume") == first


@pytest.mark.slow
def test_the_interval_of_auc_is_about_the_mean_of_the_seeds():
    rng = np.random.default_rng(0)
    labels = (rng.random(60) < 0.6).astype(int)
    z = np.round(rng.normal(size=(3, 60)) + labels, 1)
    value, low, high = MODULE.interval_of_auc(labels, z)
    assert value == pytest.approx(np.mean([roc_auc_score(labels, one) for one in z]))
    mean = lambda y, z: np.mean([roc_auc_score(y, one) for one in z.T])  # noqa: E731
    plain = bootstrap(mean, labels, z.T, resamples=300, method="percentile")
    assert (low, high) == pytest.approx(plain[1:], abs=0.04)


@pytest.mark.slow
def test_on_real_images(real_data, tmp_path):
    results = run(tmp_path, "--data.dir", str(real_data("medical_pneumoniamnist")), "--epochs", "2", "--seeds", "1")
    assert results["table"][0]["metric"] == "auc"
    assert results["table"][0]["mean"] > 0.9
