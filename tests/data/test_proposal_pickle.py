import pickle
import random
import re
import struct
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from rcnn.data.proposal_pickle import MAX_MEMO, MAX_STACK, TYPES, read_pickle
from tests.data.test_proposal_npz import fault, mutations, num_read

SCORED = [
    np.array([[1, 2, 3, 4, 0.9], [5, 6, 7, 8, 0.5]], np.float32),
    np.zeros((0, 5), np.float32),
    np.array([[0, 0, 9, 9, 1]], np.float64),
]
START, END = b"\x80\x02]q\x01(", b"e."  # of a list in protocol 2
NEW_ARRAY = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
NEW_TYPE = b"cnumpy\ndtype\nU\x02f4K\x00K\x01\x87R(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"


def text2(data: bytes) -> bytes:
    """A str of Python 2."""
    return b"U" + bytes([len(data)]) + data if len(data) < 256 else b"T" + struct.pack("<i", len(data)) + data


def state(
    sides: Sequence[int], data: bytes, kind: bytes = NEW_TYPE, fortran: bytes = b"\x89", version: bytes = b"K\x01"
) -> bytes:
    """A new array's state, and its telling."""
    shape = b"(" + b"".join(b"J" + struct.pack("<i", side) for side in sides) + b"t"
    return b"(" + version + shape + kind + fortran + data + b"tb"


def array2(values: np.ndarray, put: int, first: bool) -> bytes:
    """An array as Python 2.7's cPickle wrote it in protocol 2, memo and all."""
    if not first:
        head = b"h\x02h\x03K\x00\x85U\x01b\x87Rq" + bytes([put])
        kind = b"h\x05"
    else:
        head = b"cnumpy.core.multiarray\n_reconstruct\nq\x02cnumpy\nndarray\nq\x03K\x00\x85U\x01b\x87Rq" + bytes([put])
        kind = NEW_TYPE.replace(b"dtype\n", b"dtype\nq\x04").replace(b"\x87R", b"\x87Rq\x05")
    size = b"K" + bytes([len(values)]) if len(values) < 256 else b"M" + struct.pack("<H", len(values))
    sides = size + b"K" + bytes([values.shape[1]]) + b"\x86"
    return head + b"(K\x01" + sides + kind + b"\x89" + text2(values.tobytes()) + b"tb"


def pickle2(items: Sequence[np.ndarray]) -> bytes:
    """A list of float32 arrays as Python 2.7's cPickle wrote it."""
    return START + b"".join(array2(item, 6 + i, i == 0) for i, item in enumerate(items)) + END


def read(tmp_path: Path, content: bytes) -> Any:
    (tmp_path / "a.pkl").write_bytes(content)
    return read_pickle(tmp_path / "a.pkl")


def check_agrees(file: Any, items: Sequence[np.ndarray]) -> None:
    filled = [item for item in items if item.size]
    table = np.concatenate([np.zeros((0, filled[0].shape[1] if filled else 4)), *filled]).astype(np.float32)
    np.testing.assert_array_equal(file.boxes, table[:, :4])
    assert file.num_boxes.tolist() == [len(item) if item.size else 0 for item in items]
    if table.shape[1] == 5:
        np.testing.assert_array_equal(file.scores, table[:, 4])
    else:
        assert file.scores is None


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_definition_every_protocol_of_python_3(tmp_path: Path, protocol: int) -> None:
    file = read(tmp_path, pickle.dumps(SCORED, protocol))
    assert file.boxes.tolist() == [[1, 2, 3, 4], [5, 6, 7, 8], [0, 0, 9, 9]]
    assert file.scores.tolist() == np.array([0.9, 0.5, 1], np.float32).tolist()
    assert file.num_boxes.tolist() == [2, 0, 1] and file.image_ids is None and file.offset == 1.0


def test_definition_protocol_2_of_python_2(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    items = [generator.normal(size=(n, 5)).astype(np.float32) for n in (2, 300, 0, 12)]
    content = pickle2(items)
    with pytest.MonkeyPatch.context() as patch:  # what numpy 1 called its modules
        patch.setitem(sys.modules, "numpy.core.multiarray", sys.modules["numpy._core.multiarray"])
        loaded = pickle.loads(content, encoding="latin1")
    assert all(np.array_equal(a, b) for a, b in zip(loaded, items, strict=True))
    check_agrees(read(tmp_path, content), items)


@given(
    items=st.lists(
        st.integers(0, 4).flatmap(
            lambda rows: arrays.arrays(
                st.sampled_from([order + code for code in TYPES for order in "<>"]),
                (rows, 5),
                elements=st.integers(0, 1000),
            )
        ),
        max_size=6,
    ),
    columns=st.sampled_from([4, 5]),
    protocol=st.integers(2, 5),
    fortran=st.booleans(),
    shared=st.booleans(),
)
def test_property_what_python_pickles_is_read(
    tmp_path_factory: pytest.TempPathFactory,
    items: list[np.ndarray],
    columns: int,
    protocol: int,
    fortran: bool,
    shared: bool,
) -> None:
    items = [(np.asfortranarray if fortran else np.ascontiguousarray)(item[:, :columns]) for item in items]
    items += items[:1] * shared
    check_agrees(read(tmp_path_factory.mktemp("p"), pickle.dumps(items, protocol)), items)


@pytest.mark.parametrize("protocol", [2, 5])
def test_a_file_of_usual_size(tmp_path: Path, protocol: int) -> None:
    generator = np.random.default_rng(0)
    items = [generator.uniform(0, 500, (n, 5)).astype(np.float32) for n in generator.integers(0, 300, 500)]
    content = pickle.dumps(items, protocol)
    assert fault(read_pickle, tmp_path / "a.pkl", content) == ""
    check_agrees(read(tmp_path, content), items)


def test_empty_lists_and_empty_arrays_are_images_without_boxes(tmp_path: Path) -> None:
    items = [np.zeros((0, 4)), [], np.zeros(0, np.float32), SCORED[0]]
    for protocol in range(2, 6):
        assert read(tmp_path, pickle.dumps(items, protocol)).num_boxes.tolist() == [0, 0, 0, 2]
    assert read(tmp_path, pickle.dumps([], 2)).boxes.shape == (0, 4)


class Evil:
    """What a pickle can do to who loads it."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> Any:
        return self.function, self.arguments


def listed(*items: bytes) -> bytes:
    return START + b"".join(items) + END


ONES = text2(struct.pack("<4f", 1, 1, 1, 1))
SOUND = NEW_ARRAY + state((1, 4), ONES)
PLACES = [struct.pack("<I", i) for i in range(2000)]
MANY_PLACES = b"\x80\x02" + b"".join(b"Nr" + i for i in PLACES) + b"".join(b"j" + i for i in PLACES) + b"."
COPY = b"h\x00h\x01X\x06\x00\x00\x00latin1\x86R"
MANY_COPIES = b"\x80\x02c_codecs\nencode\nq\x00X\x00\x10\x00\x00" + b"x" * 4096 + b"q\x01" + COPY * 900 + b"."
TAKE_IN = b"0" * 99  # POP, which no list of arrays needs
LAUGHS = b"\x80\x02" + b"".join(
    b"](" + (b"h" + bytes([max(i, 1) - 1])) * 10 * (i > 0) + b"eq" + bytes([i]) for i in range(30)
) + b"."  # fmt: skip


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "byte 0: no pickle of protocol 2"),
        (b"hello", "byte 0: no pickle of protocol 2"),
        (pickle.dumps(SCORED, 0), "no pickle of protocol 2 to 5; write it with"),
        (b"\x80\x06].", "protocol 6"),
        (b"\x80\x02", "byte 2: ends too early"),
        (b"\x80", "ends too early"),
        (b"\x80\x02].x", "1 bytes behind the end"),
        (b"\x80\x02N.", "no list where|the whole is no list"),
        (b"\x80\x02]].", "the whole is no list"),
        (pickle.dumps(SCORED[0], 2), "the whole is no list"),
        (pickle.dumps({"boxes": SCORED}, 2), "a dictionary"),
        (pickle.dumps([1.5], 2), "a bare number"),
        (pickle.dumps([{1}], 4), "a set"),
        (pickle.dumps([1, 2], 2), "a list of something else than arrays"),
        (pickle.dumps([SCORED, SCORED], 2), "image 0: a list, not an array of boxes; are these detections"),
        (pickle.dumps([Evil(print, "hurt")], 2), "asks for __builtin__.print"),
        (pickle.dumps([Evil(eval, "1/0")], 4), "asks for builtins.eval"),
        (pickle.dumps([Path("x")], 4), "asks for pathlib"),
        (b"\x80\x02cos\nsystem\nU\x02ls\x85R.", "byte 2: asks for os.system, and nothing is run here"),
        (b"\x80\x04\x8c\x02os\x8c\x06system\x93.", "asks for os.system"),
        (b"\x80\x02cnumpy\nload\nU\x01x\x85R.", "asks for numpy.load"),
        (b"\x80\x02cnumpy.core.multiarray\nscalar\n.", "asks for numpy.core.multiarray.scalar"),
        (b"\x80\x02c" + b"x" * 999 + b"\n", "a name that does not end"),
        (b"\x80\x02(ios\nsystem\n.", "an object"),
        (b"\x80\x02cnumpy\nndarray\n)\x81.", "an object"),
        (b"\x80\x02Pid\n.", "a persistent id"),
        (b"\x80\x02NQ.", "a persistent id"),
        (b"\x80\x02\x82\x01.", "an extension"),
        (b"\x80\x05\x97.", "data of another file"),
        (listed(SOUND, TAKE_IN), "the opcode b'0'"),
        (listed(NEW_ARRAY), "image 0: an array of ()"),
        (listed(NEW_ARRAY + state((1, 4), b"]", NEW_TYPE)), "an array of objects"),
        (listed(NEW_ARRAY + state((1, 4), ONES, b"N")), "an array of objects"),
        (pickle.dumps([np.array([[None] * 4])], 2), "numbers of type 'O8'"),
        (pickle.dumps([np.ones((2, 4), "f2")], 2), "numbers of type 'f2'; known: u2"),
        (pickle.dumps([np.ones((2, 4), "c8")], 4), "numbers of type 'c8'"),
        (pickle.dumps([np.ones(2, [("a", "f4")])], 4), "a dictionary"),
        (pickle.dumps([np.ones((2, 6))], 2), r"image 0: an array of \(2, 6\); expected \(n, 4\)"),
        (pickle.dumps([np.ones(4)], 2), r"image 0: an array of \(4,\)"),
        (pickle.dumps([np.ones((1, 2, 4))], 2), "not two sides"),
        (pickle.dumps([np.ones((1, 4)), np.ones((1, 5))], 2), "of 4 columns and some of 5"),
        (listed(NEW_ARRAY + state((2**30, 4), ONES)), r"\(1073741824, 4\) f4 in 16 bytes"),
        (listed(NEW_ARRAY + state((-1, -4), ONES)), "not two sides"),
        (listed(NEW_ARRAY + state((1, 5), ONES)), r"\(1, 5\) f4 in 16 bytes"),
        (listed(NEW_ARRAY + b"(K\x01tb"), "a state that no array has"),
        (listed(NEW_ARRAY + b")b"), "a state that no array has"),
        (listed(NEW_TYPE.replace(b"<", b"!") + b")"), "a type of numbers with parts"),
        (listed(NEW_TYPE.replace(b"<NNN", b"<N)N") + b")"), "a type of numbers with parts"),
        (listed(b"cnumpy\nndarray\n)R"), "calls numpy.ndarray"),
        (listed(b"cnumpy\ndtype\n)R"), "calls numpy.dtype"),
        (listed(b"c_codecs\nencode\nU\x01xU\x03hex\x86R"), "bytes in a code"),
        (listed(b"c_codecs\nencode\nX\x03\x00\x00\x00\xe2\x82\xacX\x06\x00\x00\x00latin1\x86R"), "bytes that are none"),
        (listed(b"c_codecs\nencode\nX\x01\x00\x00\x00\xffX\x06\x00\x00\x00latin1\x86R"), "bytes that are none"),
        (b"\x80\x02K\x01K\x02R.", "no tuple where one should be"),
        (b"\x80\x02)R.", "no name where one should be"),
        (b"\x80\x02e.", "a mark is missing"),
        (b"\x80\x02](\x85e.", "no object where one should be"),
        (b"\x80\x02h\x07.", "nothing was put at place 7"),
        (b"\x80\x02T\xff\xff\xff\xff.", "4294967295 bytes claimed, 1 left"),
        (b"\x80\x04\x8e" + b"\xff" * 8 + b".", "18446744073709551615 bytes claimed"),
        (b"\x80\x05\x96" + struct.pack("<Q", 1 << 40) + b".", "bytes claimed"),
        (b"\x80\x04\x95" + struct.pack("<Q", 1 << 62) + b"N.", "the whole is no list"),
        (b"\x80\x02\x8a\xff" + bytes(255) + b".", "a number of 255 bytes"),
        (b"\x80\x02\x8b\xff\xff\xff\x7f.", "the opcode"),
        (b"\x80\x02" + b"(" * 20000 + b".", "more than 64 marks"),
        (b"\x80\x02" + b"N" * 20000 + b".", f"more than {MAX_STACK} objects"),
        (b"\x80\x02)" + b"\x85" * 20000 + b".", "a tuple that no array has"),
        (b"\x80\x02(" + b"N" * 17 + b"t.", "a tuple that no array has"),
        (b"\x80\x02](" + b"]" * 2000 + b"e(" + b"]" * 2000 + b"e.", ""),
        (b"\x80\x02]" + (b"(" + b"]" * 2000 + b"e") * 9 + b".", "more than 16384 lists"),
        (b"\x80\x02]" + b"]a" * 17000 + b".", "more than 16384 lists"),
        (b"\x80\x02](h\x00e.", "nothing was put"),
        (b"\x80\x02]q\x00(h\x00e.", "image 0: a list, not an array"),
        (LAUGHS, "image 0: a list|the whole is no list"),
        (MANY_PLACES, f"more than {MAX_MEMO} objects that are used again"),
        (listed(SOUND + b"q\x02", *[b"h\x02"] * 1900, b"e(", *[b"h\x02"] * 2000), "the same arrays again and again"),
        (listed(NEW_ARRAY + state((0, 4), b"U\x00") + b"q\x02", *[b"e(" + b"h\x02" * 1900] * 5), "again and again"),
        (b"\x80\x04" + b"]\x94" * 9000 + b".", f"more than {MAX_STACK} objects"),
        (b"\x80\x04N" + b"\x94" * 20000 + b".", "the whole is no list"),
        (MANY_COPIES, "bytes in a code"),
    ],
)  # fmt: skip
def test_lies_are_refused_with_file_and_reason(tmp_path: Path, content: bytes, reason: str) -> None:
    text = fault(read_pickle, tmp_path / "a.pkl", content)
    assert re.search(rf"a\.pkl: .*({reason})", text) if reason else not text


def test_nothing_is_run(tmp_path: Path) -> None:
    left = tmp_path / "left"
    for protocol in range(2, 6):
        content = pickle.dumps([Evil(open, str(left), "w")], protocol)
        with pytest.raises(ValueError, match="nothing is run here"):
            read(tmp_path, content)
        assert not left.exists()
        pickle.loads(content)[0].close()
        assert left.exists()  # but it would have been
        left.unlink()


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none.pkl"):
        with pytest.raises(ValueError, match="cannot be read"):
            read_pickle(path)


def shuffled_opcodes(count: int, seed: int) -> Iterator[bytes]:
    """Programs of the opcodes of sound files in other orders."""
    generator = random.Random(seed)
    pieces = [
        b"(", b"]", b"a", b"e", b")", b"\x85", b"\x86", b"\x87", b"t", b"N", b"\x88", b"K\x00", b"K\x04", b"q\x00",
        b"h\x00", b"\x94", b"R", b"b", b"U\x01b", ONES, b"X\x06\x00\x00\x00latin1", b"cnumpy\nndarray\n",
        b"cnumpy\ndtype\n", b"c_codecs\nencode\n",
        b"cnumpy.core.multiarray\n_reconstruct\n", b"cnumpy.core.numeric\n_frombuffer\n",
        NEW_TYPE, NEW_ARRAY, SOUND,
    ]  # fmt: skip
    for _ in range(count):
        yield b"\x80\x02](" + b"".join(generator.choices(pieces, k=generator.randint(0, 12))) + b"e."


@pytest.mark.parametrize("count", [100, pytest.param(500, marks=pytest.mark.slow)])
def test_property_damaged_files_are_refused_or_read(tmp_path: Path, count: int) -> None:
    files = [pickle.dumps(SCORED, protocol) for protocol in range(2, 6)] + [pickle2([SCORED[0]] * 3)]
    for content in files:
        read = num_read(read_pickle, tmp_path / "a.pkl", mutations(content, count, seed=count))
        assert 0 < read < count * 0.9  # a number among the boxes is any number
    assert 0 < num_read(read_pickle, tmp_path / "a.pkl", shuffled_opcodes(4 * count, seed=count)) < count


@given(st.binary(max_size=300), st.integers(2, 5))
def test_property_garbage_is_refused(tmp_path_factory: pytest.TempPathFactory, tail: bytes, protocol: int) -> None:
    path = tmp_path_factory.mktemp("p") / "a.pkl"
    assert path.name in fault(read_pickle, path, b"\x80" + bytes([protocol]) + b"J" + tail)
    assert path.name in fault(read_pickle, path, tail)
