"""A file of the catalogue onto the disk: resumed, checked, from the first address that gives it."""

import shutil
import time
from pathlib import Path

from rcnn.download.catalogue import RemoteFile, in_words
from rcnn.download.exchange import Answer, Broken, NotResumable, Refused, Unreached, ask
from rcnn.download.part import Part
from rcnn.download.verify import Watcher, find_fault

TRIES = 5  # at one address, in a row without progress
PROGRESS = 1 << 20  # bytes that count as progress, so that the tries are bounded by the file's size
PAUSE, LONGEST_PAUSE = 1.0, 30.0  # seconds before the second try, doubled for each further one


class DownloadError(OSError):
    """The file could not be had, by no fault of the command line."""


def fetch(file: RemoteFile, target: Path, watcher: Watcher) -> None:
    """Fetches `file` to `target` unless it is there, and checks it; what an earlier call left in NAME.part is used.

    Raises:
        ValueError: another file is at `target`.
        DownloadError: no address gave the file; the message has a reason for each.
        OSError: the system's own (no space, no permission).
    """
    if target.exists():
        _refuse_another(file, target, watcher)
        watcher.note(f"{target}: is there already and checked ({file.check})")
        return
    reasons = []
    with Part(target) as part:
        for url in file.urls:
            if reasons:
                watcher.note(f"{file.name}: {reasons[-1]}; trying {url}")
            reason = _fetch_from(url, file, part, watcher)
            if not reason:
                part.finish()
                return
            reasons.append(f"{url}: {reason}")
        raise DownloadError(_account(file, part, reasons))


def _refuse_another(file: RemoteFile, target: Path, watcher: Watcher) -> None:
    if not target.is_file():
        raise ValueError(f"{target}: is no file; move it away, or choose another folder")
    fault = find_fault(target, file, watcher)
    if fault:
        raise ValueError(
            f"{target}: is not the file of that name: {fault}; delete it or move it away and run the same command "
            f"again, or choose another folder"
        )


def _account(file: RemoteFile, part: Part, reasons: list[str]) -> str:
    kept = f"{in_words(part.size)} of it are kept: the same command goes on from there"
    way = kept if part.size else "Try the same command later"
    ways = f"{way}; or get the file in another way, put it at {part.target} and run the command: it is checked and used"
    return "\n  ".join([f"{file.name} could not be downloaded:", *reasons]) + f"\n{ways}"


def _fetch_from(url: str, file: RemoteFile, part: Part, watcher: Watcher) -> str:
    """Fills `part` from one address; why it could not be, or nothing."""
    failures, begun = 0, part.size
    furthest = begun
    while True:
        try:
            return _exchange(url, file, part, watcher)
        except Refused as error:
            return str(error)
        except Broken as error:
            reason = str(error)
            if isinstance(error, Unreached) and part.size == begun:
                return reason
        if part.size >= furthest + PROGRESS:
            failures, furthest = 0, part.size
        failures += 1
        if failures == TRIES:
            return f"{reason}; given up after {TRIES} tries"
        pause = min(PAUSE * 2 ** (failures - 1), LONGEST_PAUSE)
        watcher.note(f"{file.name}: {reason}; trying again in {pause:g} s")
        time.sleep(pause)


def _exchange(url: str, file: RemoteFile, part: Part, watcher: Watcher) -> str:
    """One request. Returns what is wrong with the file, which is then thrown away, or nothing."""
    start, validator = _resume_point(url, file, part)
    if start != file.size:
        try:
            with ask(url, start, validator) as answer:
                start = answer.start
                _receive(answer, url, file, part, watcher)
        except NotResumable:
            if not (file.has_digest and part.size and not find_fault(part.path, file, watcher)):
                part.discard()
                raise
    fault = find_fault(part.path, file, watcher)
    if not fault:
        return ""
    part.discard()
    if start:
        raise Broken(f"after it was resumed, {fault}; beginning anew")
    return f"sent another file: {fault}"


def _resume_point(url: str, file: RemoteFile, part: Part) -> tuple[int, str]:
    """From where to go on, and with which validator. Without one only a known digest makes joining safe."""
    validator = part.validator_from(url) or ""
    if part.size and (part.size > file.limit or not (validator or file.has_digest)):
        part.discard()
    return part.size, validator


def _receive(answer: Answer, url: str, file: RemoteFile, part: Part, watcher: Watcher) -> None:
    total = _agreed_size(answer, file)
    _refuse_full_disk(part, (total or file.expected) - answer.start)
    part.begin(answer.start, url, answer.validator)
    watcher.count(file.name, part.size, total)
    for block in answer.blocks():
        if part.size + len(block) > (total or file.limit):
            part.discard()
            raise Refused(f"sent more than the {total or file.limit} bytes that it should")
        part.write(block)
        watcher.count(file.name, part.size, total)
    if total is not None and part.size < total:
        raise Broken(f"broke off after {part.size} of {total} bytes")


def _agreed_size(answer: Answer, file: RemoteFile) -> int | None:
    if answer.total is None:
        return file.size
    if answer.total != file.size if file.size else answer.total > file.limit:
        expected = file.size or f"at most {file.limit}"
        raise Refused(f"has a file of {answer.total} bytes, expected {expected}")
    return answer.total


def _refuse_full_disk(part: Part, needed: int) -> None:
    free = shutil.disk_usage(part.path.parent).free
    if needed > free:
        text = f"needs {in_words(needed)} more, and {in_words(free)} are free on its disk"
        raise DownloadError(f"{part.target}: {text}; make room, or choose another folder")
