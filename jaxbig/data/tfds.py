"""TensorFlow Datasets without TensorFlow: sets that are prepared on this machine, read record by record."""

import os
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxbig.data.array import Batch
from jaxbig.data.source import positions
from jaxbig.errors import UserError

_VERSION = re.compile(r"\d+\.\d+\.\d+")


class TfdsSource:
    """A split of a prepared set as a source; `tfds_source` makes it.

    Args:
        records: what ``builder.as_data_source(split)`` returns.
        varying: features whose shape differs from example to example: they become arrays of arrays in every batch, also
            where its examples happen to be alike.

    Attributes:
        info: tfds's own description: features, class names, citation.

    Example:
        >>> class Records(list):
        ...     dataset_info = None
        ...
        ...     def __getitems__(self, rows):
        ...         return [self[row] for row in rows]
        >>> source = TfdsSource(Records([{"x": 1, "pair": {"a": "one"}}, {"x": 2, "pair": {"a": "two"}}]))
        >>> source.batch(np.array([1, 0]))
        {'x': array([2, 1]), 'pair/a': array(['two', 'one'], dtype=object)}
    """

    def __init__(self, records: Any, varying: Collection[str] = ()):
        self._records, self._varying = records, varying
        self.info = records.dataset_info

    def __len__(self) -> int:
        return len(self._records)

    def batch(self, index: np.ndarray) -> Batch:
        """Examples `index` (int64 [B]) as name -> array [B, ...]; names of nested features are joined by ``/``."""
        rows = positions(index, len(self)).tolist()
        # A batch of no examples has names and shapes too: those of any example.
        examples = [_flat(example) for example in self._records.__getitems__(rows or [0])]
        return {
            name: _stacked([example[name] for example in examples], name in self._varying)[: len(rows)]
            for name in examples[0]
        }


def tfds_source(
    name: str, split: str = "train", data_dir: str | os.PathLike | None = None, download: bool = False
) -> TfdsSource:
    """A set of TensorFlow Datasets, read from its prepared files without TensorFlow and without the set's own code.

    Args:
        name: such as "mnist", "glue/sst2" or "mnist:3.0.1".
        split: such as "train", "test" or "train[:80%]".
        data_dir: where prepared sets lie; None takes tfds's default: TFDS_DATA_DIR, or ~/tensorflow_datasets.
        download: whether the set may be downloaded and prepared where it is not there. Preparing a set of images needs
            TensorFlow (``pip install tensorflow-cpu``), reading one does not.

    Returns:
        A source. Each feature is an array; text is Python strings; a feature whose shape varies is an array of arrays.

    Raises:
        UserError: tensorflow-datasets is not installed; the set is not prepared, or not in array_record form; no such
            split; with `download`, the set cannot be prepared.

    Example:
        >>> tfds_source("mnist", data_dir="no_such_folder")
        Traceback (most recent call last):
            ...
        jaxbig.errors.UserError: mnist: is not prepared in no_such_folder; prepare it: ...

    Reference:
        TensorFlow Datasets, a collection of ready-to-use datasets; `tfds.data_source`.
    """
    try:
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise UserError(f"{name}: tensorflow-datasets is not installed; run: pip install 'jaxbig[tfds]'") from error
    root = Path(data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser()
    folder = _prepared(root, name)
    builder: Any
    if folder is None and download:
        builder = _prepare(tfds, root, name)
    elif folder is None:
        raise UserError(
            f"{name}: is not prepared in {root}; prepare it: tfds build {name.split(':')[0]} --data_dir={root} "
            "--file_format=array_record (needs tensorflow), or pass download=True, or give the data_dir that holds it"
        )
    else:
        builder = tfds.builder_from_directory(folder)
    known = ", ".join(builder.info.splits)
    try:
        shapes = {feature: info.shape for feature, info in _flat(builder.info.features.get_tensor_info()).items()}
        varying = {feature for feature, shape in shapes.items() if None in shape}
        return TfdsSource(builder.as_data_source(split), varying)
    except NotImplementedError as error:
        form = getattr(builder.info.file_format, "value", "unknown")
        raise UserError(
            f"{name}: {builder.data_dir} is prepared as {form}, which cannot be read at any place; prepare it again "
            "with --file_format=array_record"
        ) from error
    except (ValueError, KeyError) as error:
        raise UserError(f"{name}: no split {split!r} ({_plain(error)}); there are {known}") from error


def _prepared(root: Path, name: str) -> Path | None:
    """The folder of the newest version, or of the one that was asked for; None where nothing is prepared."""
    name, _, version = name.partition(":")
    folder = root / name
    versions = [
        path for path in folder.glob("*") if _VERSION.fullmatch(path.name) and (path / "features.json").exists()
    ]
    if version:
        versions = [path for path in versions if path.name == version]
    if not versions and not version:
        configs = sorted(path.parent.parent.name for path in folder.glob("*/*/features.json"))
        if configs:
            raise UserError(
                f"{name}: has several configurations in {root}; ask for one: {name}/{f' or {name}/'.join(configs)}"
            )
    return max(versions, key=lambda path: [int(part) for part in path.name.split(".")], default=None)


def _prepare(tfds: Any, root: Path, name: str) -> Any:
    try:
        builder = tfds.builder(name, data_dir=root, file_format="array_record")
        builder.download_and_prepare()
    except ImportError as error:
        raise UserError(f"{name}: cannot be prepared ({_plain(error)}); run: pip install tensorflow-cpu") from error
    except (ValueError, AssertionError, OSError) as error:
        raise UserError(f"{name}: cannot be prepared ({_plain(error)})") from error
    return builder


def _plain(error: Exception) -> str:
    # tfds answers an unknown name with the list of all of them, one a line.
    return str(error).strip().split("\n")[0]


def _flat(example: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in example.items():
        flat |= _flat(value, f"{prefix}{name}/") if isinstance(value, Mapping) else {prefix + name: value}
    return flat


def _stacked(values: Sequence[Any], varies: bool) -> np.ndarray:
    values = [value.decode() if isinstance(value, bytes) else value for value in values]
    if not varies and not isinstance(values[0], str):
        return np.stack(values)
    stacked = np.empty(len(values), object)
    for i, value in enumerate(values):  # one by one: NumPy would make a matrix of arrays of one shape
        stacked[i] = value
    return stacked
