import io
import re
import struct
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io
from hypothesis import given
from hypothesis import strategies as st

from rcnn.data.proposal_mat import MAX_BOXES, NUMBERS, read_mat
from tests.data.test_proposal_npz import fault, mutations, num_read

# As selective search writes them: y1 x1 y2 x2, 1-based and inclusive
ROWS = [[1, 11, 21, 41], [5, 6, 30, 40], [1, 11, 21, 41]]
READ = [[10, 0, 40, 20], [5, 4, 39, 29]]
INTEGERS = [name for name in NUMBERS.values() if name[0] in "iu"]
CLASS_OF = {"f8": 6, "f4": 7, "i1": 8, "u1": 9, "i2": 10, "u2": 11, "i4": 12, "u4": 13, "i8": 14, "u8": 15}
CELL, CHAR, STRUCT = 1, 4, 2


def part(kind: int, data: bytes, order: str = "<") -> bytes:
    """A part of an array, in the tag itself if it is short."""
    if 0 < len(data) <= 4:
        return struct.pack(f"{order}I", len(data) << 16 | kind) + data.ljust(4, b"\0")
    return struct.pack(f"{order}II", kind, len(data)) + data + bytes(-len(data) % 8)


def array(
    kind: int, sides: Sequence[int], content: bytes, name: str = "", order: str = "<", flags: int = 0, wrong: int = 0
) -> bytes:
    """An array of MATLAB, whose size may be told wrong."""
    head = part(6, struct.pack(f"{order}II", kind | flags, 0), order)
    head += part(5, struct.pack(f"{order}{len(sides)}i", *sides), order) + part(1, name.encode(), order)
    return struct.pack(f"{order}II", 14, len(head) + len(content) + wrong) + head + content


def matrix(values: Any, storage: str = "f8", order: str = "<", kind: int = 0) -> bytes:
    """A matrix of numbers, stored as MATLAB does: as the smallest type that holds them."""
    data = np.asarray(values).reshape(-1, 4).astype(order + storage)
    code = next(code for code, name in NUMBERS.items() if name == storage)
    return array(kind or CLASS_OF[storage], data.shape, part(code, data.tobytes("F"), order), order=order)


def text(value: str, kind: int = 4, encoding: str = "utf-16-le", order: str = "<", **more: Any) -> bytes:
    return array(CHAR, (1, len(value)), part(kind, value.encode(encoding), order), order=order, **more)


def cell(name: str, *items: bytes, sides: Sequence[int] = (), order: str = "<", **more: Any) -> bytes:
    return array(CELL, sides or (1, len(items)), b"".join(items), name, order, **more)


def packed(data: bytes, level: int = 9) -> bytes:
    squeezed = zlib.compress(data, level)
    return struct.pack("<II", 15, len(squeezed)) + squeezed


def mat(*variables: bytes, order: str = "<", version: int = 0x100) -> bytes:
    head = b"MATLAB 5.0 MAT-file".ljust(124) + struct.pack(f"{order}H", version) + {"<": b"IM", ">": b"MI"}[order]
    return head + b"".join(variables)


def objects(items: Sequence[Any], column: bool = False) -> np.ndarray:
    """A cell, as scipy takes it."""
    made = np.empty(len(items), object)
    made[:] = items
    return made[:, None] if column else made[None]


def savemat(values: dict[str, Any], compressed: bool) -> bytes:
    file = io.BytesIO()
    scipy.io.savemat(file, values, do_compression=compressed)
    return file.getvalue()


def read(tmp_path: Path, content: bytes) -> Any:
    (tmp_path / "a.mat").write_bytes(content)
    return read_mat(tmp_path / "a.mat")


def slow_reading(rows: np.ndarray) -> list[list[float]]:
    """What a matrix means, box by box."""
    kept: list[list[float]] = []
    for y1, x1, y2, x2 in rows.tolist():
        box = [x1 - 1, y1 - 1, x2 - 1, y2 - 1]
        small = 0 <= x2 - x1 < 2 or 0 <= y2 - y1 < 2
        if box not in kept and not small:
            kept.append(box)
    return kept


def test_definition(tmp_path: Path) -> None:
    names = cell("images", text("000005"), text("bün"), text(""))
    boxes = cell("boxes", matrix(ROWS), matrix([]), matrix([[9, 9, 11, 11], [9, 9, 10, 20], [9, 9, 20, 10]]))
    file = read(tmp_path, mat(cell("other", text("x")), names, boxes))
    assert file.boxes.tolist() == [*READ, [8, 8, 10, 10]] and file.boxes.dtype == np.float32
    assert file.num_boxes.tolist() == [2, 0, 1] and file.image_ids == ["000005", "bün", ""]
    assert file.scores is None and file.offset == 1.0


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("storage", NUMBERS.values())
def test_every_type_of_numbers_in_either_byte_order(tmp_path: Path, storage: str, order: str) -> None:
    items = [
        matrix(ROWS, storage, order),
        matrix(ROWS, storage, order, kind=CLASS_OF["f8"]),
        matrix([], storage, order),
    ]
    for sides in ((1, 3), (3, 1)):
        file = read(tmp_path, mat(cell("boxes", *items, sides=sides, order=order), order=order))
        assert file.boxes.tolist() == READ * 2 and file.num_boxes.tolist() == [2, 2, 0]


@pytest.mark.parametrize(
    ("kind", "encoding", "order"),
    [
        (1, "latin-1", "<"), (2, "latin-1", "<"), (16, "utf-8", "<"), (4, "utf-16-le", "<"), (4, "utf-16-be", ">"),
        (17, "utf-16-le", "<"), (18, "utf-32-be", ">"),
    ],
)  # fmt: skip
def test_every_code_of_text(tmp_path: Path, kind: int, encoding: str, order: str) -> None:
    names = cell("images", text("bücher_1", kind, encoding, order), order=order)
    file = read(tmp_path, mat(names, cell("boxes", matrix(ROWS, order=order), order=order), order=order))
    assert file.image_ids == ["bücher_1"]


def test_empty_cells_and_sets(tmp_path: Path) -> None:
    empty = struct.pack("<II", 14, 0)  # as MATLAB writes [] within a cell
    assert read(tmp_path, mat(cell("boxes", empty, matrix(ROWS)))).num_boxes.tolist() == [0, 2]
    assert read(tmp_path, mat(cell("boxes", sides=(0, 0)))).num_boxes.tolist() == []
    assert read(tmp_path, savemat({"boxes": objects([np.zeros((0, 0)), np.zeros((0, 4))])}, False)).boxes.shape == (
        0,
        4,
    )


def test_numbers_that_are_none_stay_to_be_counted(tmp_path: Path) -> None:
    rows = [[np.nan, 1, 30, 30], [1, 1, 1e300, 30], [30, 30, 10, 10]]
    file = read(tmp_path, mat(cell("boxes", matrix(rows))))
    assert len(file.boxes) == 3 and np.isnan(file.boxes[0, 1]) and np.isinf(file.boxes[1, 3])


@given(
    data=st.lists(st.lists(st.tuples(*[st.integers(1, 12)] * 4), max_size=20), min_size=1, max_size=5),
    storage=st.sampled_from([np.float64, np.float32, np.uint16, np.int32, np.uint8]),
    compressed=st.booleans(),
    column=st.booleans(),
    named=st.booleans(),
)
def test_agreement_with_scipy_and_the_rules_box_by_box(
    tmp_path_factory: pytest.TempPathFactory, data: Any, storage: Any, compressed: bool, column: bool, named: bool
) -> None:
    items = [np.array(rows, storage).reshape(-1, 4) for rows in data]
    values: dict[str, Any] = {"boxes": objects(items, column)}
    names = [f"{i:06d}" for i in range(len(items))]
    if named:
        values["images"] = objects(names, not column)
    file = read(tmp_path_factory.mktemp("m"), savemat(values, compressed))
    expected = [slow_reading(rows) for rows in items]
    assert file.boxes.tolist() == [box for boxes in expected for box in boxes]
    assert file.num_boxes.tolist() == [len(boxes) for boxes in expected]
    assert file.image_ids == (names if named else None)


@pytest.mark.parametrize("compressed", [False, True])
def test_agreement_with_scipy_on_a_file_of_usual_size(tmp_path: Path, compressed: bool) -> None:
    generator = np.random.default_rng(0)
    corners = np.sort(generator.integers(1, (376, 501), (40, 2000, 2, 2)), axis=2)
    items = list(corners.reshape(40, 2000, 4).astype(np.float64))
    content = savemat({"boxes": objects(items), "images": objects([str(i) for i in range(40)], True)}, compressed)
    file = read(tmp_path, content)
    loaded = scipy.io.loadmat(io.BytesIO(content))["boxes"][0]
    first = loaded[7][:, (1, 0, 3, 2)] - 1
    _, places = np.unique(first, axis=0, return_index=True)
    first = first[np.sort(places)]
    first = first[(first[:, 2:] - first[:, :2] >= 2).all(1)]
    start = file.num_boxes[:7].sum()
    np.testing.assert_array_equal(file.boxes[start : start + file.num_boxes[7]], first)
    assert fault(read_mat, tmp_path / "a.mat", content) == ""


BOXES = cell("boxes", matrix(ROWS))
NUMBER = matrix(ROWS)[8:]  # without its tag
HUGE = array(6, (2**31 - 1, 4), struct.pack("<II", 9, 2**32 - 1))
REPEATED = cell("boxes", *[matrix([[1, 1, i // 200 + 9, i % 200 + 9] for i in range(30000)], "u1")] * 9)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "no MATLAB file of format 5"),
        (b"hello", "no MATLAB file of format 5"),
        (b"MATLAB 7.3 MAT-file".ljust(600), "MATLAB 7.3.*-v7"),
        (b"\x89HDF\r\n\x1a\n" + bytes(600), "MATLAB 7.3.*-v7"),
        (mat(BOXES, version=0x200), "MATLAB 7.3.*-v7"),
        (mat(), "no variable 'boxes'"),
        (mat(cell("box", matrix(ROWS))), "no variable 'boxes'"),
        (mat(BOXES, BOXES), "a second variable 'boxes'"),
        (mat(BOXES, cell("images")), "names 0 images, 'boxes' has 1"),
        (mat(BOXES, array(CHAR, (1, 3), part(16, b"abc"), "images")), "'images' is a text of 1x3, not a cell"),
        (mat(BOXES, cell("images", matrix(ROWS))), "'images' holds a matrix of 3x4; expected one line of text"),
        (mat(BOXES, cell("images", text("x", 16, "utf-16-le"), text("x", 4, "utf-8"))), "name of type 4 .* no text"),
        (mat(BOXES, cell("images", text("x" * 5000))), "10000 bytes where at most"),
        (mat(array(6, (3, 4), part(9, bytes(96)), "boxes")), "'boxes' is a matrix of 3x4, not a cell"),
        (mat(array(STRUCT, (1, 1), b"", "boxes")), "'boxes' is a struct of 1x1"),
        (mat(cell("boxes", *[matrix(ROWS)] * 4, sides=(2, 2))), "'boxes' is a cell of 2x2"),
        (mat(cell("boxes", cell("", matrix(ROWS)))), "boxes of an image are a cell of 1x1"),
        (mat(cell("boxes", text("abcd"))), "boxes of an image are a text of 1x4"),
        (mat(cell("boxes", array(6, (2, 5), part(9, bytes(80))))), "matrix of 2x5; expected a matrix of 4 columns"),
        (mat(cell("boxes", array(6, (1, 4), part(9, bytes(32)), flags=0x800))), "complex matrix"),
        (mat(cell("boxes", array(6, (1, 4), part(8, bytes(32))))), "32 bytes of type 8"),
        (mat(cell("boxes", array(6, (2, 4), part(9, bytes(32))))), "32 bytes of type 9 for a matrix of 2x4"),
        (mat(cell("boxes", array(6, (-1, 4), b""))), r"an array of sides \(-1, 4\)"),
        (mat(cell("boxes", array(6, (4,), b""))), r"an array of sides \(4,\)"),
        (mat(cell("boxes", array(6, (1,) * 33, b""))), "132 bytes where at most 128"),
        (mat(cell("boxes", HUGE)), f"2147483647 boxes of an image, more than {MAX_BOXES}"),
        (mat(cell("boxes", array(6, (MAX_BOXES, 4), struct.pack("<II", 9, 32 * MAX_BOXES)))), "bytes wanted"),
        (mat(cell("boxes", sides=(1, 2**31 - 1))), "bytes wanted, 0 left"),
        (mat(cell("boxes", matrix(ROWS), wrong=-8)), "96 bytes wanted, 88 left"),
        (mat(cell("boxes", array(6, (1, 4), part(9, bytes(32)), wrong=-8))), "should have ended 8 bytes before"),
        (mat(cell("boxes", matrix(ROWS), wrong=8)), r"a part of \d+ bytes and type 14, of which"),
        (mat(cell("boxes", matrix(ROWS)) + bytes(4)), "bytes wanted"),
        (mat(BOXES + part(9, bytes(32))), "a part of 32 bytes and type 9"),
        (mat(cell("boxes", part(9, bytes(32)))), "type 9 where an array should start"),
        (mat(cell("boxes", packed(matrix(ROWS)))), "type 15 where an array should start"),
        (mat(packed(packed(BOXES))), "type 15 where an array should start"),
        (mat(cell("boxes" * 99, matrix(ROWS))), "495 bytes where at most 256"),
        (mat(struct.pack("<II", 14, 8) + part(6, b"")), "an array of sides|bytes wanted"),
        (mat(struct.pack("<II", 14, 56) + part(5, bytes(8)) + bytes(40)), "type 5 where type 6"),
        (mat(struct.pack("<III", 14, 16, 5 << 16 | 6) + bytes(12)), "5 bytes where at most"),
        (mat(struct.pack("<II", 15, 9) + b"123456789"), "cannot be unpacked"),
        (mat(struct.pack("<II", 15, 40) + zlib.compress(BOXES)[:40]), "end too early"),
        (mat(struct.pack("<II", 15, 0)), "end too early"),
        (mat(packed(BOXES)[:-2] + b"xx"), "cannot be unpacked"),
        (mat(packed(BOXES + bytes(8))), "more bytes behind the array"),
        (mat(packed(cell("boxes", matrix(ROWS), bytes(1 << 23), sides=(1, 1)))), "more than 64 times its size"),
        (mat(packed(cell("boxes", matrix(np.zeros((60000, 4))), *[matrix(ROWS)] * 9))), "more than 64 times"),
        (mat(packed(cell("boxes", *[struct.pack("<II", 14, 0)] * 20000), 1)), "more than 16 times"),
        (mat(packed(REPEATED)), "more than 16 times"),
        (mat(BOXES, packed(cell("images", *[text("x" * 500, 16, "utf-8")] * 900))), "more than 16 times"),
    ],
)
def test_lies_are_refused_with_file_and_reason(tmp_path: Path, content: bytes, reason: str) -> None:
    assert re.search(rf"a\.mat: .*({reason})", fault(read_mat, tmp_path / "a.mat", content))


def test_a_fault_is_told_with_its_byte(tmp_path: Path) -> None:
    content = mat(cell("other", text("x")), BOXES[:-8])
    with pytest.raises(ValueError, match=rf"byte {len(content) - len(BOXES) + 16}: "):
        read(tmp_path, content)
    with pytest.raises(ValueError, match=r"byte 136, unpacked byte \d+: "):
        read(tmp_path, mat(packed(cell("boxes", text("abcd")))))


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none.mat"):
        with pytest.raises(ValueError, match="cannot be read"):
            read_mat(path)


def small_variables() -> list[bytes]:
    generator = np.random.default_rng(1)
    items = [np.sort(generator.integers(1, 99, (n, 2, 2)), axis=1).reshape(n, 4) for n in (5, 0, 30)]
    values = {"images": objects(["a", "bc", "d"]), "boxes": objects([i.astype("f8") for i in items])}
    return [savemat({name: value}, False)[128:] for name, value in values.items()]


def squeezed_mutations(count: int, seed: int) -> Iterator[bytes]:
    """Damaged arrays, packed soundly, so that no checksum tells."""
    images, boxes = small_variables()
    for damaged in mutations(images, count // 2, seed):
        yield mat(packed(damaged), boxes)
    for damaged in mutations(boxes, count // 2, seed):
        yield mat(packed(images), packed(damaged))


@pytest.mark.parametrize("count", [200, pytest.param(1000, marks=pytest.mark.slow)])
def test_property_damaged_files_are_refused_or_read(tmp_path: Path, count: int) -> None:
    plain = mat(*small_variables())
    squeezed = mat(*map(packed, small_variables()))
    for files in (mutations(plain, count), mutations(squeezed, count), squeezed_mutations(count, seed=count)):
        # a number among the boxes is any number, and the text before them is free
        assert 0 < num_read(read_mat, tmp_path / "a.mat", files) < count * 0.6


@given(st.binary(max_size=300), st.booleans())
def test_property_garbage_is_refused(tmp_path_factory: pytest.TempPathFactory, tail: bytes, squeezed: bool) -> None:
    path = tmp_path_factory.mktemp("m") / "a.mat"
    assert path.name in fault(read_mat, path, mat(packed(tail) if squeezed else tail))
    assert path.name in fault(read_mat, path, tail)
