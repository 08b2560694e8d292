"""GGUF's container and blocks: files written here byte by byte, blocks read number by number, and damaged files."""

import struct

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hub.gguf_made import BLOCKS, container, meant, random_rows, text

from jaxbig import lift
from jaxbig.errors import UserError
from jaxbig.hub.gguf import is_gguf, read_bytes, read_container
from jaxbig.hub.gguf_blocks import coded, expanded, plain, weight_of

ALL = {
    "u8": np.uint8(200), "i8": np.int8(-3), "u16": np.uint16(65000), "i16": np.int16(-300), "u32": np.uint32(2**32 - 1),
    "i32": np.int32(-(2**31)), "u64": np.uint64(2**64 - 1), "i64": np.int64(-(2**63)), "f32": np.float32(1.5),
    "f64": np.float64(-0.1), "yes": True, "no": False, "text": "né\n", "empty": "",
    "texts": ["a", "", "b c"], "numbers": np.array([1, -2, 3], np.int16), "flags": np.array([True, False]),
    "nested": [np.array([1, 2], np.uint8), np.array([], np.float32)],
}  # fmt: skip


def made(data=ALL, version=3, alignment=32):
    raw = {name: random_rows(name, 2, 256, 1) for name in (*BLOCKS, "F32", "F16", "BF16")}
    tensors = {f"t.{name}": (name, (2, 256), rows.tobytes()) for name, rows in raw.items()}
    return container(data, tensors, version, alignment), raw


@pytest.mark.parametrize(("version", "alignment"), [(2, 32), (3, 32), (3, 64)])
def test_everything_that_a_container_holds(tmp_path, version, alignment):
    data = ALL if alignment == 32 else ALL | {"general.alignment": np.uint32(alignment)}
    file, raw = made(data, version, alignment)
    (tmp_path / "a.gguf").write_bytes(file)
    found = read_container(tmp_path / "a.gguf")
    assert is_gguf(tmp_path / "a.gguf")
    assert found.data.keys() == data.keys()
    for name, it in data.items():
        got = found.data[name]
        if name == "nested":
            assert [part.tolist() for part in got] == [[1, 2], []]
        elif isinstance(it, np.ndarray):
            assert (got.dtype, got.tolist()) == (it.dtype, it.tolist())
        else:
            its = it.item() if isinstance(it, np.generic) else it
            assert (type(got), got) == (type(its), its)
    for name, rows in raw.items():
        tensor = found.tensors[f"t.{name}"]
        assert (tensor.format.name, tensor.shape, tensor.start % alignment) == (name, (2, 256), 0)
        assert read_bytes(tensor).tobytes() == rows.tobytes()


@pytest.mark.parametrize("form", ["F32", "F16", "BF16"])
def test_plain_numbers(form):
    raw = random_rows(form, 3, 7)
    found = plain(raw.reshape(-1), form, (3, 7))
    np.testing.assert_array_equal(found.astype(np.float32), meant(form, raw))


@pytest.mark.parametrize("form", BLOCKS)
def test_blocks_keep_their_codes_and_their_exact_values(form):
    raw = random_rows(form, 5, 512)
    want = meant(form, raw)
    codes = coded(raw.reshape(-1), form, want.shape)
    np.testing.assert_array_equal(expanded(codes), want)
    for rows, turned in [(5, True), (4, True), (5, False)]:
        its = coded(raw[:rows].reshape(-1), form, (rows, 512))
        weight = weight_of(its, turned)
        value = want[:rows].T if turned else want[:rows]
        assert (weight.shape, weight.dtype) == (value.shape, jnp.float32)
        np.testing.assert_array_equal(jax.jit(lambda weight: weight.materialise())(weight), value)
        held = weight.base if form in ("Q4_1", "Q4_K") else weight
        assert held.codes.nbytes == value.size // (2 if form.startswith("Q4") else 1)


@pytest.mark.parametrize("form", BLOCKS)
def test_rows_of_a_table_are_looked_up_without_expanding_it(form):
    raw = random_rows(form, 300, 256)
    table = weight_of(coded(raw.reshape(-1), form, (300, 256)), turned=False)
    ids = jnp.array([[7, 0], [299, 7]])
    look = lift(lambda table, ids: table[ids])
    np.testing.assert_array_equal(jax.jit(look)(table, ids), meant(form, raw[[7, 0, 299]])[[[0, 1], [2, 0]]])
    program = str(jax.make_jaxpr(look)(table, ids))
    assert "f32[2,2,256]" in program
    assert "f32[300,256]" not in program


@pytest.mark.parametrize("form", ["Q4_1", "Q6_K"])
def test_products_are_those_of_the_values(form):
    raw = random_rows(form, 6, 256)
    weight, value = weight_of(coded(raw.reshape(-1), form, (6, 256)), turned=True), meant(form, raw).T
    x = np.random.default_rng(0).normal(size=(3, 256)).astype(np.float32)
    found = jax.jit(lift(lambda w, x: x @ w))(weight, x)
    np.testing.assert_allclose(found, x @ value, rtol=1e-5, atol=1e-5)
    half = jax.jit(lambda weight: weight.materialise())(weight.cast(jnp.bfloat16))
    np.testing.assert_array_equal(half, value.astype(jnp.bfloat16))  # rounded once


PAIR = {"a": np.uint32(7)}


def one(form="F32", shape=(4,), raw=bytes(16), **more):
    return container(PAIR | more, {"t": (form, shape, raw)})


def changed(data, old, new, after=b""):
    at = data.index(old, data.index(after))
    return data[:at] + new + data[at + len(old) :]


def after_name(data, offset, new):
    at = data.index(text("t")) + len(text("t")) + offset
    return data[:at] + new + data[at + len(new) :]


U4, U8 = (lambda n: struct.pack("<I", n)), (lambda n: struct.pack("<Q", n))
HUGE = U8(2**63 + 5)
DAMAGE = {
    "magic": (b"GGML" + one()[4:], "begins with b'GGML'"),
    "empty": (b"", "begins with b''"),
    "a pointer": (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
    "version 1": (one()[:4] + U4(1) + one()[8:], "of version 1; jaxbig reads GGUF of version 2 and 3"),
    "big-endian": (one()[:4] + struct.pack(">I", 3) + one()[8:], "big-endian"),
    "many tensors": (one()[:8] + HUGE + one()[16:], "tensors would take"),
    "many pairs": (one()[:16] + HUGE + one()[24:], "metadata would take"),
    "a long key": (changed(one(), text("a"), HUGE + b"a"), "a metadatum's key is said to have"),
    "an empty key": (changed(one(), text("a"), U8(0)), "said to have 0 bytes"),
    "an odd key": (changed(one(), text("a"), text("\n")), r"a metadatum's key is b'\\n'"),
    "a type": (changed(one(), text("a") + U4(4), text("a") + U4(13)), "a is of the unknown type 13"),
    "a long text": (changed(one(b="xyz"), text("xyz"), HUGE + b"xyz"), "b would take"),
    "not UTF-8": (one(b=b"\xff\xfe"), "b is no UTF-8 text"),
    "a long array": (changed(one(b=["x"]), U8(1) + text("x"), HUGE + text("x")), "b, an array of .* would take"),
    "an array's type": (changed(one(b=["x"]), U4(8) + U8(1), U4(99) + U8(1)), "an array of the unknown type 99"),
    "deep arrays": (one(b=[[[[[["x"]]]]]]), "nested more than 4 deep"),
    "a truth": (changed(one(b=True), U4(7) + b"\1", U4(7) + b"\2", text("b")), "a truth value of 2"),
    "axes": (after_name(one(), 0, U4(5)), "t has 5 axes, and 4 are the most"),
    "a shape": (after_name(one(), 4, U8(2**62)), "ends at byte"),
    "a shape beyond 64 bits": (after_name(one(shape=(4, 1)), 4, U8(2**62) + U8(8)), "has the shape"),
    "no row": (after_name(one(), 4, U8(0)), "has the shape"),
    "no whole blocks": (after_name(one("Q4_0", (32,), bytes(18)), 4, U8(40)), r"t, Q4_0, has the shape \[40\]"),
    "a format": (after_name(one(), 12, U4(4)), "in the unknown format 4"),
    "another format": (after_name(one(), 12, U4(13)), "t is stored as Q5_K; jaxbig reads F32, F16, Q4_0"),
    "an offset": (after_name(one(), 16, U8(2**62)), "ends at byte"),
    "an odd offset": (after_name(one(), 16, U8(3)), "no multiple of 32"),
    "an end": (one()[:-17], "t ends at byte"),
    "alignment": (one(**{"general.alignment": np.uint32(12)}), "general.alignment is 12"),
    "no alignment": (one(**{"general.alignment": "x"}), "general.alignment is 'x'"),
    "a tensor over another": (container({}, {"t": ("F32", (16,), bytes(0)), "u": ("F32", (8,), bytes(64))}), "within"),
}  # fmt: skip


@pytest.mark.parametrize(("data", "message"), DAMAGE.values(), ids=DAMAGE)
def test_damaged_files(tmp_path, data, message):
    (tmp_path / "a.gguf").write_bytes(data)
    with pytest.raises(UserError, match=message) as caught:
        read_container(tmp_path / "a.gguf")
    assert "\n" not in str(caught.value)
    assert "a.gguf" in str(caught.value)


@pytest.mark.parametrize(("pairs", "names"), [(["a", "a"], []), ([], ["t", "t"])])
def test_what_is_given_twice(tmp_path, pairs, names):
    data = b"GGUF" + struct.pack("<IQQ", 3, len(names), len(pairs))
    data += b"".join(text(key) + U4(4) + U4(1) for key in pairs)
    data += b"".join(text(name) + U4(1) + U8(1) + U4(0) + U8(32 * i) for i, name in enumerate(names))
    (tmp_path / "a.gguf").write_bytes(data + bytes(256))
    with pytest.raises(UserError, match="is given twice"):
        read_container(tmp_path / "a.gguf")


def complaint(file):
    try:
        read_container(file)
    except UserError as error:
        return [str(error)]
    return []


def test_no_damage_is_anything_but_one_line(tmp_path):
    """Files cut at any place, and with any byte changed: read, or refused in one line."""
    whole, _ = made()
    file, random, refused = tmp_path / "a.gguf", np.random.default_rng(0), 0
    header = whole.index(b"t.BF16") + 60
    cut = [whole[: int(n)] for n in random.integers(0, len(whole) - 32, 40)]
    for data in cut:
        file.write_bytes(data)
        with pytest.raises(UserError):
            read_container(file)
    for at in random.integers(0, header, 200):
        data = bytearray(whole)
        data[at] = random.integers(0, 256)
        file.write_bytes(data)
        refused += len(told := complaint(file))
        assert not any("\n" in text for text in told)
    assert refused > 30


def test_files_that_are_not_there_or_change(tmp_path):
    assert not is_gguf(tmp_path)
    with pytest.raises(UserError, match="cannot be read"):
        read_container(tmp_path / "a.gguf")
    with pytest.raises(UserError, match="no regular file"):
        read_container(tmp_path)
    (tmp_path / "a.gguf").write_bytes(one())
    tensor = read_container(tmp_path / "a.gguf").tensors["t"]
    (tmp_path / "a.gguf").write_bytes(one()[:-20])
    with pytest.raises(UserError, match="was changed while it was read"):
        read_bytes(tensor)
