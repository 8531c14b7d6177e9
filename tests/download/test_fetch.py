import hashlib
import os
import shutil
import socket
from dataclasses import replace
from pathlib import Path

import pytest

from rcnn.download import fetch as module
from rcnn.download.catalogue import RemoteFile
from rcnn.download.fetch import TRIES, DownloadError, fetch
from tests.download.server import Site, Watcher, page, redirect, remote, says, serve, stall, status

CONTENT = hashlib.sha256(b"seed").digest() * 100_000  # 3.2 MB
HALF = len(CONTENT) // 2
OTHER = bytes(len(CONTENT))


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "downloads" / "file.bin"


def leave_part(target: Path, content: bytes, origin: str = "") -> None:
    """What an interrupted run leaves."""
    target.parent.mkdir()
    target.with_name("file.bin.part").write_bytes(content)
    if origin:
        target.with_name("file.bin.part.json").write_text(origin)


def refusal(file: RemoteFile, target: Path, watcher: Watcher) -> str:
    """The message of a download that does not succeed."""
    with pytest.raises(DownloadError) as caught:
        fetch(file, target, watcher)
    assert not target.exists()
    return str(caught.value)


def test_definition_a_file_is_fetched_checked_and_named(site: Site, target: Path, watcher: Watcher) -> None:
    fetch(remote(CONTENT, site.add("/a", serve(CONTENT))), target, watcher)
    assert target.read_bytes() == CONTENT
    assert os.listdir(target.parent) == ["file.bin"]
    assert watcher.counts[-1] == ("checking file.bin", len(CONTENT), len(CONTENT))
    assert watcher.counts[0] == ("file.bin", 0, len(CONTENT))
    assert ("file.bin", len(CONTENT), len(CONTENT)) in watcher.counts


def test_what_is_there_is_not_fetched_again(site: Site, target: Path, watcher: Watcher) -> None:
    target.parent.mkdir()
    target.write_bytes(CONTENT)
    fetch(remote(CONTENT, site.add("/a", status(500))), target, watcher)
    assert site.requests == [] and "is there already and checked (sha256)" in watcher.notes[0]


def test_another_file_in_the_place_is_not_touched(site: Site, target: Path, watcher: Watcher) -> None:
    target.parent.mkdir()
    target.write_bytes(b"mine")
    with pytest.raises(ValueError, match=r"file\.bin: is not the file of that name: it has 4 bytes.*move it away"):
        fetch(remote(CONTENT, site.add("/a", serve(CONTENT))), target, watcher)
    assert target.read_bytes() == b"mine"
    target.unlink()
    target.mkdir()
    with pytest.raises(ValueError, match="is no file"):
        fetch(remote(CONTENT, site.add("/a", serve(CONTENT))), target, watcher)


# --- connections that break -----------------------------------------------------------------------------------------


def test_a_connection_that_breaks_off_is_resumed(site: Site, target: Path, watcher: Watcher) -> None:
    url = site.add("/a", serve(CONTENT, stop=HALF), serve(CONTENT))
    fetch(remote(CONTENT, url), target, watcher)
    assert target.read_bytes() == CONTENT
    assert site.ranges() == ["", f"bytes={HALF}-"]
    assert site.requests[1][1]["If-Range"] == '"1"'
    assert f"broke off after {HALF} of {len(CONTENT)} bytes; trying again" in watcher.notes[0]


def test_a_stall_is_resumed(site: Site, target: Path, watcher: Watcher) -> None:
    fetch(remote(CONTENT, site.add("/a", stall(site, CONTENT, HALF), serve(CONTENT))), target, watcher)
    assert target.read_bytes() == CONTENT and site.ranges() == ["", f"bytes={HALF}-"]


def test_the_next_run_goes_on(site: Site, target: Path, watcher: Watcher, monkeypatch: pytest.MonkeyPatch) -> None:
    url = site.add("/a", serve(CONTENT, stop=HALF))
    monkeypatch.setattr(module, "TRIES", 1)
    message = refusal(remote(CONTENT, url), target, watcher)
    assert url in message and "broke off" in message and "1.6 MB of it are kept" in message and "goes on" in message
    site.add("/a", serve(CONTENT))
    fetch(remote(CONTENT, url), target, watcher)
    assert target.read_bytes() == CONTENT and site.ranges()[-1] == f"bytes={HALF}-"


def test_a_server_that_ignores_ranges_begins_anew(site: Site, target: Path, watcher: Watcher) -> None:
    url = site.add("/a", serve(CONTENT, ranges=False, stop=HALF), serve(CONTENT, ranges=False))
    fetch(remote(CONTENT, url), target, watcher)
    assert target.read_bytes() == CONTENT


def test_a_file_that_changed_begins_anew(site: Site, target: Path, watcher: Watcher) -> None:
    url = site.add("/a", serve(OTHER, '"old"', stop=HALF), serve(CONTENT, '"new"'))
    fetch(remote(CONTENT, url), target, watcher)
    assert target.read_bytes() == CONTENT and site.requests[1][1]["If-Range"] == '"old"'


def test_pieces_of_two_versions_are_found_out(site: Site, target: Path, watcher: Watcher) -> None:
    url = site.add("/a", serve(OTHER, stop=HALF), serve(CONTENT))  # the same tag, and other bytes
    fetch(remote(CONTENT, url), target, watcher)
    assert target.read_bytes() == CONTENT and site.ranges() == ["", f"bytes={HALF}-", ""]
    assert any("after it was resumed" in note for note in watcher.notes)


def test_a_wrong_content_range_begins_anew(site: Site, target: Path, watcher: Watcher) -> None:
    wrong = says(CONTENT[HALF:], 206, Content_Range=f"bytes 5-{len(CONTENT) - 1}/{len(CONTENT)}")
    fetch(remote(CONTENT, site.add("/a", serve(CONTENT, stop=HALF), wrong, serve(CONTENT))), target, watcher)
    assert target.read_bytes() == CONTENT and site.ranges() == ["", f"bytes={HALF}-", ""]


def test_errors_of_the_server_are_tried_again(site: Site, target: Path, watcher: Watcher) -> None:
    fetch(remote(CONTENT, site.add("/a", status(503), status(429), serve(CONTENT))), target, watcher)
    assert target.read_bytes() == CONTENT and len(watcher.notes) == 2


def test_tries_end(site: Site, target: Path, watcher: Watcher) -> None:
    message = refusal(remote(CONTENT, site.add("/a", status(503))), target, watcher)
    assert len(site.requests) == TRIES and f"503 Service Unavailable; given up after {TRIES} tries" in message


def test_tries_end_on_a_server_that_breaks_off_at_the_same_place(site: Site, target: Path, watcher: Watcher) -> None:
    url = site.add("/a", serve(CONTENT, ranges=False, stop=HALF))
    message = refusal(remote(CONTENT, url), target, watcher)
    assert len(site.requests) == TRIES and "broke off" in message


def test_tries_are_renewed_by_progress(
    site: Site, target: Path, watcher: Watcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    stops = range(200_000, len(CONTENT), 200_000)
    assert len(stops) > TRIES
    monkeypatch.setattr(module, "PROGRESS", 200_000)
    url = site.add("/a", *(serve(CONTENT, stop=stop) for stop in stops), serve(CONTENT))
    fetch(remote(CONTENT, url), target, watcher)
    assert target.read_bytes() == CONTENT


# --- servers that send something else -------------------------------------------------------------------------------


def test_no_file_and_web_pages(site: Site, target: Path, watcher: Watcher) -> None:
    for path, route, words in (("/404", status(404), "404 Not Found"), ("/page", page(), "web page")):
        message = refusal(remote(CONTENT, site.add(path, route)), target, watcher)
        assert words in message and path in message and str(target) in message
    assert len(site.requests) == 2 and os.listdir(target.parent) == []


def test_another_length_in_the_header(site: Site, target: Path, watcher: Watcher) -> None:
    for path, content in (("/short", CONTENT[:-1]), ("/long", CONTENT + b"x")):
        message = refusal(remote(CONTENT, site.add(path, serve(content))), target, watcher)
        assert f"has a file of {len(content)} bytes, expected {len(CONTENT)}" in message
    assert os.listdir(target.parent) == []


def test_a_header_that_promises_more_than_comes(site: Site, target: Path, watcher: Watcher) -> None:
    file = remote(CONTENT[:HALF], site.add("/a", says(CONTENT[:1000], length=HALF)))
    assert f"broke off after 1000 of {HALF} bytes" in refusal(file, target, watcher)


def test_more_bytes_than_the_header_said(site: Site, target: Path, watcher: Watcher) -> None:
    fetch(remote(CONTENT[:HALF], site.add("/a", says(CONTENT, length=HALF))), target, watcher)
    assert target.read_bytes() == CONTENT[:HALF]


def test_more_bytes_without_a_header_are_stopped(site: Site, target: Path, watcher: Watcher) -> None:
    message = refusal(remote(CONTENT[:HALF], site.add("/a", says(CONTENT, length=None))), target, watcher)
    assert f"more than the {HALF} bytes" in message and os.listdir(target.parent) == []


def test_a_file_of_unknown_size_is_bounded_too(site: Site, target: Path, watcher: Watcher) -> None:
    url = site.add("/a", says(CONTENT, length=None), says(CONTENT))
    file = replace(remote(CONTENT, url), size=None, about=HALF - 1)
    assert "more than the" in refusal(file, target, watcher)
    assert "expected at most" in refusal(file, target, watcher)
    fetch(replace(file, about=HALF), target, watcher)
    assert target.read_bytes() == CONTENT


def test_a_wrong_file_is_thrown_away(site: Site, target: Path, watcher: Watcher) -> None:
    message = refusal(remote(CONTENT, site.add("/a", serve(OTHER))), target, watcher)
    assert hashlib.sha256(OTHER).hexdigest() in message and hashlib.sha256(CONTENT).hexdigest() in message
    assert len(site.requests) == 1 and os.listdir(target.parent) == []


def test_the_next_address_is_tried_and_goes_on(site: Site, target: Path, watcher: Watcher) -> None:
    urls = (
        site.add("/gone", status(404)),
        site.add("/wrong", serve(OTHER)),
        site.add("/breaks", serve(CONTENT, stop=HALF), status(410)),
        site.add("/good", redirect("/b")),
    )
    site.add("/b", serve(CONTENT, '"mirror"'))
    fetch(remote(CONTENT, *urls), target, watcher)
    assert target.read_bytes() == CONTENT
    assert site.requests[-1][1]["Range"] == f"bytes={HALF}-" and "If-Range" not in site.requests[-1][1]
    assert any("404" in note for note in watcher.notes) and any("another file" in note for note in watcher.notes)


# --- files left by an earlier run -----------------------------------------------------------------------------------


def test_a_whole_part_only_needs_its_name(site: Site, target: Path, watcher: Watcher) -> None:
    leave_part(target, CONTENT)
    fetch(remote(CONTENT, site.add("/a", status(500))), target, watcher)
    assert target.read_bytes() == CONTENT and site.requests == []


def test_a_whole_part_of_unknown_size_is_found_whole(site: Site, target: Path, watcher: Watcher) -> None:
    leave_part(target, CONTENT)
    file = replace(remote(CONTENT, site.add("/a", serve(CONTENT))), size=None, about=len(CONTENT))
    fetch(file, target, watcher)
    assert target.read_bytes() == CONTENT and site.ranges() == [f"bytes={len(CONTENT)}-"]


@pytest.mark.parametrize("content", [OTHER, CONTENT + b"x", OTHER[:HALF]], ids=["wrong", "too long", "wrong half"])
def test_a_part_that_is_wrong_is_begun_anew(site: Site, target: Path, watcher: Watcher, content: bytes) -> None:
    leave_part(target, content, "broken json")
    fetch(remote(CONTENT, site.add("/a", serve(CONTENT))), target, watcher)
    assert target.read_bytes() == CONTENT


def test_without_digest_and_validator_nothing_is_joined(site: Site, target: Path, watcher: Watcher) -> None:
    leave_part(target, OTHER[:HALF])
    fetch(RemoteFile("file.bin", (site.add("/a", serve(CONTENT, "")),), about=len(CONTENT)), target, watcher)
    assert target.read_bytes() == CONTENT and site.ranges() == [""]
    assert hashlib.sha256(CONTENT).hexdigest() in watcher.notes[-1]


# --- this machine ---------------------------------------------------------------------------------------------------


def test_without_a_network_it_is_said_at_once(target: Path, watcher: Watcher, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_address(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", no_address)
    leave_part(target, CONTENT[:HALF])
    message = refusal(remote(CONTENT, "https://a.invalid/a", "https://b.invalid/a"), target, watcher)
    assert message.count("is there a network?") == 2 and "1.6 MB of it are kept" in message
    assert not any("trying again" in note for note in watcher.notes)


def test_a_full_disk_is_seen_before_the_first_byte(
    site: Site, target: Path, watcher: Watcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(target.parents[1])
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(DownloadError, match=r"file\.bin: needs 3\.2 MB more, and 1\.0 kB are free"):
        fetch(remote(CONTENT, site.add("/a", serve(CONTENT))), target, watcher)
    assert os.listdir(target.parent) == []


def test_an_interruption_keeps_what_came(site: Site, target: Path, watcher: Watcher) -> None:
    class Impatient(Watcher):
        def count(self, what: str, done: int, total: int | None) -> None:
            if done:
                raise KeyboardInterrupt

    url = site.add("/a", serve(CONTENT))
    with pytest.raises(KeyboardInterrupt):
        fetch(remote(CONTENT, url), target, Impatient())
    kept = target.with_name("file.bin.part").stat().st_size
    assert 0 < kept < len(CONTENT)
    fetch(remote(CONTENT, url), target, watcher)
    assert target.read_bytes() == CONTENT and site.ranges() == ["", f"bytes={kept}-"]
