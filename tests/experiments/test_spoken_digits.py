"""Spoken digits: end to end on tones of three made-up speakers, what the spectrogram does, and resuming."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from jaxbig.errors import UsageError
from jaxbig.experiment import load, parse

FILE = Path(__file__).parents[2] / "experiments" / "speech" / "spoken_digits.py"


def tones(path: Path, each: int = 8) -> None:
    """A digit is a pair of tones in turn, a speaker a pitch; five of each pair are the official test."""
    rng, clips, names = np.random.default_rng(0), [], []
    for s, speaker in enumerate(("ann", "bob", "eve")):
        for digit in range(10):
            for number in range(each):
                time = np.arange(rng.integers(1500, 2500)) / 8000
                first, second = 300 + 150 * (digit % 5), 1500 + 700 * (digit // 5)
                hertz = np.where(time < 0.12, first, second) * (1 + 0.03 * s)
                clips.append(
                    (8000 * np.sin(2 * np.pi * hertz * time) + rng.normal(size=len(time)) * 50).astype(np.int16)
                )
                names.append(f"{digit}_{speaker}_{number}")
    offsets = np.concatenate([[0], np.cumsum([len(clip) for clip in clips])])
    np.savez(path, audio=np.concatenate(clips), offsets=offsets, names=np.array(names))


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("fsdd") / "fsdd.npz"
    tones(path)
    return path


SMALL = ["--channels", "4", "8", "--hidden", "8", "--batch-size", "20", "--lr", "1e-2", "--workdir"]


def run(data: Path, workdir: Path, *words: str) -> dict:
    experiment = load(FILE)
    experiment.main(parse(experiment, ["--data.path", str(data), *SMALL, str(workdir), *words]))
    return json.loads((workdir / "results.json").read_text())


@pytest.mark.slow
def test_it_hears_tones_of_an_unseen_speaker(data, tmp_path):
    rows = run(data, tmp_path, "--only", "bob", "--epochs", "25", "--no-augment")["table"]
    assert [row["test"] for row in rows] == ["bob"]
    assert rows[0]["clips"] == 80
    assert rows[0]["low"] < rows[0]["accuracy"] > 0.8
    assert "<svg" in (tmp_path / "report.html").read_text()


@pytest.mark.slow
def test_seen_and_resumed(data, tmp_path):
    whole = run(data, tmp_path / "whole", "--split", "seen", "--epochs", "2")
    assert [(row["test"], row["clips"]) for row in whole["table"]] == [("seen speakers", 150)]
    lines = (tmp_path / "whole" / "seen" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == [1, 2]
    again = run(data, tmp_path / "whole", "--split", "seen", "--epochs", "2", "--resume")
    assert again["table"] == whole["table"]


def test_loudness_and_filling_tell_nothing():
    experiment = load(FILE)
    module = sys.modules[experiment.main.__module__]
    rng = np.random.default_rng(0)
    audio = np.zeros((2, 8000), np.float32)
    audio[0, :4000] = rng.normal(size=4000) * 0.1
    audio[1, :4000] = 5 * audio[0, :4000]
    audio[1, 6000:] = 1.0
    clips = {"audio": audio, "length": np.array([4000, 4000]), "label": np.array([1, 2])}
    found, raw = module.spectrogram(clips), module.log_spectrogram(clips)["mel"][0, :39]
    assert found["frames"].tolist() == [39, 39]
    np.testing.assert_allclose(found["mel"][0], found["mel"][1], atol=1e-3)
    real = found["mel"][0, :39]
    assert abs(real.mean()) < 1e-4
    assert real.std() == pytest.approx(raw.std() / np.sqrt(raw.var() + 0.01), abs=1e-3)
    assert not found["mel"][:, 39:].any()


def test_an_unknown_speaker_is_one_line(data, tmp_path):
    with pytest.raises(UsageError, match="--only joe: no such speaker; there are ann, bob, eve"):
        run(data, tmp_path, "--only", "joe")


@pytest.mark.slow
def test_on_the_real_set_an_unseen_speaker_is_understood(real_data, tmp_path):
    path = real_data("speech_fsdd/fsdd.npz")
    experiment = load(FILE)
    experiment.main(parse(experiment, ["--data.path", str(path), "--only", "jackson", "--workdir", str(tmp_path)]))
    assert json.loads((tmp_path / "results.json").read_text())["table"][0]["accuracy"] > 0.8
