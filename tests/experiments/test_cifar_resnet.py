"""The CIFAR-10 experiment from end to end: on colours in the binary version's files, and on real images."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from jaxbig.errors import UsageError
from jaxbig.experiment import load, parse
from jaxbig.metrics import scores

EXPERIMENT = load(Path(__file__).parents[2] / "experiments" / "vision" / "cifar_resnet.py")
MODULE = sys.modules[EXPERIMENT.config.__module__]
SMALL = ["--depth", "8", "--width", "0.25", "--pack", "8", "--epochs", "4", "--batch-size", "32", "--lr", "0.05"]


def write(folder: Path) -> None:
    """CIFAR-10's binary files: each class is a grey, noise on top."""
    rng = np.random.default_rng(0)
    for name in [f"data_batch_{i}.bin" for i in range(1, 6)] + ["test_batch.bin"]:
        labels = np.arange(60, dtype=np.uint8) % 10
        pixels = rng.integers(0, 20, (60, 3072)) + 22 * labels[:, None].astype(int)
        (folder / name).write_bytes(np.concatenate([labels[:, None], pixels.astype(np.uint8)], axis=1).tobytes())


def run(workdir: Path, *words: str) -> dict:
    EXPERIMENT.main(parse(EXPERIMENT, ["--workdir", str(workdir), *words]))
    return json.loads((workdir / "results.json").read_text())


@pytest.mark.slow
def test_it_learns_and_tells(tmp_path):
    write(tmp_path)
    words = ["--data.dir", str(tmp_path), *SMALL, "--validation", "0.2", "--recipes", "mixup", "--bf16"]
    results = run(tmp_path / "run", *words)
    assert results["images"] == {"train": 240, "val": 60, "test": 60}
    assert results["table"][0]["test"] > 0.2  # guessing gives 0.1
    assert (tmp_path / "run" / "report.html").read_text().count("<figure>") >= 2


def test_gains_are_on_the_first_recipe():
    labels = np.arange(100) % 10
    line = {"accuracy": 0.5, "val_accuracy": 0.5, "seconds": 1.0}
    guesses = {"plain": np.where(np.arange(100) < 60, labels, -1), "mixup": np.where(np.arange(100) < 70, labels, -1)}
    first, second = MODULE.compare({name: ([line], None) for name in guesses}, guesses, labels)
    assert (first["test"], second["test"]) == (0.6, 0.7)
    assert second["gain on plain"].startswith("+0.100 (+0.05")
    assert "gain on plain" not in first


def test_per_class_is_what_scores_say():
    matrix = np.random.default_rng(0).integers(0, 9, (10, 10))
    rows, macro = MODULE.per_class(matrix), scores(matrix)
    for name in ("precision", "recall", "f1"):
        assert np.mean([row[name] for row in rows]) == pytest.approx(macro[name])


def test_what_is_missing_is_said():
    with pytest.raises(UsageError, match=r"give --data\.dir"):
        run(Path("nowhere"))
    with pytest.raises(UsageError, match="--recipes cutmix: unknown"):
        run(Path("nowhere"), "--recipes", "cutmix")


@pytest.mark.slow
@pytest.mark.parametrize("more", [["--mesh"], ["--accumulate", "2"]])
def test_on_real_images(real_data, tmp_path, more):
    words = ["--data.dir", str(real_data("cifar10_jpeg_subset")), "--recipes", "crop_flip", "--epochs", "1"]
    results = run(tmp_path / "run", *words, "--width", "0.5", "--pack", "4", *more)
    assert results["table"][0]["test"] > 0.2
