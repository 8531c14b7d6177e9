import io
import json
import random
import re
import struct
import tracemalloc
import zipfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from rcnn.data.proposal_npz import FORMAT, ProposalFile, read_npz, save_proposals

IDS = ["000005", "ü", "2008_000008"]
BOXES = [
    np.array([[1, 2, 3, 4], [0, 0.5, 9, 8]], np.float32),
    np.zeros((0, 4), np.float32),
    np.ones((1, 4), np.float32),
]
SCORES = [np.array([0.9, 0.5], np.float32), np.zeros(0, np.float32), np.array([1], np.float32)]
EXTREMES = (0, 1, 0x7F, 0xFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)


def mutations(content: bytes, count: int, seed: int = 0) -> Iterator[bytes]:
    """Damaged copies of a file: cut off, bits turned, bytes lost or doubled, numbers made extreme."""
    generator = random.Random(seed)
    for _ in range(count):
        data = bytearray(content)
        for _ in range(generator.randint(1, 3)):
            place = generator.randrange(len(data) or 1)
            kind = generator.randrange(5)
            if kind == 0:
                del data[place:]
            elif kind == 1:
                del data[place : place + generator.randint(1, 9)]
            elif kind == 2:
                data[place:place] = data[place : place + generator.randint(1, 99)]
            elif kind == 3 and place + 4 <= len(data):
                struct.pack_into(generator.choice("<>") + "I", data, place, generator.choice(EXTREMES))
            elif data:
                data[min(place, len(data) - 1)] ^= 1 << generator.randrange(8)
        yield bytes(data)


def fault(read: Callable[[Path], ProposalFile], path: Path, content: bytes) -> str:
    """Why a hostile file is refused; "" if it is read. All else fails the test, and so does memory out of bounds."""
    path.unlink(missing_ok=True)  # to shorten a file takes longer
    path.write_bytes(content)
    tracemalloc.start()
    try:
        file = read(path)
    except ValueError as error:
        return str(error)
    else:
        assert file.boxes.shape == (file.num_boxes.sum(), 4) and file.boxes.dtype == np.float32
        assert file.scores is None or file.scores.shape == file.boxes.shape[:1]
        assert file.image_ids is None or len(file.image_ids) == len(file.num_boxes)
        return ""
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak <= 8 * len(content) + (4 << 20), peak


def num_read(read: Callable[[Path], ProposalFile], path: Path, contents: Iterable[bytes]) -> int:
    """How many of hostile files are read; the others are refused by their name."""
    faults = [fault(read, path, content) for content in contents]
    assert all(path.name in text for text in faults if text)
    return faults.count("")


def members(**changes: Any) -> dict[str, Any]:
    """The arrays of a small file."""
    return {
        "boxes": np.concatenate(BOXES),
        "scores": np.concatenate(SCORES),
        "num_boxes": np.array([2, 0, 1]),
        "image_ids": np.array(IDS),
        "header": np.array(json.dumps({"format": FORMAT, "offset": 1})),
    } | changes


def npz(method: int = zipfile.ZIP_STORED, **contents: Any) -> bytes:
    """A zip of arrays, or of bytes as they are."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        for name, content in contents.items():
            if not isinstance(content, bytes):
                npy = io.BytesIO()
                np.lib.format.write_array(npy, content)
                content = npy.getvalue()
            archive.writestr(f"{name}.npy", content)
    return file.getvalue()


def npy(descr: str, shape: str, data: bytes = b"", fortran: bool = False) -> bytes:
    """An array with any claim in its header."""
    text = f"{{'descr': {descr}, 'fortran_order': {fortran}, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + data


def test_definition_what_is_saved_is_read(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.npz"
    save_proposals(path, IDS, BOXES, SCORES, offset=1, header={"method": "rpn", "set": "2007_test"})
    file = read_npz(path)
    np.testing.assert_array_equal(file.boxes, np.concatenate(BOXES))
    np.testing.assert_array_equal(file.scores, np.concatenate(SCORES))
    assert file.num_boxes.tolist() == [2, 0, 1] and list(file.image_ids) == IDS and file.offset == 1.0
    assert file.header == {"format": FORMAT, "offset": 1.0, "method": "rpn", "set": "2007_test"}


def test_agreement_with_numpy(tmp_path: Path) -> None:
    save_proposals(tmp_path / "a.npz", [3, 1], BOXES[:2], SCORES[:2], offset=0, header={})
    with np.load(tmp_path / "a.npz", allow_pickle=False) as file:
        types = {name: (file[name].dtype, file[name].shape) for name in file.files}
        header = json.loads(file["header"].item())
    assert types.pop("header")[1] == () and header == {"format": "rcnn-proposals-1", "offset": 0}
    assert types == {
        "boxes": (np.dtype("f4"), (2, 4)),
        "scores": (np.dtype("f4"), (2,)),
        "num_boxes": (np.dtype("i8"), (2,)),
        "image_ids": (np.dtype("i8"), (2,)),
    }


def test_the_same_input_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a.npz", "b.npz"):
        save_proposals(tmp_path / name, IDS, BOXES, SCORES, offset=1, header={"b": 1, "a": 2})
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()


def test_an_empty_set(tmp_path: Path) -> None:
    save_proposals(tmp_path / "a.npz", [], [], [], offset=0, header={})
    file = read_npz(tmp_path / "a.npz")
    assert file.boxes.shape == (0, 4) and len(file.image_ids) == 0


@given(
    counts=st.lists(st.integers(0, 5), max_size=6),
    offset=st.sampled_from([0, 1]),
    data=st.data(),
    method=st.sampled_from([None, zipfile.ZIP_DEFLATED]),
)
def test_property_round_trip(
    tmp_path_factory: pytest.TempPathFactory, counts: list[int], offset: int, data: st.DataObject, method: int | None
) -> None:
    any_float = st.floats(width=32)
    boxes = [data.draw(arrays.arrays(np.float32, (n, 4), elements=any_float)) for n in counts]
    scores = [data.draw(arrays.arrays(np.float32, n, elements=any_float)) for n in counts]
    text = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1)
    ids = data.draw(st.lists(text, min_size=len(counts), max_size=len(counts), unique=True))
    path = tmp_path_factory.mktemp("p") / "a.npz"
    save_proposals(path, ids, boxes, scores, offset=offset, header={"ids": ids})
    if method:
        with np.load(path) as arrays_of_file:
            path.write_bytes(npz(method, **dict(arrays_of_file)))
    file = read_npz(path)
    assert file.num_boxes.tolist() == counts and list(file.image_ids) == ids and file.header["ids"] == ids
    assert file.boxes.tobytes() == b"".join(b.tobytes() for b in boxes)
    assert file.scores is not None and file.scores.tobytes() == b"".join(s.tobytes() for s in scores)


def test_other_types_of_the_same_kind_are_converted(tmp_path: Path) -> None:
    fortran = np.asfortranarray(np.concatenate(BOXES).astype(">f8"))
    changes = {"boxes": fortran, "scores": np.ones(3), "num_boxes": np.array([2, 0, 1], ">i4")}
    (tmp_path / "a.npz").write_bytes(npz(**members(**changes, image_ids=np.array([5, 6, 7], "<i4"))))
    file = read_npz(tmp_path / "a.npz")
    np.testing.assert_array_equal(file.boxes, np.concatenate(BOXES))
    assert file.boxes.dtype == np.float32 and file.num_boxes.tolist() == [2, 0, 1]


@pytest.mark.parametrize(
    ("ids", "boxes", "scores", "reason"),
    [
        (IDS, BOXES[:2], SCORES, "3 image ids, boxes of 2"),
        (IDS, BOXES, SCORES[::-1], "one score a box"),
        (["a", "b", "a"], BOXES, SCORES, "more than once"),
    ],
)
def test_refuses_to_save_what_does_not_fit(tmp_path: Path, ids: Any, boxes: Any, scores: Any, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        save_proposals(tmp_path / "a.npz", ids, boxes, scores, offset=1, header={})
    with pytest.raises(ValueError, match=r"end|\.npz"):
        save_proposals(tmp_path / "a.pkl", IDS, BOXES, SCORES, offset=1, header={})
    assert not list(tmp_path.iterdir())


def with_method(content: bytes, method: int) -> bytes:
    """A zip that claims another way of compression for its first member."""
    data = bytearray(content)
    for mark, place in ((b"PK\3\4", 8), (b"PK\1\2", 10)):
        struct.pack_into("<H", data, data.find(mark) + place, method)
    return bytes(data)


def with_directory(content: bytes, size: int) -> bytes:
    """A zip that claims a directory of another size."""
    data = bytearray(content)
    struct.pack_into("<I", data, data.rfind(b"PK\5\6") + 12, size)
    return bytes(data)


SOUND = npz(**members())
DEEP = np.array('{"format": "rcnn-proposals-1", "offset": 1, "x": ' + "[" * 9999)
NO_TEXT = np.array([0x110000, 0, 0], np.uint32).view("U1")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "no sound .npz"),
        (b"hello", "no sound .npz"),
        (SOUND[:-30], "no sound .npz"),
        (SOUND[:60] + b"x" + SOUND[61:], "boxes"),
        (with_directory(SOUND, 0xFFFFFFF0), "no sound .npz"),
        (with_directory(SOUND + bytes(1 << 20), 1 << 19), "no sound .npz"),
        (with_method(SOUND, 14), "compressed by method 14"),
        (with_method(SOUND, 8), "boxes"),
        (npz(**members(more=np.ones(2))), "holds 'boxes.npy'.*expected the arrays"),
        (npz(boxes=np.ones((2, 4))), "expected the arrays"),
        (npz(zipfile.ZIP_DEFLATED, **members(boxes=np.zeros((1 << 18, 4)))), "claims to unpack to"),
        (npz(**members(boxes=np.array([None]))), "boxes: holds .*not expected"),
        (npz(**members(boxes=npy("'|O'", "(3, 4)", b"cos\nsystem\n"))), "boxes: holds"),
        (npz(**members(boxes=npy("'<f4'", "(1099511627776, 4)", bytes(48)))), "boxes: an array of"),
        (npz(**members(boxes=npy("'<f4'", f"({10**30}, 0)"))), "boxes"),
        (npz(**members(boxes=npy("'<f4'", "(3, -4)", bytes(48)))), "boxes: holds"),
        (npz(**members(boxes=npy("'<f4'", "(3, 4)", bytes(49)))), "boxes: an array of"),
        (npz(**members(boxes=npy("'<f2'", "(3, 4)", bytes(24)))), "boxes: holds"),
        (npz(**members(boxes=npy("[('a', '<f4')]", "(3, 4)", bytes(48)))), "boxes: holds"),
        (npz(**members(boxes=npy("__import__('os')", "(3, 4)", bytes(48)))), "boxes: holds"),
        (npz(**members(boxes=b"\x93NUMPY\x02\x00\xff\xff\xff\x7f" + b"{" * 99)), "boxes: holds"),
        (npz(**members(boxes=np.ones((3, 5), np.float32))), "do not fit together"),
        (npz(**members(boxes=np.ones(12, np.float32))), "boxes: holds"),
        (npz(**members(boxes=np.ones((3, 4), np.int64))), "boxes: holds"),
        (npz(**members(scores=np.ones(2, np.float32))), "do not fit together"),
        (npz(**members(num_boxes=np.array([4, 0, -1]))), "do not fit together"),
        (npz(**members(num_boxes=np.array([2**62, 2**62, 2**62, 2**62 + 3]))), "do not fit together"),
        (npz(**members(num_boxes=np.array([2, 1]))), "do not fit together"),
        (npz(**members(num_boxes=np.array([2.0, 0, 1]))), "num_boxes: holds"),
        (npz(**members(image_ids=npy("'<U0'", "(3,)"))), "image_ids: holds"),
        (npz(**members(image_ids=npy("'<U999999999'", "(3,)"))), "image_ids: holds"),
        (npz(**members(image_ids=NO_TEXT)), "image_ids: holds bytes that are no text"),
        (npz(**members(header=np.array("{"))), "header: is no JSON"),
        (npz(**members(header=DEEP)), "header: is no JSON"),
        (npz(**members(header=np.array("x" * 70000))), "header: 70000 characters|header: holds"),
        (npz(**members(header=np.array("[]"))), "expected the format"),
        (npz(**members(header=np.array('{"format": "rcnn-proposals-2", "offset": 0}'))), "expected the format"),
        (npz(**members(header=np.array(f'{{"format": "{FORMAT}", "offset": 0.5}}'))), "offset must be"),
        (npz(**members(header=np.array(f'{{"format": "{FORMAT}"}}'))), "offset must be"),
    ],
)
def test_lies_are_refused_with_file_and_reason(tmp_path: Path, content: bytes, reason: str) -> None:
    assert re.search(rf"a\.npz: .*({reason})", fault(read_npz, tmp_path / "a.npz", content))


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none.npz"):
        with pytest.raises(ValueError, match="cannot be read"):
            read_npz(path)


def deep_mutations(count: int, seed: int) -> Iterator[bytes]:
    """Damaged arrays in sound zips, so that no checksum tells."""
    generator = random.Random(seed)
    for number in range(count):
        name = generator.choice(list(members()))
        with zipfile.ZipFile(io.BytesIO(SOUND)) as archive:
            content = archive.read(f"{name}.npy")
        (damaged,) = mutations(content, 1, seed * count + number)
        yield npz(generator.choice([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED]), **members(**{name: damaged}))


@pytest.mark.parametrize("count", [300, pytest.param(3000, marks=pytest.mark.slow)])
def test_property_damaged_files_are_refused_or_read(tmp_path: Path, count: int) -> None:
    save_proposals(tmp_path / "a.npz", IDS, BOXES, SCORES, offset=1, header={})
    sound = (tmp_path / "a.npz").read_bytes()
    # some bits of a zip mean nothing
    assert 0 < num_read(read_npz, tmp_path / "a.npz", mutations(sound, count, seed=count)) < count / 2
    # a number among the boxes is any number
    assert 0 < num_read(read_npz, tmp_path / "a.npz", deep_mutations(count, seed=count)) < count


@given(st.binary(max_size=300))
def test_property_garbage_is_refused(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.mktemp("p") / "a.npz"
    assert path.name in fault(read_npz, path, content)
