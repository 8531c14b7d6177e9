"""A server on this machine that can do all that servers do wrong, and a watcher that remembers."""

import hashlib
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from rcnn.download.catalogue import RemoteFile

Route = Callable[[BaseHTTPRequestHandler], None]


class Watcher:
    """Remembers what it was told."""

    def __init__(self) -> None:
        self.counts: list[tuple[str, int, int | None]] = []
        self.notes: list[str] = []

    def count(self, what: str, done: int, total: int | None) -> None:
        self.counts.append((what, done, total))

    def note(self, text: str) -> None:
        self.notes.append(text)


class Site:
    """Routes by path, one for each request, of which the last stays; and the requests that came."""

    def __init__(self) -> None:
        self.routes: dict[str, list[Route]] = {}
        self.requests: list[tuple[str, dict[str, str]]] = []
        self.over = threading.Event()
        self.address = ""

    def add(self, path: str, *routes: Route) -> str:
        """The address of a new path."""
        self.routes[path] = list(routes)
        return f"{self.address}{path}"

    def ranges(self) -> list[str]:
        """The Range of each request; empty where it had none."""
        return [headers.get("Range", "") for _, headers in self.requests]


@contextmanager
def running_site() -> Iterator[Site]:
    """A site on the loopback address."""
    site = Site()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            site.requests.append((self.path, dict(self.headers)))
            routes = site.routes.get(self.path, [status(404)])
            (routes.pop(0) if len(routes) > 1 else routes[0])(self)

        def log_message(self, *_: Any) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_: Any) -> None:
            pass  # the client went away, as it may

    with Server(("127.0.0.1", 0), Handler) as server:
        site.address = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=lambda: server.serve_forever(poll_interval=0.01))
        thread.start()
        try:
            yield site
        finally:
            site.over.set()
            server.shutdown()
            thread.join()


def send(handler: BaseHTTPRequestHandler, code: int, body: bytes, length: int | None = -1, **headers: str) -> None:
    """An answer; `length` is what its header says: -1 the truth, None nothing."""
    handler.send_response(code)
    if length is not None:
        handler.send_header("Content-Length", str(len(body) if length == -1 else length))
    for name, value in headers.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.end_headers()
    handler.wfile.write(body)


def serve(content: bytes, etag: str = '"1"', *, ranges: bool = True, stop: int | None = None) -> Route:
    """A good server; without `ranges` one that ignores them, with `stop` one that breaks off at that byte."""

    def route(handler: BaseHTTPRequestHandler) -> None:
        asked = handler.headers.get("Range") if ranges else None
        if asked and handler.headers.get("If-Range", etag) != etag:
            asked = None
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked else 0
        more = {"ETag": etag} if etag else {}
        if start >= len(content) and asked:
            return send(handler, 416, b"", Content_Range=f"bytes */{len(content)}")
        if asked:
            more["Content_Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        send(handler, 206 if asked else 200, content[start:stop], len(content) - start, **more)

    return route


def says(body: bytes, code: int = 200, length: int | None = -1, **headers: str) -> Route:
    """Just this."""
    return lambda handler: send(handler, code, body, length, **headers)


def status(code: int) -> Route:
    """An answer without content."""
    return says(b"", code)


def page() -> Route:
    """A web page that says it went well."""
    return says(b"<!DOCTYPE html><html>not here</html>", Content_Type="text/html; charset=utf-8")


def redirect(to: str) -> Route:
    """Elsewhere."""
    return says(b"", 302, Location=to)


def stall(site: Site, content: bytes, after: int) -> Route:
    """Sends some bytes, and then nothing more."""

    def route(handler: BaseHTTPRequestHandler) -> None:
        send(handler, 200, content[:after], len(content), ETag='"1"')
        handler.wfile.flush()
        site.over.wait(20)

    return route


def remote(content: bytes, *urls: str, name: str = "file.bin", holds: tuple[str, ...] = ()) -> RemoteFile:
    """The catalogue's entry of such a file."""
    return RemoteFile(name, urls, len(content), sha256=hashlib.sha256(content).hexdigest(), holds=holds)
