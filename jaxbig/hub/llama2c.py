"""Models in llama2.c's first format: a header of seven numbers, then every tensor in float32.

The header: width, hidden width, layers, heads, heads of keys, vocabulary (negative: the head is a tensor of its own),
positions; int32, little-endian. Then, one after the other and layers first: the embedding, norms before attention,
query, key, value and output matrices, norms before the MLP, its gate, down and up matrices, the last norm, tables of
cosines and sines, and the head where it has one.

Legend of the shape suffixes: V vocabulary, D width, L layers, O and I outputs and inputs of a matrix.
"""

import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from einops import rearrange

from jaxbig.errors import UserError
from jaxbig.hub.llama2c_tokenizer import Llama2cTokenizer, read_tokenizer
from jaxbig.models.llama import Llama

EPS = 1e-5
_HEADER = 28
_LATER = 0x616B3432  # how files of the later formats begin
_MOST = 1 << 40  # bytes; products of seven damaged numbers stay far from overflow, and below this they are compared
_NAMES = ("width", "hidden width", "layers", "heads", "heads of keys", "vocabulary", "positions")


class Sizes(NamedTuple):
    """The header. Attributes: its seven numbers, the vocabulary without its sign, and whether the head is tied."""

    width: int
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    vocabulary: int
    positions: int
    tied: bool

    @property
    def head_width(self) -> int:
        return self.width // self.heads

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Every tensor of the file in its order."""
        layers, width, hidden, keys = self.layers, self.width, self.hidden, self.kv_heads * self.head_width
        found: dict[str, tuple[int, ...]] = {
            "embed": (self.vocabulary, width),
            "attention_norm": (layers, width),
            "query": (layers, width, width),
            "key": (layers, keys, width),
            "value": (layers, keys, width),
            "out": (layers, width, width),
            "mlp_norm": (layers, width),
            "gate": (layers, hidden, width),
            "down": (layers, width, hidden),
            "up": (layers, hidden, width),
            "norm": (width,),
            "turns": (2, self.positions, self.head_width // 2),
        }
        return found if self.tied else found | {"head": (self.vocabulary, width)}

    def bytes(self) -> int:
        return _HEADER + 4 * sum(math.prod(shape) for shape in self.shapes().values())


class Llama2c(NamedTuple):
    """What a folder holds.

    Attributes:
        module: a `Llama`.
        params: its parameters, float32.
        tokenizer: of its texts.
        positions: the longest text that it was trained with.
    """

    module: Llama
    params: dict[str, Any]
    tokenizer: Llama2cTokenizer
    positions: int


def read_sizes(path: Path) -> Sizes | None:
    """The header of a model's file, or None where the file is of another kind.

    Args:
        path: the file.

    Returns:
        the sizes, if they are ones that a model can have and the file is about as long as they say: a file that was cut
        or has grown is still one of this kind, and `read_llama2c` says so.

    Raises:
        UserError: it cannot be read, or is of a later format of llama2.c.
    """
    try:
        with path.open("rb") as file:
            head = file.read(_HEADER)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    if len(head) >= 4 and int.from_bytes(head[:4], "little") == _LATER:
        raise UserError(f"{path}: is in a later format of llama2.c; export it with --version 0")
    if len(head) < _HEADER:
        return None
    numbers = [int(number) for number in np.frombuffer(head, "<i4")]
    vocabulary = numbers[5]
    numbers[5] = abs(vocabulary)
    if min(numbers) < 1:
        return None
    sizes = Sizes(*numbers, tied=vocabulary > 0)
    whole = sizes.width % sizes.heads == 0 and sizes.heads % sizes.kv_heads == 0 and sizes.head_width % 2 == 0
    return sizes if whole and sizes.bytes() < _MOST else None


def read_model(path: Path) -> tuple[Llama, dict[str, Any], int]:
    """One model's file.

    Args:
        path: the file.

    Returns:
        (module, parameters, positions).

    Raises:
        UserError: the file is not one, is shorter or longer than its header says, or holds numbers that are not finite.
            Nothing is allocated before the length is right.
    """
    sizes = read_sizes(path)
    if sizes is None:
        raise UserError(f"{path}: does not begin as a model of llama2.c does, with {', '.join(_NAMES)}")
    found = path.stat().st_size
    if found != sizes.bytes():
        raise UserError(f"{path}: has {found:,} bytes, and its header says {sizes.bytes():,}; fetch or export it again")
    flat = np.fromfile(path, "<f4", offset=_HEADER)
    if not np.isfinite(flat).all():
        raise UserError(f"{path}: holds numbers that are not finite; fetch or export it again")
    tensors, start = {}, 0
    for name, shape in sizes.shapes().items():
        count = math.prod(shape)
        tensors[name] = flat[start : start + count].reshape(shape)
        start += count
    module = Llama(
        vocabulary=sizes.vocabulary, width=sizes.width, layers=sizes.layers, heads=sizes.heads,
        kv_heads=sizes.kv_heads, head_width=sizes.head_width, hidden=sizes.hidden, eps=EPS, tied=sizes.tied,
    )  # fmt: skip
    return module, _params(sizes, tensors), sizes.positions


def _params(sizes: Sizes, tensors: dict[str, np.ndarray]) -> dict[str, Any]:
    """The tree; [O, I] becomes [I, O], and pairs that turn together, there side by side, lie half a head apart."""

    def apart(w_OI: np.ndarray) -> np.ndarray:
        return rearrange(w_OI, "(H R two) I -> (H two R) I", R=sizes.head_width // 2, two=2)

    params: dict[str, Any] = {
        "embed": {"embedding": tensors["embed"]},
        "norm": {"scale": tensors["norm"]},
    }
    if not sizes.tied:
        params["head"] = {"kernel": tensors["head"].T}
    for number in range(sizes.layers):
        of = {name: tensors[name][number] for name in tensors if name not in ("embed", "norm", "turns", "head")}
        of |= {"query": apart(of["query"]), "key": apart(of["key"])}
        kernel = lambda name, of=of: {"kernel": of[name].T}  # noqa: E731
        params[f"layer_{number}"] = {
            "attention_norm": {"scale": of["attention_norm"]},
            "attention": {name: kernel(name) for name in ("query", "key", "value", "out")},
            "mlp_norm": {"scale": of["mlp_norm"]},
            "mlp": {name: kernel(name) for name in ("gate", "up", "down")},
        }
    return params


def find(folder: Path) -> tuple[Path, Path] | None:
    """A folder's model and its tokenizer, told by what the files hold; None where there is no model.

    Args:
        folder: with two files ``*.bin``.

    Raises:
        UserError: there are two models, or a model and no tokenizer that has its vocabulary.
    """
    files = sorted(folder.glob("*.bin"))
    models = {path: sizes for path in files if (sizes := read_sizes(path)) is not None}
    # A damaged file is taken for what it says it is; of two that could be one, the one of the right length is.
    models = {path: sizes for path, sizes in models.items() if path.stat().st_size == sizes.bytes()} or models
    if not models:
        return None
    if len(models) > 1:
        raise UserError(f"{folder}: holds two models, {' and '.join(path.name for path in models)}; keep one")
    (model,) = models
    others = [path for path in files if path != model]
    if not others:
        raise UserError(f"{folder}: {model.name} has no tokenizer beside it; put its tok*.bin there")
    if len(others) > 1:
        raise UserError(f"{folder}: holds several tokenizers, {', '.join(path.name for path in others)}; keep one")
    return model, others[0]


def read_llama2c(folder: str | Path) -> Llama2c:
    """A folder with a model of llama2.c and its tokenizer.

    Args:
        folder: holds two files ``*.bin``; which is which, their contents say.

    Returns:
        module, parameters, tokenizer and the longest text.

    Raises:
        UserError: something is missing or damaged.

    Reference:
        Karpathy (2023), llama2.c, legacy export (version 0). The tables of cosines and sines are not read: its own
        programs compute them anew, with the base 10,000, and so does jaxbig.
    """
    folder = Path(folder)
    files = find(folder)
    if files is None:
        raise UserError(f"{folder}: holds no model of llama2.c, a file *.bin with its sizes in front")
    module, params, positions = read_model(files[0])
    return Llama2c(module, params, read_tokenizer(files[1], module.vocabulary), positions)
