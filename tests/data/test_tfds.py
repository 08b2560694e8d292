"""TensorFlow Datasets: a tiny set is prepared here, without TensorFlow, and read back."""

import sys

import numpy as np
import pytest

from jaxbig.data import Subset, fingerprint
from jaxbig.data.tfds import tfds_source
from jaxbig.errors import UserError


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    import tensorflow_datasets as tfds

    class Tiny(tfds.core.GeneratorBasedBuilder):
        """Twenty images and five."""

        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            features = {
                "image": tfds.features.Tensor(shape=(4, 4, 1), dtype=np.uint8),
                "label": tfds.features.ClassLabel(names=["even", "odd"]),
                "text": {"line": tfds.features.Text(), "codes": tfds.features.Tensor(shape=(None,), dtype=np.int32)},
            }
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples(20), "test": self._generate_examples(5)}

        def _generate_examples(self, n):
            for i in range(n):
                text = {"line": f"number {i} ü", "codes": np.arange(i, dtype=np.int32)}
                yield i, {"image": np.full((4, 4, 1), i, np.uint8), "label": i % 2, "text": text}

    folder = tmp_path_factory.mktemp("tfds")
    Tiny(data_dir=folder, file_format="array_record").download_and_prepare()
    return folder


def test_prepares_what_is_not_there_only_if_asked(prepared, tmp_path):
    with pytest.raises(UserError, match=r"tiny: is not prepared in .*download=True"):
        tfds_source("tiny", "train", tmp_path)
    assert not list(tmp_path.iterdir())
    source = tfds_source("tiny", "test", tmp_path, download=True)
    expected = tfds_source("tiny", "test", prepared).batch(np.arange(5))
    for name, array in source.batch(np.arange(5)).items():
        assert all(np.array_equal(a, b) for a, b in zip(array, expected[name], strict=True)), name
    assert (tmp_path / "tiny" / "1.0.0" / "features.json").exists()
    assert len(tfds_source("tiny", "train", tmp_path)) == 20  # it is there now, and is not asked for again
    with pytest.raises(UserError, match="nonesuch: cannot be prepared"):
        tfds_source("nonesuch", "train", tmp_path, download=True)


def test_reads_rows_in_any_order(prepared):
    source = tfds_source("tiny", "train", prepared)
    every = source.batch(np.arange(20))
    numbers = every["image"][:, 0, 0, 0]
    assert sorted(numbers.tolist()) == list(range(20))
    batch = source.batch(np.array([7, 3, 7]))
    assert batch["image"].shape == (3, 4, 4, 1)
    assert batch["image"][:, 0, 0, 0].tolist() == numbers[[7, 3, 7]].tolist()
    assert batch["label"].tolist() == (numbers[[7, 3, 7]] % 2).tolist()
    assert batch["text/line"].tolist() == [f"number {i} ü" for i in numbers[[7, 3, 7]]]
    assert [len(codes) for codes in batch["text/codes"]] == numbers[[7, 3, 7]].tolist()
    same = source.batch(np.array([5, 5]))["text/codes"]
    assert (same.shape, same.dtype, len(same[0])) == ((2,), object, numbers[5])
    assert source.batch(np.array([], int))["image"].shape == (0, 4, 4, 1)
    assert source.info.features["label"].names == ["even", "odd"]
    assert "tensorflow" not in sys.modules


def test_splits_versions_and_wrappers(prepared):
    assert len(tfds_source("tiny:1.0.0", "test", prepared)) == 5
    half = tfds_source("tiny", "train[:50%]", prepared)
    assert len(half) == 10
    assert fingerprint(Subset(half, np.arange(10))) == fingerprint(half)


@pytest.mark.parametrize(
    ("name", "split", "says"),
    [
        ("tiny", "trian", r"tiny: no split 'trian' .*there are train, test"),
        ("tiny:2.0.0", "train", r"tiny:2.0.0: is not prepared in .*tfds build tiny --data_dir=.*download=True"),
        ("mnist", "train", r"mnist: is not prepared in .*--file_format=array_record"),
    ],
)
def test_errors_say_how_to_mend(prepared, name, split, says):
    with pytest.raises(UserError, match=says):
        tfds_source(name, split, prepared)


def test_a_set_with_configurations_asks_for_one(tmp_path):
    for config in ("cola", "sst2"):
        folder = tmp_path / "glue" / config / "2.0.0"
        folder.mkdir(parents=True)
        (folder / "features.json").write_text("{}")
    with pytest.raises(UserError, match="ask for one: glue/cola or glue/sst2"):
        tfds_source("glue", data_dir=tmp_path)


def test_without_tfds_it_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    with pytest.raises(UserError, match=r"pip install 'jaxbig\[tfds\]'"):
        tfds_source("mnist")
