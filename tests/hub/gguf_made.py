"""GGUF files written byte by byte, and what their blocks mean, number by number, from the format's definition alone.

Nothing here is jaxbig's: what jaxbig reads is compared with it.
"""

import struct

import numpy as np

CODES = {"F32": 0, "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q8_0": 8, "Q4_K": 12, "Q6_K": 14, "BF16": 30}
BLOCKS = {"Q4_0": (32, 18), "Q4_1": (32, 20), "Q8_0": (32, 34), "Q4_K": (256, 144), "Q6_K": (256, 210)}
HALVES = {"Q4_0": [0], "Q4_1": [0, 2], "Q8_0": [0], "Q4_K": [0, 2], "Q6_K": [208]}  # where a block's float16 lie
NUMBERS = {"u1": 0, "i1": 1, "u2": 2, "i2": 3, "u4": 4, "i4": 5, "f4": 6, "?": 7, "u8": 10, "i8": 11, "f8": 12}


def text(value):
    data = value if isinstance(value, bytes) else value.encode()
    return struct.pack("<Q", len(data)) + data


def value(it):
    """(code, bytes) of a metadatum: a bool, a text, a NumPy number or array, or a list."""
    if isinstance(it, bool):
        return 7, struct.pack("<?", it)
    if isinstance(it, str | bytes):
        return 8, text(it)
    if isinstance(it, np.generic):
        return NUMBERS[it.dtype.str[1:].replace("b1", "?")], it.tobytes()
    if isinstance(it, np.ndarray):
        return 9, struct.pack("<IQ", NUMBERS[it.dtype.str[1:].replace("b1", "?")], it.size) + it.tobytes()
    parts = [value(each) for each in it]
    return 9, struct.pack("<IQ", parts[0][0], len(parts)) + b"".join(data for _, data in parts)


def container(data, tensors, version=3, alignment=32):
    """A file: metadata, and name -> (format, shape, bytes)."""
    out = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(data))
    for key, it in data.items():
        code, raw = value(it)
        out += text(key) + struct.pack("<I", code) + raw
    body = b""
    for name, (form, shape, raw) in tensors.items():
        out += text(name) + struct.pack(f"<I{len(shape)}Q", len(shape), *shape[::-1])
        out += struct.pack("<IQ", CODES[form], len(body))
        body += raw + bytes(-len(raw) % alignment)
    return out + bytes(-len(out) % alignment) + body


def random_rows(form, rows, width, seed=0):
    """A matrix's bytes, uint8 [rows, bytes]: every code and scale there may be, halves of about 1/100."""
    random = np.random.default_rng(seed)
    if form in ("F32", "F16", "BF16"):
        numbers = (random.normal(size=(rows, width)) * 0.1).astype(np.float16 if form == "F16" else np.float32)
        raw = numbers.view(np.uint8).reshape(rows, width, -1)
        return np.ascontiguousarray(raw[..., 2:] if form == "BF16" else raw).reshape(rows, -1)
    block, size = BLOCKS[form]
    raw = random.integers(0, 256, (rows, width // block, size)).astype(np.uint8)
    for at in HALVES[form]:
        raw[..., at : at + 2] = (random.normal(size=(*raw.shape[:2], 1)) * 0.01).astype("<f2").view(np.uint8)
    return raw.reshape(rows, -1)


# What number i of a block is; b[k] is byte k of every block, so that each is written once for all of them.


def half(b, at):
    return np.ascontiguousarray(b[at : at + 2].T).view("<f2")[:, 0].astype(np.float32)


def signed(byte):
    return byte.astype(np.int8).astype(np.float32)


def nibble(byte, upper):
    return (byte // 16 if upper else byte % 16).astype(np.float32)


def q4_0(b, i):
    return half(b, 0) * (nibble(b[2 + i % 16], i >= 16) - 8)


def q4_1(b, i):
    return half(b, 0) * nibble(b[4 + i % 16], i >= 16) + half(b, 2)


def q8_0(b, i):
    return half(b, 0) * signed(b[2 + i])


def q4_k(b, i):
    """Group j's 6-bit scale and minimum: bytes j and j + 4 for j < 4; else four bits each of byte j + 4, and above them
    the upper two bits of bytes j - 4 and j."""
    j, s = i // 32, b[4:16].astype(np.int32)
    if j < 4:
        scale, least = s[j] % 64, s[j + 4] % 64
    else:
        scale, least = s[j + 4] % 16 + 16 * (s[j - 4] // 64), s[j + 4] // 16 + 16 * (s[j] // 64)
    code = nibble(b[16 + 32 * (j // 2) + i % 32], j % 2)
    return half(b, 0) * scale.astype(np.float32) * code - half(b, 2) * least.astype(np.float32)


def q6_k(b, i):
    part, run, k = i // 128, i % 128 // 32, i % 32
    low = nibble(b[64 * part + 32 * (run % 2) + k], run >= 2)
    high = (b[128 + 32 * part + k] // 4**run % 4).astype(np.float32)
    return half(b, 208) * signed(b[192 + i // 16]) * (low + 16 * high - 32)


MEANING = {"Q4_0": q4_0, "Q4_1": q4_1, "Q8_0": q8_0, "Q4_K": q4_k, "Q6_K": q6_k}


def meant(form, raw):
    """The float32 numbers of rows of bytes."""
    if form in ("F32", "F16"):
        return raw.view("<f4" if form == "F32" else "<f2").astype(np.float32)
    if form == "BF16":
        return (raw.view("<u2").astype("<u4") << 16).view("<f4")
    block, size = BLOCKS[form]
    b = np.ascontiguousarray(raw.reshape(-1, size).T)
    return np.stack([MEANING[form](b, i) for i in range(block)], 1).reshape(len(raw), -1)
