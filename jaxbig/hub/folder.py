"""What a published model's folder holds: its JSON files, and its tensors in one file or in several."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxbig.errors import UserError
from jaxbig.hub.safetensors_file import Stored, read_header
from jaxbig.hub.strict_json import LFS, parse_object

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
LONGEST_JSON = 100_000_000
_PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json", "tf_model.h5", "flax_model.msgpack")


def read_json(path: Path) -> dict[str, Any]:
    """A file that holds one JSON object.

    Raises:
        UserError: it is not there, cannot be read, or holds something else.

    Example:
        >>> import tempfile
        >>> file = Path(tempfile.mkdtemp()) / "config.json"
        >>> _ = file.write_text('{"model_type": "gpt2"}')
        >>> read_json(file)
        {'model_type': 'gpt2'}
    """
    try:
        if not path.is_file():
            raise UserError(f"{path}: no such file; give the folder of a published model")
        if path.stat().st_size > LONGEST_JSON:
            raise UserError(f"{path}: has {path.stat().st_size} bytes, too many for such a file; fetch it again")
        text = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); check its permissions") from error
    if text.startswith(LFS):
        raise UserError(f"{path}: is a pointer of Git LFS, not the file; run git lfs pull in its folder")
    return parse_object(path, text)


def tensors_of(folder: Path) -> dict[str, Stored]:
    """All tensors of a folder, by name: those of ``model.safetensors``, or of the files that its index names.

    Args:
        folder: of a published model.

    Returns:
        name -> where and what it is; nothing but headers has been read.

    Raises:
        UserError: there are no such files, only pickles, one of several is missing or leads out of the folder; a header
            is damaged; the index and the files do not agree.
    """
    if (folder / WEIGHTS).is_file():
        return read_header(folder / WEIGHTS)
    if not (folder / INDEX).is_file():
        for name in _PICKLES:
            if (folder / name).exists():
                raise UserError(
                    f"{folder}: holds its weights in {name} alone, which jaxbig does not read (a pickle runs what it "
                    "reads); load it with transformers where you trust it, and write it with "
                    "model.save_pretrained(folder)"
                )
        raise UserError(f"{folder}: holds neither {WEIGHTS} nor {INDEX}; give the folder of a published model")
    table = read_json(folder / INDEX).get("weight_map")
    if not isinstance(table, dict) or not table or not all(isinstance(name, str) for name in table.values()):
        raise UserError(f"{folder / INDEX}: is damaged: it has no weight_map of tensors to files; fetch it again")
    found: dict[str, Stored] = {}
    for name in sorted(set(table.values())):
        found |= _shard(folder, name, table)
    for name in table:
        if name not in found:
            raise UserError(
                f"{folder / INDEX}: says that {table[name]} holds {name}, which it does not; fetch both again"
            )
    return found


def _shard(folder: Path, name: str, table: Mapping[str, str]) -> dict[str, Stored]:
    """The tensors that the index finds in one of the files."""
    if Path(name).name != name or "\\" in name or not name.endswith(".safetensors"):
        raise UserError(f"{folder / INDEX}: names the file {name!r:.80}; only safetensors files beside it are read")
    if not (folder / name).is_file():
        raise UserError(f"{folder / name}: is missing; {INDEX} says that it holds a part of the model; fetch it again")
    return {key: tensor for key, tensor in read_header(folder / name).items() if table.get(key) == name}
