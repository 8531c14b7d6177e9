import logging
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from rcnn.data.open import open_dataset
from rcnn.data.proposal_npz import save_proposals
from rcnn.data.proposals import KNOWN_SETS, ProposalTable, open_proposals, rank_scores, split_files
from rcnn.data.records import Record, RecordTable

A = np.array([[1, 2, 3, 4], [0, 0, 9, 9], [5, 5, 6, 6]], np.float32)
NONE = np.zeros((0, 4), np.float32)


def dataset(*ids: str | int, name: str = "test", size: tuple[int, int] = (40, 60)) -> RecordTable:
    """Images without objects."""
    nothing = {"labels": np.zeros(0, np.int64), "ignore": np.zeros(0, bool), "crowd": np.zeros(0, bool)}
    return RecordTable.from_records(
        [Record(i, f"{i}.jpg", *size, boxes=NONE, areas=np.zeros(0, np.float32), **nothing) for i in ids],
        name,
        ("cat",),
    )


def cells(items: list[Any]) -> np.ndarray:
    made = np.empty((len(items), 1), object)
    made[:, 0] = items
    return made


def write_mat(path: Path, boxes: list[np.ndarray], images: list[str] | None = None) -> Path:
    """Boxes 0-based as x1 y1 x2 y2, written as selective search does."""
    values = {"boxes": cells([b[:, (1, 0, 3, 2)].astype(np.float64) + 1 for b in boxes])}
    with path.open("wb") as file:
        scipy.io.savemat(file, values | ({} if images is None else {"images": cells(images)}))
    return path


def write_npz(path: Path, boxes: dict[Any, np.ndarray], *, offset: float = 1, scores: Any = None) -> Path:
    scores = [rank_scores(len(each)) for each in boxes.values()] if scores is None else scores
    save_proposals(path, list(boxes), list(boxes.values()), scores, offset=offset, header={})
    return path


def write_pkl(path: Path, boxes: list[np.ndarray]) -> Path:
    path.write_bytes(pickle.dumps(boxes, 2))
    return path


def test_definition_table() -> None:
    scores = np.array([0.1, 0.9, 0.5], np.float32)
    table = ProposalTable.from_arrays([A, NONE, A[:1]], [scores, scores[:0], scores[:1]], offset=1.0)
    assert len(table) == 3 and table.num_boxes.tolist() == [3, 0, 1] and table.offset == 1.0
    assert table[0][0].tolist() == A[[1, 2, 0]].tolist() and table[0][1].tolist() == scores[[1, 2, 0]].tolist()
    assert table[1][0].shape == (0, 4) and table[-1][0].tolist() == A[:1].tolist()
    assert [len(boxes) for boxes, _ in table] == [3, 0, 1]
    with pytest.raises(IndexError):
        table[3]


def test_without_scores_the_order_stays() -> None:
    table = ProposalTable.from_arrays([A, A[:1]], offset=0.0)
    assert table[0][0].tolist() == A.tolist()
    assert table[0][1].tolist() == pytest.approx([1, 2 / 3, 1 / 3]) and table[1][1].tolist() == [1]
    equal = ProposalTable.from_arrays([A], [np.ones(3, np.float32)], offset=0.0)
    assert equal[0][0].tolist() == A.tolist()


def test_tables_refuse_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match="differ in number"):
        ProposalTable.from_arrays([A], [np.ones(2)], offset=0.0)
    with pytest.raises(ValueError, match="at least one"):
        ProposalTable.from_arrays([A], offset=0.0).limit(0)


def test_an_empty_table() -> None:
    table = ProposalTable.from_arrays([], offset=1.0)
    assert len(table) == 0 and table.limit(3).boxes.shape == (0, 4)


@given(
    counts=st.lists(st.integers(0, 6), max_size=6),
    most=st.integers(1, 8),
    old=st.sampled_from([0.0, 1.0]),
    new=st.sampled_from([0.0, 1.0]),
    data=st.data(),
)
def test_property_limit_sort_and_offset(
    counts: list[int], most: int, old: float, new: float, data: st.DataObject
) -> None:
    boxes = [data.draw(arrays.arrays(np.float32, (n, 4), elements=st.integers(0, 99))) for n in counts]
    scores = [data.draw(arrays.arrays(np.float32, n, elements=st.sampled_from([0.0, 0.5, 1.0]))) for n in counts]
    table = ProposalTable.from_arrays(boxes, scores, offset=old)
    limited = table.limit(most).with_offset(new)
    assert limited.num_dropped == sum(max(n - most, 0) for n in counts) and limited.offset == new
    for (found, ranks), given_boxes, given_scores in zip(limited, boxes, scores, strict=True):
        order = sorted(range(len(given_boxes)), key=lambda i: -given_scores[i])[:most]
        assert ranks.tolist() == given_scores[order].tolist()
        assert (found - given_boxes[order]).tolist() == [[0, 0, old - new, old - new]] * len(order)
    assert np.array_equal(limited.with_offset(old).boxes, table.limit(most).boxes)


def test_packs_small_and_cannot_be_changed_by_accident() -> None:
    table = ProposalTable.from_arrays([A] * 300, offset=1.0)
    packed = pickle.dumps(table)
    assert len(packed) < 300 * 3 * 20 + 300 * 16 + 2000
    for each in (table, pickle.loads(packed), table.limit(2)):
        assert each[7][0].tolist() == A[: len(each[7][0])].tolist()
        for array in each[7]:
            with pytest.raises(ValueError, match="read-only"):
                array *= 2


@pytest.mark.parametrize("offset", [0.0, 1.0])
def test_definition_files_of_every_kind(tmp_path: Path, offset: float) -> None:
    boxes, images = [A[:2], NONE, A[1:2]], dataset("a", "b", "c")
    continuous = [each + np.array([0, 0, 1, 1], np.float32) for each in boxes]
    files = [
        write_npz(tmp_path / "a.npz", {"z": A, "c": boxes[2], "b": NONE, "a": boxes[0]}),
        write_npz(tmp_path / "b.npz", {"b": NONE, "c": continuous[2], "a": continuous[0]}, offset=0),
        write_mat(tmp_path / "a.mat", boxes),
        write_mat(tmp_path / "b.mat", [boxes[2], A, NONE, boxes[0]], ["c", "z", "b", "a"]),
        write_pkl(tmp_path / "a.pkl", boxes),
    ]
    for file in files:
        table = open_proposals(str(file), images, offset=offset)
        assert table.offset == offset and table.num_boxes.tolist() == [2, 0, 1]
        assert table.boxes.tolist() == (np.concatenate(boxes) + [0, 0, 1 - offset, 1 - offset]).tolist()
        assert table.scores.tolist() == [1, 0.5, 1]


def test_scores_sort_the_boxes_of_a_file(tmp_path: Path) -> None:
    scored = np.concatenate([A, np.array([[0.2], [0.8], [0.5]], np.float32)], axis=1)
    table = open_proposals(str(write_pkl(tmp_path / "a.pkl", [scored])), dataset("a"), offset=1.0)
    assert table[0][0].tolist() == A[[1, 2, 0]].tolist() and table[0][1].tolist() == scored[[1, 2, 0], 4].tolist()


@pytest.mark.parametrize("kind", ["npz", "mat", "pkl"])
def test_several_files_and_names_with_a_plus(tmp_path: Path, kind: str) -> None:
    (tmp_path / "c++").mkdir()
    first, second = tmp_path / "c++" / f"2007+x.{kind}", tmp_path / "c++" / f"2012.{kind.upper()}"
    if kind == "npz":  # these name their images
        save_proposals(first, ["c", "b"], [A[1:2], NONE], [np.ones(1), np.ones(0)], offset=1, header={})
        write_npz(tmp_path / "x.npz", {"a": A[:1]}).rename(second)
    else:
        write = {"mat": write_mat, "pkl": write_pkl}[kind]
        write(first, [A[:1]])
        write(second, [NONE, A[1:2]])
    table = open_proposals(f"{first} + {second}", dataset("a", "b", "c"), offset=1.0)
    assert [boxes.tolist() for boxes, _ in table] == [A[:1].tolist(), [], A[1:2].tolist()]


@pytest.mark.parametrize("named", [False, True])
def test_a_merged_set_of_voc(tmp_path: Path, voc_year: Callable[[str], Any], named: bool) -> None:
    first, second = voc_year("2007"), voc_year("2012")
    first.add("000005")
    second.add("2008_000008")
    second.add("2008_000015")
    merged = open_dataset("voc", tmp_path / "kit", "2007_trainval+2012_trainval")
    seven = write_mat(tmp_path / "7.mat", [A[:1]], ["000005"] if named else None)
    twelve = write_mat(tmp_path / "12.mat", [A[1:2], A[:2]], ["2008_000015", "2008_000008"] if named else None)
    table = open_proposals(f"{seven}+{twelve}", merged, offset=1.0)
    assert [merged[i].image_id for i in range(3)] == ["000005", "2008_000008", "2008_000015"]
    assert table.num_boxes.tolist() == ([1, 2, 1] if named else [1, 1, 2])
    if named:  # then the order of the files does not matter
        assert np.array_equal(open_proposals(f"{twelve}+{seven}", merged, offset=1.0).boxes, table.boxes)


def test_files_in_another_order_than_the_sets_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(KNOWN_SETS, "2007_val", 1)
    monkeypatch.setitem(KNOWN_SETS, "2012_val", 2)
    first, second = write_mat(tmp_path / "7.mat", [A]), write_mat(tmp_path / "12.mat", [A, A[:1]])
    images = dataset("a", "b", "c", name="2007_val+2012_val")
    assert open_proposals(f"{first}+{second}", images, offset=1.0).num_boxes.tolist() == [2, 2, 1]
    with pytest.raises(ValueError, match=r"proposals of 2 \+ 1 images, but 2007_val\+2012_val has 1 \+ 2; .* order"):
        open_proposals(f"{second}+{first}", images, offset=1.0)


def test_names_that_are_numbers(tmp_path: Path) -> None:
    path = write_mat(tmp_path / "a.mat", [A[:1], A[1:2]], ["000000000139", "7"])
    assert open_proposals(str(path), dataset(7, 139), offset=1.0)[1][0].tolist() == A[:1].tolist()
    path = write_npz(tmp_path / "a.npz", {7: A[:1], 139: A[1:2]})
    assert open_proposals(str(path), dataset(139), offset=1.0)[0][0].tolist() == A[1:2].tolist()
    assert open_proposals(str(path), dataset("7"), offset=1.0)[0][0].tolist() == A[:1].tolist()
    with pytest.raises(ValueError, match="image '007': of the 1 images of test 1 are not among the 2 listed"):
        open_proposals(str(path), dataset("007"), offset=1.0)


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ("a.npz", ["a.npz"]),
        ("a.mat+b.mat", ["a.mat", "b.mat"]),
        (" a+b.MAT + 2007+2012.pkl+c.npz ", ["a+b.MAT", "2007+2012.pkl", "c.npz"]),
        ("dir.mat/a+b.npz", ["dir.mat/a+b.npz"]),
    ],
)
def test_definition_split(files: str, expected: list[str]) -> None:
    assert split_files(files) == expected


@pytest.mark.parametrize("files", ["", "a", "a.mat+", "a.txt", "a.mat+b", "+a.mat+b.csv", "a.mat++"])
def test_split_refuses_other_files(files: str) -> None:
    with pytest.raises(ValueError, match=r"expected a file ending in \.npz"):
        split_files(files)


@pytest.mark.parametrize("name", ["a.npz", "a.mat", "a.pkl"])
def test_a_file_that_is_not_there_says_where_one_comes_from(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match=rf"{name}: no such file; rcnn proposals makes .* rcnn download"):
        open_proposals(str(tmp_path / name), dataset("x"), offset=1.0)


def test_an_image_without_proposals_is_named(tmp_path: Path) -> None:
    path = str(write_npz(tmp_path / "a.npz", {"a": A, "x": A}))
    expected = (
        r"a\.npz: no proposals for image 'b': of the 3 images of test 2 are not among the 2 listed \('a', \.\.\.\)"
    )
    with pytest.raises(ValueError, match=expected):
        open_proposals(path, dataset("a", "b", "c"), offset=1.0)


def test_an_image_that_comes_twice_is_named(tmp_path: Path) -> None:
    first, second = write_npz(tmp_path / "a.npz", {"a": A, "b": A}), write_npz(tmp_path / "b.npz", {"c": A, "b": A})
    with pytest.raises(ValueError, match=r"b\.npz: image 'b' comes twice, first in .*a\.npz"):
        open_proposals(f"{first}+{second}", dataset("a", "b", "c"), offset=1.0)
    assert len(open_proposals(f"{first}+{second}", dataset("a", "c"), offset=1.0)) == 2  # b is not asked for


def test_another_number_of_images_is_refused_with_the_probable_set(tmp_path: Path) -> None:
    path = write_pkl(tmp_path / "a.pkl", [NONE] * 4952)
    with pytest.raises(ValueError, match=r"of 4952 images \(as 2007_test has\), but test has 1; .* the same set"):
        open_proposals(str(path), dataset("a"), offset=1.0)
    with pytest.raises(ValueError, match=r"of 4952 \+ 4952 images, but"):
        open_proposals(f"{path}+{path}", dataset("a"), offset=1.0)


def test_files_of_two_kinds_are_refused(tmp_path: Path) -> None:
    first, second = write_npz(tmp_path / "a.npz", {"a": A}), write_pkl(tmp_path / "a.pkl", [A])
    with pytest.raises(ValueError, match="some of the files name their images and some do not"):
        open_proposals(f"{first}+{second}", dataset("a", "b"), offset=1.0)


@pytest.mark.parametrize("offset", [0.0, 1.0])
def test_wrong_boxes_are_mended_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture, offset: float) -> None:
    wrong = np.array(
        [
            [np.nan, 0, 5, 5],
            [0, 0, np.inf, 5],
            [9, 0, 5, 5],
            [0, 9, 5, 5],
            [60, 0, 70, 5],
            [-9, -9, -1, -1],
            [-5, 3, 70, 50],
            [-0.75, 3, 59.75, 39],  # clipped without a word
        ],
        np.float32,
    )
    sound = np.tile(A, (4, 1))
    scores = [np.array([*[1.0] * 8, *[0.5] * 11, np.nan])]
    path = str(write_npz(tmp_path / "a.npz", {"a": np.concatenate([wrong, sound])}, offset=offset, scores=scores))
    with caplog.at_level(logging.WARNING, "rcnn.data"):
        table = open_proposals(path, dataset("a"), offset=offset)
    right, bottom = 60 - offset, 40 - offset
    assert table.boxes[:2].tolist() == [[0, 3, right, bottom], [0, 3, min(right, 59.75), 39]]
    assert table.boxes[2:].tolist() == sound[:11].tolist()
    (record,) = caplog.records
    for line in (
        "a.npz: 8 problem(s) in 20 proposals",
        "no finite number, dropped (3): image 'a': (nan, 0, 5, 5) in 60x40 | and 2 more",
        "without area (x2 < x1 or y2 < y1), dropped (2): image 'a': (9, 0, 5, 5) in 60x40",
        "wholly outside its image, dropped (2): image 'a': (60, 0, 70, 5)",
        "more than 1 px outside its image, clipped (1): image 'a': (-5, 3, 70, 50)",
    ):
        assert line in record.getMessage()


def test_an_edge_belongs_to_a_box_by_its_convention(tmp_path: Path) -> None:
    line = np.array([[3, 3, 3, 9], [3, 3, 9, 9], [3, 3, 8, 9]], np.float32)
    inclusive = open_proposals(str(write_npz(tmp_path / "a.npz", {"a": line})), dataset("a"), offset=0.0)
    assert inclusive.boxes[0].tolist() == [3, 3, 4, 10]
    continuous = open_proposals(str(write_npz(tmp_path / "a.npz", {"a": line}, offset=0)), dataset("a"), offset=0.0)
    assert continuous.boxes.tolist() == line[1:].tolist()


@given(
    boxes=arrays.arrays(np.float32, (8, 4), elements=st.floats(-30, 90, width=32)),
    old=st.sampled_from([0.0, 1.0]),
    new=st.sampled_from([0.0, 1.0]),
)
def test_property_boxes_lie_inside(
    tmp_path_factory: pytest.TempPathFactory, boxes: np.ndarray, old: float, new: float
) -> None:
    path = write_npz(tmp_path_factory.mktemp("p") / "a.npz", {"a": boxes, "b": np.tile(A, (20, 1))}, offset=old)
    found = open_proposals(str(path), dataset("a", "b"), offset=new)[0][0] + np.array([0, 0, new, new], np.float32)
    assert (found >= 0).all() and (found <= [60, 40, 60, 40]).all() and (found[:, 2:] > found[:, :2]).all()
    wholly_inside = (boxes[:, :2] >= 0).all(1) & (boxes[:, 2:] + old <= [60, 40]).all(1)
    sound = boxes[wholly_inside & (boxes[:, 2:] + (old or -1e-6) > boxes[:, :2]).all(1)]
    sound = sound[(sound[:, 2:] >= sound[:, :2]).all(1)] + np.array([0, 0, old, old], np.float32)
    assert {tuple(box) for box in sound.tolist()} <= {tuple(box) for box in found.tolist()}


def test_proposals_of_other_images_or_columns_are_refused(tmp_path: Path) -> None:
    far = A + 100
    swapped = np.array([[0, 30, 30, 50], [10, 20, 30, 55], [1, 1, 30, 59]], np.float32)  # of a wide picture, y first
    sized = np.array([[30, 30, 20, 9], [20, 20, 9, 9], [0, 0, 5, 5]], np.float32)  # x y width height
    for boxes in (far, swapped, sized):
        path = write_npz(tmp_path / "a.npz", {"a": boxes})
        with pytest.raises(ValueError, match=r"a\.npz: [23] of 3 boxes do not fit the images of test; .*x1 y1 x2 y2"):
            open_proposals(str(path), dataset("a"), offset=1.0)


def test_files_without_a_box_are_refused(tmp_path: Path) -> None:
    path = write_npz(tmp_path / "a.npz", {"a": NONE, "b": NONE})
    with pytest.raises(ValueError, match="holds no box for any of the 2 images of test"):
        open_proposals(str(path), dataset("a", "b"), offset=1.0)


def test_agreement_with_scipy_on_the_test_set_of_bccd(shared: Path, tmp_path: Path) -> None:
    images = open_dataset("auto", shared / "data" / "bccd", "test")
    assert len(images) == 72
    generator = np.random.default_rng(0)
    boxes = []
    for height, width in images.sizes.tolist():
        corners = np.sort(generator.integers(0, (width, height), (200, 2, 2)), axis=1).reshape(-1, 4)
        corners[0] = 0, 0, width - 1, height - 1
        boxes.append(corners[(corners[:, 2:] - corners[:, :2] >= 2).all(1)].astype(np.float32))
    table = open_proposals(str(write_mat(tmp_path / "a.mat", boxes)), images, offset=1.0)
    order = generator.permutation(72).tolist()
    names = [str(images[i].image_id) for i in order]
    named = write_mat(tmp_path / "b.mat", [boxes[i] for i in order], names)
    for found in (table, open_proposals(str(named), images, offset=1.0)):
        assert [b.tolist() for b, _ in found] == [b.tolist() for b in boxes]
        assert all((np.diff(scores) < 0).all() and scores[0] == 1 for _, scores in found)
