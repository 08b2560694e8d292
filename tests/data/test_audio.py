"""Recordings: every width of PCM, cutting and filling, and two real sets of speech."""

import wave

import numpy as np
import pytest

from jaxbig.data.audio import Clips, WavFolder, read_wav
from jaxbig.data.speech import EMOTIONS, emodb, fsdd


def wav(path, samples, rate=8000, width=2, channels=1):
    path.parent.mkdir(parents=True, exist_ok=True)
    if width == 3:
        data = np.asarray(samples, "<i4").view(np.uint8).reshape(-1, 4)[:, :3].tobytes()
    else:
        data = np.asarray(samples, "u1" if width == 1 else f"<i{width}").tobytes()
    with wave.open(str(path), "wb") as file:
        file.setparams((channels, width, rate, 0, "NONE", ""))
        file.writeframes(data)
    return path


@pytest.mark.parametrize(("width", "zero"), [(1, 128), (2, 0), (3, 0), (4, 0)])
def test_every_width_reads_the_same_sound(tmp_path, width, zero):
    half = 2 ** (8 * width - 2)
    samples, rate = read_wav(wav(tmp_path / "a.wav", [zero, zero + half, zero - half, zero - 2 * half], 16000, width))
    assert (samples.tolist(), samples.dtype, rate) == ([0, 0.5, -0.5, -1], np.float32, 16000)


def test_reads_what_scipy_reads(tmp_path):
    from scipy.io import wavfile

    samples = np.random.default_rng(0).integers(-(2**15), 2**15, 1000).astype(np.int16)
    wavfile.write(tmp_path / "a.wav", 22050, samples)
    read, rate = read_wav(tmp_path / "a.wav")
    np.testing.assert_array_equal(read * 2**15, samples)
    assert rate == 22050


def test_clips_are_cut_and_filled_up():
    clips = Clips(
        np.arange(1, 7, dtype=np.float32), np.array([0, 1, 6]), rate=10, seconds=0.3, columns={"label": [4, 5]}
    )
    batch = clips.batch(np.array([1, 0]))
    assert batch["audio"].tolist() == [[2, 3, 4], [1, 0, 0]]
    assert (batch["length"].tolist(), batch["label"].tolist(), clips.lengths.tolist()) == ([3, 1], [5, 4], [1, 5])
    assert Clips(np.zeros(6, np.int16), np.array([0, 2, 6]), rate=10).length == 4


def test_a_folder_of_wav_files(tmp_path):
    wav(tmp_path / "yes" / "1.wav", [1, 2])
    wav(tmp_path / "no" / "1.wav", [3])
    source = WavFolder(tmp_path)
    assert source.classes == {"label": ("no", "yes")}
    batch = source.batch(np.array([1, 0]))
    assert (batch["audio"] * 2**15).tolist() == [[1, 2], [3, 0]]
    assert batch["label"].tolist() == [1, 0]
    assert "label" not in WavFolder(tmp_path / "yes").batch(np.array([0]))


def test_fsdd_from_a_folder_and_from_an_archive_is_the_same(tmp_path):
    names = ["7_ann_0", "7_ann_5", "0_bob_12"]
    sounds = [[1, 2, 3], [4], [5, 6]]
    for name, sound in zip(names, sounds, strict=True):
        wav(tmp_path / "recordings" / f"{name}.wav", sound)
    offsets, audio = np.array([0, 3, 4, 6]), np.concatenate(sounds).astype(np.int16)
    np.savez(tmp_path / "fsdd.npz", audio=audio, offsets=offsets, names=names)
    for path in ("recordings", "fsdd.npz"):
        train, test = fsdd(tmp_path / path, "train", None), fsdd(tmp_path / path, "test", None)
        assert (len(train), len(test), train.rate) == (2, 1, 8000)
        batch = test.batch(np.array([0]))
        assert (batch["audio"] * 2**15).tolist() == [[1, 2, 3]]
        assert (batch["label"].tolist(), batch["speaker"].tolist()) == ([7], [0])
        assert sorted(train.columns["label"].tolist()) == [0, 7]


def test_fsdd_is_complete(real_data):
    path = real_data("speech_fsdd/fsdd.npz")
    train, test, every = (fsdd(path, split) for split in ("train", "test", "all"))
    assert (len(train), len(test), len(every)) == (2700, 300, 3000)
    assert every.lengths.sum() / every.rate == pytest.approx(1312, abs=1)
    assert np.bincount(test.columns["label"]).tolist() == [30] * 10
    assert np.bincount(every.columns["speaker"]).tolist() == [500] * 6
    assert test.batch(np.array([0]))["audio"].shape == (1, 8000)


def test_emodb_is_complete(real_data):
    clips = emodb(real_data("speech_emodb/emodb_8k_2s.npz"))
    counts = dict(zip(EMOTIONS.values(), np.bincount(clips.columns["label"]).tolist(), strict=True))
    assert counts == {
        "anger": 127, "boredom": 81, "disgust": 46, "fear": 69, "happiness": 71, "neutral": 79, "sadness": 62,
    }  # fmt: skip
    assert len(clips.classes["speaker"]) == 10
    assert clips.batch(np.array([534, 0]))["audio"].shape == (2, 16000)
