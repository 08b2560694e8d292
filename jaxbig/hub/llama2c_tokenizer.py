"""llama2.c's tokenizer: sentencepiece's byte-pair encoding by scores, bytes where it has no piece.

The file: int32 the longest piece's length; then for each token float32 its score, int32 its length, its bytes.
"""

import re
import struct
from pathlib import Path

from jaxbig.errors import UserError

BOS, EOS, FIRST_BYTE = 1, 2, 3
LONGEST_PIECE = 1 << 16
_BYTE = re.compile(rb"<0x([0-9A-F]{2})>")


class Llama2cTokenizer:
    """Text <-> ids.

    Args:
        pieces: each token's bytes; ids 3 to 258 are the bytes themselves, ``<0x00>`` to ``<0xFF>``.
        scores: the pair of tokens with the greatest is merged first.

    Example:
        >>> pieces = [b"<unk>", b"<s>", b"</s>", *(b"<0x%02X>" % i for i in range(256)), b" ", b"a", b" a"]
        >>> tokenizer = Llama2cTokenizer(pieces, [0.0] * 259 + [-2.0, -3.0, -1.0])
        >>> tokenizer.encode("a é"), tokenizer.decode(tokenizer.encode("a é"))
        ([1, 261, 259, 198, 172], 'a é')

    Reference:
        Kudo & Richardson (2018), "SentencePiece", arXiv:1808.06226. As llama2.c has it: a space is put before a text,
        and is taken away again from the token after the first.
    """

    def __init__(self, pieces: list[bytes], scores: list[float]):
        self.pieces, self.scores = pieces, scores
        # Of equal pieces the first counts.
        self._ids = {piece: number for number, piece in reversed(list(enumerate(pieces)))}
        self._bytes = [bytes([int(m[1], 16)]) if (m := _BYTE.fullmatch(piece)) else piece for piece in pieces]

    @property
    def ends(self) -> tuple[int, int]:
        """Ids that end a text: texts were trained one after the other, so that the next one's beginning does too."""
        return BOS, EOS

    def encode(self, text: str, bos: bool = True) -> list[int]:
        """The ids of a text.

        Args:
            text: any.
            bos: the id that begins a text comes first.

        Returns:
            ids.
        """
        ids: list[int] = []
        for letter in (" " + text) if text else "":
            piece = letter.encode("utf-8", errors="surrogatepass")
            known = self._ids.get(piece)
            ids += [FIRST_BYTE + byte for byte in piece] if known is None else [known]
        while (best := self._best(ids)) is not None:
            at, merged = best
            ids[at : at + 2] = [merged]
        return [BOS] * bos + ids

    def _best(self, ids: list[int]) -> tuple[int, int] | None:
        """Where the pair that is merged next stands, the first of equals, and what becomes of it."""
        best, found = -float("inf"), None
        for at in range(len(ids) - 1):
            merged = self._ids.get(self.pieces[ids[at]] + self.pieces[ids[at + 1]])
            if merged is not None and self.scores[merged] > best:
                best, found = self.scores[merged], (at, merged)
        return found

    def decode(self, ids: list[int]) -> str:
        """The text of ids; the marks that begin and end a text say nothing.

        Args:
            ids: with or without the one that begins a text.

        Returns:
            text; bytes that are no UTF-8 are replaced. The space that `encode` put in front is taken away where the ids
            begin a text.
        """
        pieces = [self._bytes[number] for number in ids if number not in (BOS, EOS)]
        whole = b"".join(pieces)
        if ids and ids[0] == BOS and whole.startswith(b" "):
            whole = whole[1:]
        return whole.decode("utf-8", errors="replace")


def read_tokenizer(path: Path, vocabulary: int) -> Llama2cTokenizer:
    """A tokenizer's file.

    Args:
        path: the file.
        vocabulary: number of tokens of the model that it is for.

    Returns:
        the tokenizer.

    Raises:
        UserError: the file is cut, longer than its tokens, or no tokenizer of so many tokens.
    """
    try:
        data = path.read_bytes() if path.stat().st_size <= 8 * vocabulary + 4 + 256 * vocabulary else None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    if data is None:
        raise UserError(f"{path}: is far longer than {vocabulary:,} tokens can be; it is no tokenizer of this model")
    at, pieces, scores = 4, [], []
    for number in range(vocabulary):
        if at + 8 > len(data):
            raise UserError(f"{path}: ends after {number:,} of {vocabulary:,} tokens; is it this model's tokenizer?")
        score, length = struct.unpack_from("<fi", data, at)
        at += 8
        if not 0 <= length <= len(data) - at or length > LONGEST_PIECE or score != score:
            raise UserError(f"{path}: token {number:,} is damaged, or the file is no tokenizer of llama2.c")
        pieces.append(data[at : at + length])
        scores.append(score)
        at += length
    if at != len(data):
        raise UserError(f"{path}: {len(data) - at:,} bytes after {vocabulary:,} tokens; is it this model's tokenizer?")
    if pieces[FIRST_BYTE : FIRST_BYTE + 256] != [b"<0x%02X>" % byte for byte in range(256)]:
        raise UserError(f"{path}: tokens 3 to 258 are not the bytes <0x00> to <0xFF>; it is no tokenizer of llama2.c")
    return Llama2cTokenizer(pieces, scores)
