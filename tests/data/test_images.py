import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest

from rcnn.data.images import SUFFIXES, read_image, read_size, read_sizes, upright

GENERATOR = np.random.default_rng(0)


def save(path: Path, pixels: np.ndarray) -> Path:
    assert cv2.imwrite(str(path), pixels)
    return path


def turned(path: Path, orientation: int) -> Path:
    """Writes an EXIF orientation into a JPEG."""
    tiff = b"II" + struct.pack("<HIHHHIHH", 42, 8, 1, 0x0112, 3, 1, orientation, 0) + bytes(4)
    data, segment = path.read_bytes(), b"Exif\0\0" + tiff
    path.write_bytes(data[:2] + b"\xff\xe1" + struct.pack(">H", len(segment) + 2) + segment + data[2:])
    return path


def test_is_rgb(tmp_path: Path) -> None:
    red = np.zeros((4, 5, 3), np.uint8)
    red[..., 2] = 255  # OpenCV writes BGR
    image = read_image(save(tmp_path / "red.png", red))
    assert image.shape == (4, 5, 3) and image.dtype == np.uint8 and (image == [255, 0, 0]).all()


@pytest.mark.parametrize("shape", [(6, 7), (6, 7, 4)])
def test_grey_and_alpha_become_three_channels(tmp_path: Path, shape: tuple[int, ...]) -> None:
    pixels = GENERATOR.integers(0, 256, shape, dtype=np.uint8)
    image = read_image(save(tmp_path / "x.png", pixels))
    expected = np.repeat(pixels[..., None], 3, 2) if pixels.ndim == 2 else pixels[..., 2::-1]
    assert np.array_equal(image, expected)


def test_grey_with_alpha(tmp_path: Path) -> None:
    from PIL import Image  # OpenCV cannot write two channels; Pillow comes with matplotlib

    pixels = GENERATOR.integers(0, 256, (6, 7, 2), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "x.png")
    assert np.array_equal(read_image(tmp_path / "x.png"), np.repeat(pixels[..., :1], 3, 2))


def test_sixteen_bits_keep_the_high_ones(tmp_path: Path) -> None:
    pixels = GENERATOR.integers(0, 2**16, (6, 7), dtype=np.uint16)
    image = read_image(save(tmp_path / "x.png", pixels))
    assert np.array_equal(image[..., 0], (pixels >> 8).astype(np.uint8))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(tmp_path: Path, orientation: int) -> None:
    """A dark block in the left top of the picture as seen is found there, however the camera was held."""
    seen = np.full((32, 48, 3), 200, np.uint8)
    seen[:16, :16] = 0
    seen[:16, 32:] = 100
    stored = next(s for s in stored_forms(seen) if np.array_equal(upright(s, orientation), seen))
    path = turned(save(tmp_path / "x.jpg", stored), orientation)
    assert np.abs(read_image(path).astype(int) - seen).max() < 20
    assert read_size(path) == (32, 48)


def stored_forms(image: np.ndarray) -> list[np.ndarray]:
    turns = [np.rot90(image, k) for k in range(4)]
    return [np.ascontiguousarray(form) for turn in turns for form in (turn, turn[:, ::-1])]


def test_upright_agrees_with_pillow() -> None:
    from PIL import Image, ImageOps

    pixels = GENERATOR.integers(0, 256, (5, 9, 3), dtype=np.uint8)
    for orientation in range(1, 9):
        image = Image.fromarray(pixels)
        image.getexif()[0x0112] = orientation
        assert np.array_equal(upright(pixels, orientation), np.asarray(ImageOps.exif_transpose(image)))


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("size", [(1, 1), (33, 70), (300, 200)])
def test_size_agrees_with_the_picture(tmp_path: Path, suffix: str, size: tuple[int, int]) -> None:
    path = save(tmp_path / f"x{suffix}", GENERATOR.integers(0, 256, (*size, 3), dtype=np.uint8))
    assert read_size(path) == size == read_image(path).shape[:2]


def test_bytes_after_the_end_are_allowed(tmp_path: Path) -> None:
    path = save(tmp_path / "x.jpg", np.zeros((8, 9, 3), np.uint8))
    path.write_bytes(path.read_bytes() + b"trailer")
    assert read_size(path) == (8, 9) == read_image(path).shape[:2]


@pytest.mark.parametrize("read", [read_image, read_size])
@pytest.mark.parametrize("suffix", [".jpg", ".png"])
@pytest.mark.parametrize("share", [0.05, 0.5, 0.99])
def test_refuses_a_truncated_file(tmp_path: Path, read, suffix: str, share: float, capfd) -> None:
    path = save(tmp_path / f"cut{suffix}", GENERATOR.integers(0, 256, (200, 200, 3), dtype=np.uint8))
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(ValueError, match=rf"cut{suffix}: the file ends early.*copy it again"):
        read(path)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("read", [read_image, read_size])
def test_names_files_it_cannot_read(tmp_path: Path, read) -> None:
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "text.jpg").write_text("<html>404 not found</html>")
    (tmp_path / "folder.jpg").mkdir()
    for name, problem in (
        ("absent.jpg", "no such image file"),
        ("empty.jpg", "the file is empty"),
        ("text.jpg", "no picture of a known format"),
        ("folder.jpg", "cannot be read"),
    ):
        with pytest.raises(ValueError, match=f"{name}: .*{problem}"):
            read(tmp_path / name)


def test_many_sizes_keep_their_order(tmp_path: Path) -> None:
    paths = [save(tmp_path / f"{i}.png", np.zeros((i + 1, 3), np.uint8)) for i in range(600)]
    paths[300].unlink()
    sizes = read_sizes(map(str, paths))
    assert isinstance(sizes[300], ValueError) and "300.png" in str(sizes[300])
    assert [s for s in sizes if not isinstance(s, ValueError)] == [(i + 1, 3) for i in range(600) if i != 300]


@pytest.mark.parametrize("sides", [(65_535, 65_535), (2**20, 2**20), (1, 2**31 - 1)])
def test_a_png_of_a_few_bytes_cannot_fill_the_memory(tmp_path: Path, sides: tuple[int, int]) -> None:
    content = bytearray(cv2.imencode(".png", np.zeros((2, 2, 3), np.uint8))[1].tobytes())
    content[16:24] = struct.pack(">II", *sides)
    content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    (tmp_path / "bomb.png").write_bytes(content)
    for read in (read_image, read_size):
        with pytest.raises(ValueError, match=r"bomb\.png: claims \d+ x \d+ pixels"):
            read(tmp_path / "bomb.png")


def test_a_chunk_of_a_png_that_claims_gigabytes_is_not_believed(tmp_path: Path) -> None:
    content = cv2.imencode(".png", np.zeros((2, 2, 3), np.uint8))[1].tobytes()
    place = content.index(b"IDAT") - 4
    (tmp_path / "a.png").write_bytes(content[:place] + b"\xff\xff\xff\xff" + content[place + 4 :])
    with pytest.raises(ValueError, match=r"a\.png: the file ends early"):
        read_image(tmp_path / "a.png")
