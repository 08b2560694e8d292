"""The digits experiment, end to end: on images that the test writes in MNIST's format, and on MNIST itself."""

import gzip
import json
from pathlib import Path

import numpy as np
import pytest

from jaxbig.cli import main
from jaxbig.experiment import load, parse

ROOT = Path(__file__).resolve().parents[2]
EXPERIMENT = ROOT / "experiments" / "vision" / "mnist_cnn.py"


def write_idx(path: Path, array: np.ndarray) -> None:
    header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
    path.write_bytes(gzip.compress(header + array.astype(np.uint8).tobytes()))


@pytest.fixture(scope="module")
def bars(tmp_path_factory) -> Path:
    """A bright bar whose row is the class: a set that any network learns in a few steps."""
    folder, random = tmp_path_factory.mktemp("bars"), np.random.default_rng(0)
    for stem, size in (("train", 320), ("t10k", 48)):
        labels = np.arange(size) % 10
        images = random.integers(0, 40, (size, 28, 28))
        for image, label in zip(images, labels, strict=True):
            image[2 + 2 * label : 5 + 2 * label, 4:24] = 255
        write_idx(folder / f"{stem}-images-idx3-ubyte.gz", images)
        write_idx(folder / f"{stem}-labels-idx1-ubyte.gz", labels)
    return folder


def run(workdir: Path, folder: Path, *words: str) -> dict:
    experiment = load(EXPERIMENT)
    words = ("--data.dir", str(folder), "--workdir", str(workdir), "--batch-size", "32", "--seeds", "1", *words)
    experiment.main(parse(experiment, words))
    return json.loads((workdir / "results.json").read_text())


def test_it_learns_and_tells(bars, tmp_path, capsys):
    (row,) = run(tmp_path, bars, "--epochs", "3", "--augment")["table"]
    assert row["accuracy"] > 0.9
    assert row["errors"] == round((1 - row["accuracy"]) * 48)
    page = (tmp_path / "report.html").read_text()
    assert page.count("<svg") >= 3
    assert "warning" not in capsys.readouterr().out


def test_resumed_it_ends_in_the_same_numbers(bars, tmp_path):
    whole = run(tmp_path / "whole", bars, "--epochs", "2")
    run(tmp_path / "parts", bars, "--epochs", "2")
    again = run(tmp_path / "parts", bars, "--epochs", "2", "--resume")
    for name in ("accuracy", "errors"):
        assert again["table"][0][name] == whole["table"][0][name]


def test_mirrored_digits_are_warned_of(bars, tmp_path, capsys):
    run(tmp_path, bars, "--epochs", "1", "--flip")
    assert "mirrored digits" in " ".join(capsys.readouterr().out.split())


def test_without_data_it_says_what_to_give(capsys):
    assert main(["run", str(EXPERIMENT)]) == 2
    assert "--data.dir" in capsys.readouterr().err


@pytest.mark.slow
def test_real_digits_after_one_epoch(real_data, tmp_path):
    (row,) = run(tmp_path, real_data("mnist"), "--epochs", "1", "--batch-size", "128")["table"]
    assert row["accuracy"] > 0.98
