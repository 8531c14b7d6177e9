"""One HTTP exchange: the bytes of a file from an offset on, or the reason why not."""

import re
import socket
import ssl
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPException, HTTPMessage, HTTPResponse
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit

STALL = 30.0  # seconds without a byte
MAX_REDIRECTS = 5
BLOCK = 1 << 18
WORTH_ANOTHER_TRY = (408, 425, 429)  # and all from 500
CONTENT_RANGE = re.compile(r"bytes (\d+)-\d+/(\d+|\*)")
WEB_PAGE = (b"<!doctype html", b"<html")


class Refused(Exception):
    """This address does not give the file; another try would not help."""


class Broken(Exception):
    """The exchange went wrong; another try may help."""


class Unreached(Broken):
    """The name of the server has no address: most often there is no network."""


class NotResumable(Broken):
    """The server does not go on where the file was left; it must be begun anew."""


@dataclass(frozen=True)
class Answer:
    """A server's answer whose body is still to be read."""

    start: int  # the offset in the file at which the body begins; 0 where the server does not resume
    total: int | None  # bytes of the whole file by the server's words
    validator: str  # strong ETag or date that tells this version of the file from others; empty: none given
    response: HTTPResponse

    def blocks(self) -> Iterator[bytes]:
        """The body, in pieces as they arrive.

        Raises:
            Broken: the connection broke or stalled.
            Refused: it is a web page, whatever the header says.
        """
        first = self.start == 0
        while True:
            with _in_our_words():
                block = self.response.read1(BLOCK)
            if not block:
                return
            if first and block[:512].lstrip().lower().startswith(WEB_PAGE):
                raise Refused("sent a web page instead of the file")
            first = False
            yield block


@contextmanager
def ask(url: str, start: int = 0, validator: str = "") -> Iterator[Answer]:
    """Asks for the file at `url` from the byte `start` on, provided that `validator` still holds.

    Raises:
        Refused: the address does not give the file.
        Broken: the connection failed, or the server asks to come back later.
        NotResumable: the answer does not begin at `start`, and it is not the whole file either.
    """
    headers = {"User-Agent": "rcnn", "Accept-Encoding": "identity"}
    if start:
        headers["Range"] = f"bytes={start}-"
        headers |= {"If-Range": validator} if validator else {}
    with _in_our_words():
        response = _opener().open(urllib.request.Request(url, headers=headers), timeout=STALL)
    with response:
        yield _read_header(response, start)


def _read_header(response: HTTPResponse, start: int) -> Answer:
    if response.headers.get_content_type() == "text/html":
        raise Refused("sent a web page instead of the file")
    if response.status == 200:
        return Answer(0, response.length, _validator(response.headers), response)
    if response.status != 206 or not start:
        raise Refused(f"answered {response.status} {response.reason}, expected 200 OK")
    given = response.headers.get("Content-Range", "")
    found = CONTENT_RANGE.fullmatch(given)
    if found is None or int(found[1]) != start:
        raise NotResumable(f"was asked for the bytes from {start} on and answered with Content-Range {given!r}")
    total = None if found[2] == "*" else int(found[2])
    return Answer(start, total, _validator(response.headers), response)


def _validator(headers: HTTPMessage) -> str:
    tag = headers.get("ETag", "")
    return tag if tag.startswith('"') else headers.get("Last-Modified", "")  # W/"..." is no proof of equal bytes


class _Redirects(urllib.request.HTTPRedirectHandler):
    max_redirections = MAX_REDIRECTS

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        before, after = urlsplit(req.full_url).scheme, urlsplit(newurl).scheme
        if after not in ("http", "https") or (before, after) == ("https", "http"):
            raise Refused(f"leads from {before} to {newurl}, which is not followed")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _opener() -> urllib.request.OpenerDirector:
    """Speaks http and https alone: no files, no ftp. Proxies are those of the environment."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.UnknownHandler(),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(context=ssl.create_default_context()),
        urllib.request.HTTPDefaultErrorHandler(),
        _Redirects(),
        urllib.request.HTTPErrorProcessor(),
    ):
        opener.add_handler(handler)
    return opener


@contextmanager
def _in_our_words() -> Iterator[None]:
    try:
        yield
    except HTTPError as error:
        error.close()
        raise _of_status(error.code, error.reason) from error
    except URLError as error:
        raise _of_reason(error.reason) from error
    except (OSError, HTTPException) as error:
        raise _of_reason(error) from error
    except ValueError as error:  # a redirection to something that is no address
        raise Refused(f"leads to an address that cannot be used: {error}") from error


def _of_status(code: int, reason: str) -> Exception:
    reason = " ".join(str(reason).split())
    if code == 416:
        return NotResumable("answered 416: it has no more bytes than were fetched")
    if code >= 500 or code in WORTH_ANOTHER_TRY:
        return Broken(f"answered {code} {reason}")
    return Refused(f"answered {code} {reason}")


def _of_reason(reason: object) -> Exception:
    if isinstance(reason, socket.gaierror):
        return Unreached(f"its name has no address ({reason.strerror}); is there a network?")
    if isinstance(reason, ssl.SSLCertVerificationError):
        return Refused(f"its certificate cannot be trusted ({reason.verify_message})")
    if isinstance(reason, TimeoutError):
        return Broken(f"no byte came for {STALL:g} s")
    text = getattr(reason, "strerror", None) or str(reason) or type(reason).__name__
    return Broken(f"the connection broke: {text}")
