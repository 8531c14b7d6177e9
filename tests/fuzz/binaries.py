"""Targets: pictures, proposals, archives and caches."""

import io
import pickle
import struct
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from random import Random

import cv2
import numpy as np
import scipy.io

from rcnn.data import size_cache
from rcnn.data.images import MOST_PIXELS, read_image, read_size
from rcnn.data.proposal_mat import read_mat
from rcnn.data.proposal_npz import read_npz, save_proposals
from rcnn.data.proposal_pickle import read_pickle
from rcnn.download.unpack import unpack
from tests.download.archives import write_any
from tests.download.server import Watcher
from tests.fuzz.mutate import strike_bytes, strike_pickle, strike_png, strike_zip
from tests.fuzz.run import Reader, Target

BOXES = [np.array([[1, 2, 30, 40], [5, 6, 70, 80]], np.float32), np.array([[0, 0, 9, 9]], np.float32)]
HOSTILE_NAMES = (b"../x", b"/tmp/x", b"a/../../x", b"C:x", b"a\\b", b"A/ONE.txt", b"\xff\xfe", b"a/one.txt/b", b"")
MEMBERS = {"a/": b"", "a/one.txt": b"one" * 300, "a/two.jpg": b"two" * 5000, "three": b""}


def _picture(folder: Path, suffix: str, parameters: tuple[tuple[int, ...], ...]) -> Reader:
    path, rng = folder / f"case{suffix}", np.random.default_rng(0)
    image = cv2.resize(rng.integers(0, 256, (6, 8, 3), np.uint8), (64, 48))
    seeds = [cv2.imencode(suffix, image, list(options))[1].tobytes() for options in parameters]

    def read() -> None:
        seen = read_image(path)
        assert seen.dtype == np.uint8 and seen.shape == (*read_size(path), 3)

    return Reader(path, read, seeds)


def _strike_png(rng: Random, content: bytes) -> bytes:
    return strike_png(rng, content) if rng.random() < 0.7 else strike_bytes(rng, content)


def _proposals(
    folder: Path, suffix: str, read: Callable[[Path], object], write: Callable[[Path], list[bytes]]
) -> Reader:
    path = folder / f"case{suffix}"
    return Reader(path, lambda: read(path), write(path))


def _write_npz(path: Path) -> list[bytes]:
    scores = [np.ones(len(boxes), np.float32) for boxes in BOXES]
    save_proposals(path, ["a", "b"], BOXES, scores, offset=1.0, header={"method": "rpn"})
    return [path.read_bytes()]


def _strike_npz(rng: Random, content: bytes) -> bytes:
    return strike_zip(rng, content, _strike_npy)


def _strike_npy(rng: Random, content: bytes) -> bytes:
    """The text of the header, with numbers to extremes, or the bytes."""
    if rng.random() < 0.5:
        return strike_bytes(rng, content, (b"shape", b"descr"))
    old = rng.choice((b"(2,", b"(3,", b"4)", b"<f4", b"<i8", b"False", b"()"))
    new = rng.choice((b"(-1,", b"(9999999999999,", b"2**60)", b"|O", b"<U99999999", b"True", b"(((((", b"<f8", b"(0,"))
    return content.replace(old, new)


def _write_pickle(path: Path) -> list[bytes]:
    return [pickle.dumps([np.c_[boxes, boxes[:, :1]] for boxes in BOXES], protocol) for protocol in (2, 3, 4, 5)]


def _write_mat(path: Path) -> list[bytes]:
    cells, seeds = np.empty((1, 2), object), []
    cells[0, :] = [boxes.astype(np.float64) + 1 for boxes in BOXES]
    for squeeze in (False, True):
        scipy.io.savemat(path, {"boxes": cells}, do_compression=squeeze)
        seeds.append(path.read_bytes())
    return seeds


def _strike_mat(rng: Random, content: bytes) -> bytes:
    """What is compressed is unpacked, damaged and compressed again."""
    if content[128:132] != struct.pack("<I", 15) or rng.random() < 0.3:
        return strike_bytes(rng, content, (b"boxes",))
    inner = zlib.compress(strike_bytes(rng, zlib.decompress(content[136:]), (b"boxes",)))
    return content[:128] + struct.pack("<II", 15, len(inner)) + inner


def _archive(folder: Path, name: str) -> Reader:
    path, room = folder / name, folder / "room" / "new"
    content = write_any(path, MEMBERS).read_bytes()

    def read() -> None:
        import shutil

        shutil.rmtree(room.parent, ignore_errors=True)
        try:
            unpack(path, room, Watcher())
        finally:
            assert {p.name for p in folder.iterdir()} <= {name, "room"}, "wrote outside"
            assert not any(p.is_symlink() for p in room.rglob("*")), "made a link"

    return Reader(path, read, [content])


def _strike_tar(rng: Random, content: bytes) -> bytes:
    """A header's field set, with the right checksum."""
    if rng.random() < 0.3:
        return strike_bytes(rng, content)
    copy = bytearray(content)
    heads = [p for p in range(0, len(copy) - 512, 512) if copy[p + 257 : p + 262] == b"ustar"]
    for _ in range(rng.randint(1, 3)):
        place, kind = rng.choice(heads), rng.randrange(4)
        if kind == 0:
            copy[place + 156 : place + 157] = rng.choice(
                (b"0", b"1", b"2", b"3", b"5", b"6", b"x", b"g", b"L", b"S", b"7")
            )
        elif kind == 1:
            sizes = (b"77777777777\0", b"00000000000\0", b"\x80" + b"\xff" * 11, b"-0000000001\0", b"\xff" * 12)
            copy[place + 124 : place + 136] = rng.choice(sizes)
        elif kind == 2:
            name = rng.choice(
                (b"../x", b"/tmp/x", b"a/../../x", b"C:x", b"a\\b", b"A/ONE.txt", b"\xff\xfe", b"a/one.txt/b")
            )
            copy[place : place + 100] = name.ljust(100, b"\0")
        else:
            copy[place + 157 : place + 257] = b"../../../etc/passwd".ljust(100, b"\0")
        copy[place + 148 : place + 156] = b" " * 8
        copy[place + 148 : place + 156] = b"%06o\0 " % sum(copy[place : place + 512])
    return bytes(copy)


def _strike_tgz(rng: Random, content: bytes) -> bytes:
    if rng.random() < 0.2:
        return strike_bytes(rng, content)
    return zlib.compress(_strike_tar(rng, zlib.decompress(content, 31)), wbits=31)


def _strike_archive(rng: Random, content: bytes) -> bytes:
    return strike_zip(rng, content, strike_bytes)


def _sizes(folder: Path) -> Reader:
    path, keys = folder / "sizes.npz", np.arange(1, 9).reshape(4, 2)
    stream = io.BytesIO()
    np.savez(stream, keys=keys, sizes=keys)
    return Reader(path, lambda: size_cache._look_up(path, keys), [stream.getvalue()])


PNG = ((), (cv2.IMWRITE_PNG_COMPRESSION, 0))
JPEG = ((), (cv2.IMWRITE_JPEG_PROGRESSIVE, 1), (cv2.IMWRITE_JPEG_RST_INTERVAL, 2))
PICTURE = 6 * MOST_PIXELS  # bytes: the largest picture that is read, and its copy
TARGETS = [
    Target("JPEG", partial(_picture, suffix=".jpg", parameters=JPEG), strike_bytes, memory=PICTURE),
    Target("PNG", partial(_picture, suffix=".png", parameters=PNG), _strike_png, memory=PICTURE),
    Target("BMP", partial(_picture, suffix=".bmp", parameters=((),)), strike_bytes, memory=PICTURE),
    Target("WebP", partial(_picture, suffix=".webp", parameters=((),)), strike_bytes, memory=PICTURE),
    Target("TIFF", partial(_picture, suffix=".tif", parameters=((),)), strike_bytes, memory=PICTURE),
    Target("proposals .npz", partial(_proposals, suffix=".npz", read=read_npz, write=_write_npz), _strike_npz),
    Target("proposals .mat", partial(_proposals, suffix=".mat", read=read_mat, write=_write_mat), _strike_mat),
    Target("proposals .pkl", partial(_proposals, suffix=".pkl", read=read_pickle, write=_write_pickle), strike_pickle),
    Target("archive .tar", partial(_archive, name="case.tar"), _strike_tar),
    Target("archive .tgz", partial(_archive, name="case.tgz"), _strike_tgz),
    Target("archive .zip", partial(_archive, name="case.zip"), _strike_archive),
    Target("cache of sizes", _sizes, _strike_npz),
]
