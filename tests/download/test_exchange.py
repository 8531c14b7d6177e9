import socket
from pathlib import Path

import pytest

from rcnn.download.exchange import MAX_REDIRECTS, Broken, NotResumable, Refused, Unreached, ask
from tests.download.server import Route, Site, page, redirect, says, serve, stall, status

CONTENT = bytes(range(256)) * 1000


def read(url: str, start: int = 0, validator: str = "") -> tuple[int, int | None, str, bytes]:
    with ask(url, start, validator) as answer:
        return answer.start, answer.total, answer.validator, b"".join(answer.blocks())


def test_definition_a_whole_file(site: Site) -> None:
    assert read(site.add("/a", serve(CONTENT))) == (0, len(CONTENT), '"1"', CONTENT)
    assert "Range" not in site.requests[0][1]


def test_a_file_from_a_byte_on(site: Site) -> None:
    url = site.add("/a", serve(CONTENT))
    assert read(url, 1000, '"1"') == (1000, len(CONTENT), '"1"', CONTENT[1000:])
    assert site.requests[0][1]["Range"] == "bytes=1000-" and site.requests[0][1]["If-Range"] == '"1"'
    assert read(url, 1000) == (1000, len(CONTENT), '"1"', CONTENT[1000:])
    assert "If-Range" not in site.requests[1][1]


def test_the_whole_file_if_it_changed_or_cannot_be_resumed(site: Site) -> None:
    assert read(site.add("/changed", serve(CONTENT, '"2"')), 1000, '"1"') == (0, len(CONTENT), '"2"', CONTENT)
    assert read(site.add("/plain", serve(CONTENT, ranges=False)), 1000)[0] == 0


def test_validators(site: Site) -> None:
    date = "Wed, 21 Oct 2015 07:28:00 GMT"
    assert read(site.add("/date", says(b"x", Last_Modified=date)))[2] == date
    assert read(site.add("/weak", says(b"x", ETag='W/"1"', Last_Modified=date)))[2] == date
    assert read(site.add("/none", says(b"x")))[2] == ""


def test_no_length_is_no_total(site: Site) -> None:
    assert read(site.add("/a", says(b"xyz", length=None)))[1:] == (None, "", b"xyz")


@pytest.mark.parametrize("given", ["bytes 999-1999/2000", "bytes 0-1999/2000", "", "items 1000-1999/2000"])
def test_a_wrong_content_range(site: Site, given: str) -> None:
    with pytest.raises(NotResumable, match="from 1000 on"):
        read(site.add("/a", says(b"x" * 1000, 206, Content_Range=given)), 1000)


def test_no_more_bytes(site: Site) -> None:
    with pytest.raises(NotResumable, match="416"):
        read(site.add("/a", serve(CONTENT)), len(CONTENT))


@pytest.mark.parametrize(
    ("route", "words"),
    [
        (status(404), "answered 404 Not Found"),
        (status(403), "answered 403 Forbidden"),
        (status(204), "answered 204"),
        (says(b"part", 206, Content_Range="bytes 0-3/4"), "answered 206"),
        (page(), "a web page instead of the file"),
        (says(b"\n <HTML><body>sorry", Content_Type="application/zip"), "a web page instead of the file"),
        (says(b"", 302), "answered 302"),
        (redirect("ftp://localhost/a"), "ftp://localhost/a, which is not followed"),
        (redirect("file:///etc/passwd"), "file:///etc/passwd"),
        (redirect("http://a..b/"), "cannot be used"),
    ],
    ids=["404", "403", "204", "206", "page", "hidden page", "no location", "ftp", "file", "no address"],
)
def test_what_another_try_would_not_help(site: Site, route: Route, words: str) -> None:
    with pytest.raises(Refused, match=words):
        read(site.add("/a", route))


@pytest.mark.parametrize("code", [500, 502, 503, 429, 408])
def test_what_another_try_may_help(site: Site, code: int) -> None:
    with pytest.raises(Broken, match=f"answered {code}"):
        read(site.add("/a", status(code)))


def test_redirections_are_followed_with_the_range(site: Site) -> None:
    site.add("/b", serve(CONTENT))
    assert read(site.add("/a", redirect("/b")), 1000, '"1"')[0] == 1000
    assert [headers["Range"] for _, headers in site.requests] == ["bytes=1000-"] * 2


def test_redirections_end(site: Site) -> None:
    for i in range(MAX_REDIRECTS + 2):
        site.add(f"/{i}", redirect(f"/{i + 1}"))
    with pytest.raises(Refused, match="302"):
        read(f"{site.address}/0")
    assert len(site.requests) == MAX_REDIRECTS + 1
    with pytest.raises(Refused, match="302"):
        read(site.add("/round", redirect("/round")))


def test_stalls_end(site: Site) -> None:
    with pytest.raises(Broken, match="no byte came for 1 s"):
        read(site.add("/a", stall(site, CONTENT, 100)))


def test_no_server() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(Broken, match="refused"):
        read(f"http://127.0.0.1:{port}/a")


def test_no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_address(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", no_address)
    with pytest.raises(Unreached, match=r"no address .*is there a network"):
        read("https://nowhere.invalid/a")


def test_a_server_that_speaks_no_http(site: Site) -> None:
    with pytest.raises(Broken, match="the connection broke"):
        read(site.add("/a", lambda handler: handler.wfile.write(b"hello\r\n\r\n")))


def test_an_https_address_where_http_is_spoken(site: Site) -> None:
    with pytest.raises(Broken, match="the connection broke"):
        read(site.add("/a", serve(CONTENT)).replace("http:", "https:"))


def test_files_of_this_machine_are_no_addresses(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x")
    with pytest.raises(Broken, match="unknown url type"):
        read(f"file://{tmp_path}/a")


def test_a_certificate_is_not_given_up_on_the_way(site: Site) -> None:
    from urllib.request import Request

    from rcnn.download.exchange import _Redirects

    with pytest.raises(Refused, match="from https to http://localhost/a"):
        _Redirects().redirect_request(Request("https://localhost/"), None, 302, "", {}, "http://localhost/a")
