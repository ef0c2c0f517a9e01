"""The HTTP server of the dashboard: it only reads, and only tells those who may know.

A path of a request is a key of a table and never a path of a file: there is nothing to climb out of. Over loopback
anybody on this machine may ask; on any other address only who has the token. A page of another site cannot: the
``Host`` must be ours (else a name that its owner points at this machine would make the two one site to a browser), and
no answer may be used by another origin.
"""

from __future__ import annotations

import functools
import gzip
import hashlib
import hmac
import http.cookies
import importlib.resources
import ipaddress
import json
import secrets
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from clplat.dashboard import data
from clplat.dashboard.index import Index
from clplat.errors import UsageError

SHORTEST = 16  # characters of a token that others could guess at
LOCAL = ("localhost", "127.0.0.1", "::1")
# What a browser may do on the page: run our two scripts, ask this server, draw. Plotly sets styles and draws images.
POLICY = (
    "default-src 'none'; script-src 'self'; connect-src 'self'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; form-action 'none'; base-uri 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}
STATIC = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/app.js": ("app.js", "text/javascript; charset=utf-8"),
    "/colours.js": ("colours.js", "text/javascript; charset=utf-8"),
    "/figures.js": ("figures.js", "text/javascript; charset=utf-8"),
    "/words.js": ("words.js", "text/javascript; charset=utf-8"),
    "/style.css": ("style.css", "text/css; charset=utf-8"),
    "/plotly.min.js": (None, "text/javascript; charset=utf-8"),  # that of the package plotly
}

Words = Mapping[str, Sequence[str]]


class Server(ThreadingHTTPServer):
    """The dashboard of an index, bound but not serving yet.

    Args:
        index: the runs.
        host: the address to bind.
        port: the port to bind; 0 for any that is free.
        token: what to ask for; None asks for nothing over loopback, and else makes one up.

    Raises:
        UsageError: the address cannot be bound, or the token is too short for it.
    """

    daemon_threads = True

    def __init__(self, index: Index, host: str = "127.0.0.1", port: int = 0, token: str | None = None) -> None:
        try:
            family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
            local = ipaddress.ip_address(str(address[0])).is_loopback
        except (OSError, ValueError, UnicodeError) as error:
            raise UsageError(f"--host {host}: {error}") from None
        if token is not None and (len(token) < SHORTEST or not token.isascii() or not token.isprintable()):
            raise UsageError(
                f"--token: at least {SHORTEST} plain characters; left out, one is made up where it is needed"
            )
        self.token = token if token is not None or local else secrets.token_urlsafe(24)
        self.index, self.address_family = index, family
        own = set() if local else {host.lower(), socket.gethostname().lower(), socket.getfqdn().lower()}
        self.names, self._any_address = {*LOCAL, *own}, not local
        try:
            super().__init__((str(address[0]), port), Handler)
        except (OSError, OverflowError) as error:
            raise UsageError(f"--host {host} --port {port}: {error}") from None
        shown = f"[{host}]" if ":" in host else host
        self.url = f"http://{shown}:{self.server_address[1]}/"

    def is_ours(self, host: str) -> bool:
        """Whether the ``Host`` of a request is this server's. An address always is, where addresses are bound: nobody
        can point an address elsewhere, as one can a name."""
        try:
            name = (urlsplit(f"//{host}").hostname or "").lower()
        except ValueError:
            return False
        if name in self.names:
            return True
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return self._any_address

    def knows(self, given: str) -> bool:
        """Whether somebody has the token; takes as long whatever is wrong with it."""
        return self.token is None or hmac.compare_digest(given.encode("utf-8", "replace"), self.token.encode())

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hangs up is no news."""
        if not isinstance(sys.exception(), (ConnectionError, TimeoutError)):
            super().handle_error(request, client_address)


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    server: Server
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "clplat", ""
    timeout = 60

    def answer(self) -> None:
        """GET and HEAD."""
        hosts = self.headers.get_all("Host") or []
        if len(hosts) != 1 or not self.server.is_ours(hosts[0]):
            self.send_error(HTTPStatus.MISDIRECTED_REQUEST, "This is not the host that you asked for")
            return
        path, _, words = self.path.partition("?")
        try:
            asked = parse_qs(words, keep_blank_values=True, max_num_fields=1000)
        except ValueError:
            self.send_error(HTTPStatus.BAD_REQUEST)
            return
        if not self._may():
            if path == "/" and self.server.knows(asked.get("token", [""])[0]):
                self._welcome()
            else:
                self.send_error(HTTPStatus.UNAUTHORIZED, "Open the address with ?token=..., as it was printed")
            return
        if path in STATIC:
            self._file(path)
        elif path in ANSWERS:
            self._json(ANSWERS[path], asked)
        else:
            self.send_error(HTTPStatus.NOT_FOUND)

    def refuse(self) -> None:
        """All that would change something."""
        self.send_error(HTTPStatus.METHOD_NOT_ALLOWED)

    do_GET = do_HEAD = answer  # noqa: N815 - names that http.server gives
    do_POST = do_PUT = do_PATCH = do_DELETE = do_OPTIONS = do_TRACE = do_CONNECT = refuse  # noqa: N815

    def _may(self) -> bool:
        given = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if self.server.token is None or (given and self.server.knows(given)):
            return True
        try:
            cookie = http.cookies.SimpleCookie(self.headers.get("Cookie", "")).get(self._cookie)
        except http.cookies.CookieError:
            return False
        return cookie is not None and self.server.knows(cookie.value)

    @property
    def _cookie(self) -> str:
        return f"clplat-{self.server.server_address[1]}"  # cookies are for all ports of a host

    def _welcome(self) -> None:
        """Take the token out of the address, where others could read it, into a cookie."""
        cookie: http.cookies.SimpleCookie = http.cookies.SimpleCookie({self._cookie: str(self.server.token)})
        cookie[self._cookie] |= {"httponly": True, "samesite": "Lax", "path": "/"}
        self._send(
            HTTPStatus.SEE_OTHER, b"", {"Location": "/", "Set-Cookie": cookie[self._cookie].OutputString(), **FRESH}
        )

    def _file(self, path: str) -> None:
        content, packed, tag = _static(path)
        head = {"Content-Type": STATIC[path][1], "ETag": tag, "Cache-Control": "no-cache"}
        if self.headers.get("If-None-Match") == tag:
            self._send(HTTPStatus.NOT_MODIFIED, b"", head)
        elif self._takes_gzip():
            self._send(HTTPStatus.OK, packed, {**head, "Content-Encoding": "gzip"})
        else:
            self._send(HTTPStatus.OK, content, head)

    def _json(self, answer: Callable[[Index, Words], Any], asked: Words) -> None:
        status = HTTPStatus.OK
        try:
            content = answer(self.server.index, asked)
        except UsageError as error:
            status, content = HTTPStatus.BAD_REQUEST, {"error": error.messages}
        except KeyError as error:
            status, content = HTTPStatus.NOT_FOUND, {"error": [f"there is no {error.args[0]!r}"]}
        except ValueError:
            status, content = HTTPStatus.BAD_REQUEST, {"error": ["not a number"]}
        body = json.dumps(content, allow_nan=False, separators=(",", ":")).encode()
        head = {"Content-Type": "application/json; charset=utf-8", **FRESH}
        if len(body) > 2000 and self._takes_gzip():
            body, head["Content-Encoding"] = gzip.compress(body, 1), "gzip"
        self._send(status, body, head)

    def _takes_gzip(self) -> bool:
        return "gzip" in self.headers.get("Accept-Encoding", "")

    def _send(self, status: HTTPStatus, body: bytes, head: Mapping[str, str]) -> None:
        self.send_response(status)
        for name, value in {**HEADERS, **head, "Vary": "Accept-Encoding"}.items():
            self.send_header(name, value)
        if status != HTTPStatus.NOT_MODIFIED:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """A refusal in plain text, after which the connection ends: what else was sent is not read."""
        status = HTTPStatus(code)
        head = {"Content-Type": "text/plain; charset=utf-8", "Connection": "close", **FRESH}
        if status == HTTPStatus.METHOD_NOT_ALLOWED:
            head["Allow"] = "GET, HEAD"
        self._send(status, f"{message or status.phrase}\n".encode(), head)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: an address may hold the token."""


FRESH = {"Cache-Control": "no-store"}


@functools.cache
def _static(path: str) -> tuple[bytes, bytes, str]:
    """A file of the page, the same packed, and its tag."""
    name, _ = STATIC[path]
    if name is None:
        from plotly.offline import get_plotlyjs

        content = get_plotlyjs().encode()
    else:
        content = (importlib.resources.files("clplat.dashboard") / "static" / name).read_bytes()
    return content, gzip.compress(content, 6), f'"{hashlib.sha256(content).hexdigest()[:32]}"'


def _one(asked: Words, name: str) -> str | None:
    """A word that is asked with once, or nothing."""
    return asked[name][0] if asked.get(name, [""])[0] else None


def _label(asked: Words) -> str:
    return _one(asked, "run") or ""


def _since(asked: Words) -> int:
    return int(_one(asked, "since") or 0)


def _runs(index: Index, asked: Words) -> data.Answer:
    columns = [key.strip() for key in asked.get("columns", [""])[0].split(",") if key.strip()]
    return data.table(index, asked.get("where", ()), _one(asked, "sort"), columns, _since(asked))


def _view(index: Index, asked: Words) -> data.Answer:
    key, labels = _one(asked, "key") or "", asked.get("run", ())
    return data.view(index, key, labels, _one(asked, "group"), _one(asked, "term"), _since(asked))


def _log(index: Index, asked: Words) -> data.Answer:
    since = _one(asked, "since")
    return data.log(index, _label(asked), _one(asked, "name"), None if since is None else int(since))


ANSWERS: dict[str, Callable[[Index, Words], data.Answer]] = {
    "/api/about": lambda index, asked: data.about(index),
    "/api/runs": _runs,
    "/api/view": _view,
    "/api/run": lambda index, asked: data.details(index, _label(asked)),
    "/api/log": _log,
}
