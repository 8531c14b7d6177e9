"""mx-rcnn's .pkl of proposals, read by a machine of our own that runs nothing of what a pickle asks to be run."""

import math
import os
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np

from rcnn.data.proposal_npz import ProposalFile

OFFSET = 1.0  # mx-rcnn's boxes hold their last pixel
MAX_RATIO, ALLOWANCE = 4, 1 << 16  # bytes kept for a byte of the file, and bytes besides
ROW_COST, IMAGE_COST = 20, 16  # bytes
MAX_STACK, MAX_MARKS = 2048, 64  # picklers add to a list by the thousand
MAX_MEMO = 1024  # objects that are used again: names, and empty arrays
MAX_LISTS = 1 << 14
MAX_TUPLE, MAX_LINE, MAX_NAME = 16, 256, 64
BYTE_ORDERS = {"<": "<", ">": ">", "=": "<"}
TYPES = ("u2", "i2", "u4", "i4", "u8", "i8", "f4", "f8")

NUMBERS = {form: struct.Struct(f"<{form}") for form in "BHIiQ"}
LENGTHS = {"number1": "B", "data1": "B", "data4": "I", "data8": "Q"}  # bytes, and how many of them
CONSTANTS = {"": None, "true": True, "false": False, "0": 0, "1": 1, "2": 2, "3": 3}
# What an opcode does, and what follows it: one of the above or two lines of text.
# Source: PEP 307, 3154 and 574; CPython, Lib/pickletools.py.
OPCODES = {
    b"\x80": ("version", "B"), b"\x95": ("skip", "Q"), b".": ("skip", ""), b"(": ("mark", ""),
    b"]": ("list", ""), b"a": ("append", ""), b"e": ("appends", ""),
    b")": ("tuple", "0"), b"\x85": ("tuple", "1"), b"\x86": ("tuple", "2"), b"\x87": ("tuple", "3"),
    b"t": ("tuple", ""),
    b"N": ("push", ""), b"\x88": ("push", "true"), b"\x89": ("push", "false"),
    b"K": ("push", "B"), b"M": ("push", "H"), b"J": ("push", "i"), b"\x8a": ("push", "number1"),
    b"U": ("push", "data1"), b"T": ("push", "data4"), b"C": ("push", "data1"), b"B": ("push", "data4"),
    b"\x8e": ("push", "data8"), b"\x96": ("push", "data8"), b"\x8c": ("push", "data1"), b"X": ("push", "data4"),
    b"\x8d": ("push", "data8"), b"c": ("name", "lines"), b"\x93": ("name_on_stack", ""),
    b"q": ("put", "B"), b"r": ("put", "I"), b"\x94": ("memoize", ""), b"h": ("get", "B"), b"j": ("get", "I"),
    b"R": ("call", ""), b"b": ("build", ""),
}  # fmt: skip
REFUSED = {  # what else pickles hold
    b"P": "a persistent id", b"Q": "a persistent id", b"i": "an object", b"o": "an object", b"\x81": "an object",
    b"\x92": "an object", b"\x82": "an extension", b"\x83": "an extension", b"\x84": "an extension",
    b"}": "a dictionary", b"\x8f": "a set", b"\x91": "a set", b"G": "a bare number", b"\x97": "data of another file",
}  # fmt: skip


@dataclass(slots=True, eq=False, repr=False)
class _Bytes:
    """Text or data, not copied out of where it lies."""

    buffer: bytes
    start: int
    size: int

    def text(self) -> str:
        """The first characters; names are short."""
        return self.buffer[self.start : self.start + min(self.size, MAX_NAME)].decode("latin-1")


@dataclass(slots=True, eq=False, repr=False)
class _Type:
    """numpy.dtype, whose byte order is told later."""

    code: str
    order: str = "<"


@dataclass(slots=True, eq=False, repr=False)
class _Array:
    """numpy.ndarray, empty until its state is told."""

    kind: _Type | None = None
    shape: tuple[int, ...] = ()
    fortran: bool = False
    data: _Bytes | None = None


@dataclass(slots=True, eq=False, repr=False)
class _Name:
    """A function or class by its name. It is never looked up."""

    name: str


def read_pickle(path: str | os.PathLike[str]) -> ProposalFile:
    """The proposals of mx-rcnn's `rpn_data/*_rpn.pkl`: a list of arrays (n, 4) or (n, 5), an image each.

    Boxes are x1 y1 x2 y2 in original pixels, inclusive (offset 1), the fifth column is the score. Pickles of protocol 2
    to 5, of Python 2 or 3, are read. Nothing of the pickle is run, not even numpy: only what such a list is made of is
    understood, and what is kept takes at most 4 bytes for a byte of the file.

    Raises:
        ValueError: naming the file, the byte and what is there.

    Source: mx-rcnn, rcnn/tools/test_rpn.py, IMDB.load_rpn_data.
    """
    try:
        with open(path, "rb") as file:
            data = file.read(os.fstat(file.fileno()).st_size)
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror or error})") from error
    machine = _Machine(_Tape(data, os.fspath(path)))
    return _pack(machine.run(), os.fspath(path), len(data))


class _Tape:
    """The opcodes of a pickle with what follows them. Nothing is copied, and no length is believed."""

    def __init__(self, data: bytes, path: str) -> None:
        self.data, self.path, self.position = data, path, 0

    def fail(self, reason: str) -> NoReturn:
        """Says what is wrong at the opcode read last."""
        raise ValueError(f"{self.path}: byte {self.position}: {reason}; expected mx-rcnn's list of arrays of boxes")

    def operations(self) -> Iterator[tuple[str, Any]]:
        """What the opcodes do, from the first to the last."""
        self.position, following, code = 0, 0, b""
        if self.data[:1] != b"\x80":
            self.fail("no pickle of protocol 2 to 5; write it with pickle.dump(boxes, file, protocol=2)")
        while code != b".":
            self.position = following
            code = self.data[following : following + 1]
            if code not in OPCODES:
                self.fail(REFUSED.get(code, f"the opcode {code!r}") if code else "ends too early")
            name, form = OPCODES[code]
            if form in CONSTANTS:
                argument, following = CONSTANTS[form], following + 1
            else:
                argument, following = self._argument(form, following + 1)
            yield name, argument
        if following != len(self.data):
            self.fail(f"{len(self.data) - following} bytes behind the end")

    def _argument(self, form: str, start: int) -> tuple[Any, int]:
        """What follows an opcode, and where it ends."""
        if form in NUMBERS:
            return self._number(form, start)
        if form == "lines":
            return self._lines(start)
        size, start = self._number(LENGTHS[form], start)
        if size > len(self.data) - start:
            self.fail(f"{size} bytes claimed, {len(self.data) - start} left")
        if form != "number1":
            return _Bytes(self.data, start, size), start + size
        if size > 8:
            self.fail(f"a number of {size} bytes")
        return int.from_bytes(self.data[start : start + size], "little", signed=True), start + size

    def _number(self, form: str, start: int) -> tuple[int, int]:
        number = NUMBERS[form]
        if start + number.size > len(self.data):
            self.fail("ends too early")
        return number.unpack_from(self.data, start)[0], start + number.size

    def _lines(self, start: int) -> tuple[str, int]:
        middle = self.data.find(b"\n", start, start + MAX_LINE)
        stop = self.data.find(b"\n", middle + 1, middle + 1 + MAX_LINE) if middle >= 0 else -1
        if stop < 0:
            self.fail("a name that does not end")
        return self.data[start:stop].decode("latin-1").replace("\n", "."), stop + 1


class _Machine:
    """The stack machine that a pickle is a program for, with the few opcodes of a list of arrays."""

    def __init__(self, tape: _Tape) -> None:
        self.tape, self.fail = tape, tape.fail
        self.stack: list[Any] = []
        self.marks: list[int] = []  # lengths of the stack
        self.memo: dict[int, Any] = {}
        self.num_puts = self.num_lists = self.num_copied = 0
        self.wanted = self._wanted()

    def run(self) -> list[Any]:
        """The list that the pickle describes, of `_Array` and lists."""
        steps = {name: getattr(self, f"do_{name}") for name, _ in OPCODES.values()}
        for name, argument in self.tape.operations():
            steps[name](argument)
        images = self.pop()
        if type(images) is not list or self.stack:
            self.fail("the whole is no list")
        return images

    def _wanted(self) -> set[int]:
        """Places in the memo that are read: what is put anywhere else need not be kept."""
        wanted = set()
        for name, argument in self.tape.operations():
            if name == "get":
                wanted.add(argument)
                if len(wanted) > MAX_MEMO:
                    self.fail(f"more than {MAX_MEMO} objects that are used again")
        return wanted

    def pop(self, kind: type = object) -> Any:
        """Takes an object from the stack, not from below the mark."""
        if len(self.stack) <= (self.marks[-1] if self.marks else 0) or not isinstance(self.stack[-1], kind):
            self.fail(f"no {kind.__name__.strip('_').lower()} where one should be")
        return self.stack.pop()

    def pop_marked(self) -> list[Any]:
        """Takes all objects above the mark."""
        if not self.marks:
            self.fail("a mark is missing")
        mark = self.marks.pop()
        items = self.stack[mark:]
        del self.stack[mark:]
        return items

    def do_version(self, version: int) -> None:
        if not 2 <= version <= 5:
            self.fail(f"protocol {version}; 2 to 5 are read")

    def do_skip(self, _: int | None) -> None:
        pass

    def do_mark(self, _: None) -> None:
        if len(self.marks) >= MAX_MARKS:
            self.fail(f"more than {MAX_MARKS} marks")
        self.marks.append(len(self.stack))

    def do_push(self, value: Any) -> None:
        if len(self.stack) >= MAX_STACK:
            self.fail(f"more than {MAX_STACK} objects that wait to be put together")
        self.stack.append(value)

    def do_list(self, _: None) -> None:
        self.num_lists += 1
        if self.num_lists > MAX_LISTS:
            self.fail(f"more than {MAX_LISTS} lists")
        self.do_push([])

    def do_append(self, _: None) -> None:
        self._extend([self.pop()])

    def do_appends(self, _: None) -> None:
        self._extend(self.pop_marked())

    def _extend(self, items: list[Any]) -> None:
        if any(type(item) not in (_Array, list) for item in items):
            self.fail("a list of something else than arrays")
        target = self.pop(list)
        target += items
        self.stack.append(target)

    def do_tuple(self, size: int | None) -> None:
        items = self.pop_marked() if size is None else [self.pop() for _ in range(size)][::-1]
        if len(items) > MAX_TUPLE or any(type(x) is tuple and any(type(y) is tuple for y in x) for x in items):
            self.fail("a tuple that no array has")
        self.do_push(tuple(items))

    def do_name(self, name: str) -> None:
        if name not in FUNCTIONS:
            self.fail(f"asks for {name[:MAX_NAME]}, and nothing is run here")
        self.do_push(_Name(name))

    def do_name_on_stack(self, _: None) -> None:
        name, module = self.pop(_Bytes), self.pop(_Bytes)
        self.do_name(f"{module.text()}.{name.text()}")

    def do_put(self, place: int) -> None:
        self.num_puts += 1
        value = self.pop()
        self.stack.append(value)
        if place in self.wanted:
            self.memo[place] = value

    def do_memoize(self, _: None) -> None:
        self.do_put(self.num_puts)

    def do_get(self, place: int) -> None:
        if place not in self.memo:
            self.fail(f"nothing was put at place {place} of the memo")
        self.do_push(self.memo[place])

    def do_call(self, _: None) -> None:
        arguments, name = self.pop(tuple), self.pop(_Name).name
        form, make = FUNCTIONS[name]
        if make is None or len(arguments) != len(form) or not all(map(isinstance, arguments, form)):
            return self.fail(f"calls {name} with what no array has")
        self.do_push(make(self, *arguments))

    def do_build(self, _: None) -> None:
        state, target = self.pop(tuple), self.pop()
        if type(target) is _Type and len(state) >= 5 and isinstance(state[1], _Bytes):
            if state[1].text() not in BYTE_ORDERS or state[2:5] != (None, None, None):
                self.fail("a type of numbers with parts")
            target.order = BYTE_ORDERS[state[1].text()]
        elif type(target) is _Array and len(state) == 5:
            self.fill(target, *state[1:])
        else:
            self.fail("a state that no array has")
        self.stack.append(target)

    def fill(self, array: _Array, shape: Any, kind: Any, fortran: Any, data: Any) -> _Array:
        """Gives an array its state."""
        if type(kind) is not _Type or type(data) is not _Bytes:
            self.fail("an array of objects")
        if type(shape) is not tuple or len(shape) > 2 or not all(type(side) is int and side >= 0 for side in shape):
            self.fail("an array that has not two sides")
        if math.prod(shape) * int(kind.code[1]) != data.size:
            self.fail(f"an array of {shape} {kind.code} in {data.size} bytes")
        array.kind, array.shape, array.fortran, array.data = kind, shape, bool(fortran), data
        return array

    def make_type(self, code: _Bytes, _align: int, _copy: int) -> _Type:
        """What numpy.dtype would make of it."""
        if code.text() not in TYPES:
            self.fail(f"numbers of type '{code.text()}'; known: {', '.join(TYPES)}")
        return _Type(code.text())

    def make_array(self, _kind: _Name, _shape: tuple, _type: _Bytes) -> _Array:
        """An array that gets its state later."""
        return _Array()

    def make_filled_array(self, data: _Bytes, kind: _Type, shape: tuple, order: _Bytes) -> _Array:
        """An array of protocol 5."""
        return self.fill(_Array(), shape, kind, order.text() == "F", data)

    def make_bytes(self, text: _Bytes, codec: _Bytes) -> _Bytes:
        """Bytes that Python 3 wrote as text for Python 2."""
        self.num_copied += text.size
        if codec.text() not in ("latin1", "latin-1") or self.num_copied > len(self.tape.data):
            self.fail("bytes in a code that pickle does not use")
        try:
            data = text.buffer[text.start : text.start + text.size].decode().encode("latin-1")
        except UnicodeError as error:
            self.fail(f"bytes that are none ({error})")
        return _Bytes(data, 0, len(data))

    def make_empty_bytes(self) -> _Bytes:
        """As Python 3 writes b"" for Python 2."""
        return _Bytes(b"", 0, 0)


# The only functions that are understood, with the types of their arguments. They are not looked up and not called.
FUNCTIONS: dict[str, tuple[tuple[type, ...], Callable[..., Any] | None]] = {
    "numpy.ndarray": ((), None),
    "numpy.dtype": ((_Bytes, int, int), _Machine.make_type),
    "_codecs.encode": ((_Bytes, _Bytes), _Machine.make_bytes),
    "__builtin__.bytes": ((), _Machine.make_empty_bytes),
}
for _package in ("numpy.core", "numpy._core"):  # before and since numpy 2
    FUNCTIONS[f"{_package}.multiarray._reconstruct"] = ((_Name, tuple, _Bytes), _Machine.make_array)
    FUNCTIONS[f"{_package}.numeric._frombuffer"] = ((_Bytes, _Type, tuple, _Bytes), _Machine.make_filled_array)


def _pack(images: list[Any], path: str, size: int) -> ProposalFile:
    num_boxes = np.array([_num_rows(image, f"{path}: image {i}") for i, image in enumerate(images)], np.int64)
    filled = [image for image, rows in zip(images, num_boxes, strict=True) if rows]
    columns = {image.shape[1] for image in filled}
    total = int(num_boxes.sum())
    if len(columns) > 1:
        raise ValueError(f"{path}: some images have boxes of 4 columns and some of 5; give all of them scores, or none")
    if ROW_COST * total + IMAGE_COST * len(images) > MAX_RATIO * size + ALLOWANCE:
        raise ValueError(
            f"{path}: the same arrays again and again, {total} boxes in {size} bytes, are not safe to read"
        )
    boxes, scores, start = np.empty((total, 4), np.float32), np.empty(total, np.float32), 0
    for image in filled:
        rows = image.shape[0]
        with np.errstate(over="ignore"):  # an infinite box is dropped with a warning when it meets its picture
            table = _table(image)
            boxes[start : start + rows], scores[start : start + rows] = table[:, :4], table[:, -1]
        start += rows
    return ProposalFile(boxes, scores if columns == {5} else None, num_boxes, None, OFFSET, {})


def _num_rows(image: _Array | list[Any], where: str) -> int:
    if isinstance(image, list) and not image:
        return 0
    if isinstance(image, list):
        raise ValueError(f"{where}: a list, not an array of boxes; are these detections ([class][image])?")
    if image.data is None or (image.data.size and (len(image.shape) != 2 or image.shape[1] not in (4, 5))):
        raise ValueError(f"{where}: an array of {image.shape}; expected (n, 4), or (n, 5) with the score last")
    return image.shape[0] if image.data.size else 0


def _table(image: _Array) -> np.ndarray:
    assert image.kind and image.data  # _num_rows has looked
    count = image.shape[0] * image.shape[1]
    values = np.frombuffer(image.data.buffer, image.kind.order + image.kind.code, count, image.data.start)
    return values.reshape(image.shape, order="F" if image.fortran else "C")
