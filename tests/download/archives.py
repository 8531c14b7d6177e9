"""Archives for the tests, good and hostile."""

import io
import tarfile
import zipfile
from pathlib import Path

ZIP_UNIX = 3


def write_tar(path: Path, members: dict[str, bytes], *odd: tarfile.TarInfo) -> Path:
    """A tar of files, compressed if its name says so; names that end in / are folders."""
    mode = "w:gz" if path.name.endswith("gz") else "w"
    with tarfile.open(path, mode) as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            info.type = tarfile.DIRTYPE if name.endswith("/") else tarfile.REGTYPE
            info.mode = 0o7777
            tar.addfile(info, io.BytesIO(content))
        for info in odd:
            tar.addfile(info)
    return path


def odd_tar_member(kind: bytes, name: str = "odd", to: str = "") -> tarfile.TarInfo:
    """A link or a device."""
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, to
    return info


def write_zip(path: Path, members: dict[str, bytes], modes: dict[str, int] | None = None) -> Path:
    """A zip of files; `modes` are Unix types and permissions by name."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            info = zipfile.ZipInfo("x")
            info.filename = info.orig_filename = name
            info.create_system = ZIP_UNIX
            info.external_attr = (modes or {}).get(name, 0o104777 if not name.endswith("/") else 0o040777) << 16
            archive.writestr(info, content, zipfile.ZIP_DEFLATED)
    return path


def write_any(path: Path, members: dict[str, bytes]) -> Path:
    """By the ending of its name."""
    return write_zip(path, members) if path.suffix == ".zip" else write_tar(path, members)
