"""Who may ask the dashboard for what: real requests over HTTP."""

from __future__ import annotations

import http.client
import json
import os
import socket
import stat
import time
from typing import Any
from urllib.parse import quote

import pytest

from clplat.dashboard.server import ANSWERS, STATIC, Server
from clplat.errors import UsageError

SECRET = "nobody is to read this"
HOSTILE = "</script><script>alert(1)</script>&\"'`<img src=x onerror=alert(2)>"


def ask(server: Server, path: str, method: str = "GET", **head: str) -> tuple[http.client.HTTPResponse, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_address[1], timeout=20)
    connection.putrequest(method, path, skip_host="Host" in head, skip_accept_encoding=True)
    for name, value in head.items():
        connection.putheader(name, value)
    connection.endheaders()
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    return answer, body


def asked(server: Server, path: str) -> dict[str, Any]:
    answer, body = ask(server, path)
    assert answer.status == 200, body
    found: dict[str, Any] = json.loads(body)
    return found


@pytest.fixture
def server(make, serve):
    make("runs/a")
    return serve()


def test_pages_and_what_a_browser_may_do_with_them(server):
    for path in STATIC:
        answer, body = ask(server, path)
        assert answer.status == 200
        assert len(body) > 500
        policy = answer.headers["Content-Security-Policy"]
        assert "default-src 'none'; script-src 'self'; connect-src 'self'" in policy
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert answer.headers["Cross-Origin-Resource-Policy"] == "same-origin"
        assert "Access-Control-Allow-Origin" not in answer.headers
        again, nothing = ask(server, path, **{"If-None-Match": answer.headers["ETag"]})
        assert (again.status, nothing) == (304, b"")
        packed, less = ask(server, path, **{"Accept-Encoding": "gzip"})
        assert packed.headers["Content-Encoding"] == "gzip"
        assert len(less) < len(body)
    page = ask(server, "/")[1].decode()
    assert "//" not in page.split("<main>")[0].replace("<!--", "")  # nothing comes from elsewhere


@pytest.mark.parametrize(
    "path",
    [
        "/../secret", "/../../secret", "/static/../../secret", "/%2e%2e/secret", "/%2e%2e%2fsecret", "/..%2fsecret",
        "/..%5csecret", "//secret", "/./secret", "/secret%00.html", "/%00", "/app.js%00", "/app.js/", "/app.js/../x",
        "/static/app.js", "/index.html", "/.git/config", "/__init__.py", "/server.py", "/runs/a/config.yaml", "secret",
        "http://127.0.0.1/secret", "/api", "/api/", "/api/runs/", "/API/RUNS", "/\N{FULLWIDTH FULL STOP}/secret",
    ],
)  # fmt: skip
def test_paths_are_names_and_no_files(server, tmp_path, path):
    (tmp_path / "secret").write_text(SECRET)
    connection = socket.create_connection(server.server_address[:2], timeout=20)
    with connection, connection.makefile("rb") as answer:
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
        content = answer.read()
    assert content.split()[1] == b"404"
    assert SECRET.encode() not in content
    connection = socket.create_connection(server.server_address[:2], timeout=20)
    with connection, connection.makefile("rb") as answer:
        connection.sendall(f"GET {tmp_path}/secret HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
        assert answer.read().split()[1] == b"404"


@pytest.mark.parametrize("route", ["/api/run", "/api/log", "/api/view?key=overlay&"])
@pytest.mark.parametrize(
    "run",
    ["../secret", "..", ".", "", "a/..", "a/../../secret", "/etc/passwd", "a\0", "\0", "%2e%2e", "..\\secret", "b"],
)
def test_runs_are_names_and_no_files(server, tmp_path, route, run):
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "log.txt").write_text(SECRET)
    answer, body = ask(server, f"{route}{'' if route.endswith('&') else '?'}run={quote(run)}")
    assert answer.status == 404
    assert json.loads(body) == {"error": [f"there is no {run!r}"]}


@pytest.mark.parametrize(
    "name", ["../secret", "/etc/passwd", "config.yaml", "log.txt/../config.yaml", "log.txt\0", ".."]
)
def test_logs_are_those_of_a_run_and_nothing_else(server, name):
    answer, _ = ask(server, f"/api/log?run=a&name={quote(name)}")
    assert answer.status == 404


@pytest.mark.parametrize("name", ["config.yaml", "results.json", "metrics.jsonl", "log.txt", "history.jsonl"])
def test_links_out_of_the_folder_are_not_followed(make, serve, tmp_path, name):
    path = make("runs/a")
    (tmp_path / "secret").write_text(json.dumps({"strategy": SECRET, "event": SECRET, "metric": SECRET}) + "\n")
    (path / name).unlink(missing_ok=True)
    (path / name).symlink_to(tmp_path / "secret")
    (tmp_path / "elsewhere").mkdir()
    os.rename(make("elsewhere/b"), tmp_path / "elsewhere" / "c")
    (tmp_path / "runs" / "link").symlink_to(tmp_path / "elsewhere" / "c")
    server = serve()
    found = asked(server, "/api/runs?columns=run,strategy,metric")
    assert found["order"] == ["a"]
    assert found["rows"]["a"]["problems"] == [f"{name} leads out of the folder that is shown; the run is not read"]
    for route in ("run?run=a", "log?run=a", "view?key=overlay&run=a", "view?key=matrix&run=a", "runs"):
        assert SECRET not in ask(server, f"/api/{route}")[1].decode()


def test_links_deep_in_a_run_and_links_within_the_folder(make, serve, tmp_path):
    path = make("runs/a")
    (path / "predictions").mkdir()
    (path / "predictions" / "x").symlink_to(tmp_path)
    (path / "shared.txt").symlink_to(make("runs/b") / "config.yaml")
    server = serve()
    assert asked(server, "/api/runs")["rows"]["a"]["problems"] == []
    assert "predictions/x leads out" in json.dumps(asked(server, "/api/run?run=a")["problems"])
    assert asked(server, "/api/run?run=b")["problems"] == []


def test_pipes_are_not_waited_for(make, serve):
    os.mkfifo(make("runs/a", status="running") / "results.json")
    os.mkfifo(make("runs/b") / "log.txt")
    server = serve()
    rows = asked(server, "/api/runs")["rows"]
    assert rows["a"]["problems"] == ["results.json is no file; the run is not read"]
    assert asked(server, "/api/log?run=b&name=log.txt")["text"] == ""
    assert rows["b"]["problems"] == ["log.txt is no file; the run is not read"]


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:80",
        "localhost.evil.example",
        "127.0.0.1.evil.example",
        "10.0.0.1",
        "",
        "[::",
        "x@",
    ],
)
def test_another_host_is_refused(server, host):
    for path in ("/", "/api/runs", "/nothing"):
        answer, body = ask(server, path, Host=host)
        assert answer.status == 421
        assert b"runs" not in body


def test_our_own_hosts(server):
    for host in ("localhost", "localhost:9000", "127.0.0.1:1", "[::1]:80", "LOCALHOST"):  # ssh -L has a port of its own
        assert ask(server, "/api/runs", Host=host)[0].status == 200


def test_no_host_or_two(server):
    for head in ("", "Host: localhost\r\nHost: localhost\r\n"):
        with socket.create_connection(server.server_address[:2], timeout=20) as connection:
            connection.sendall(f"GET / HTTP/1.1\r\n{head}\r\n".encode())
            assert connection.recv(100).split()[1] == b"421"


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT", "PROPFIND", "get"])
def test_nothing_but_reading(server, tmp_path, method):
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    for path in ("/", "/api/runs", "/api/log?run=a"):
        answer, body = ask(server, path, method)
        assert answer.status == (405 if method.isupper() and method != "PROPFIND" else 501)
        assert answer.headers["Connection"] == "close"
        assert b"<" not in body
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_head_says_the_same_without_a_body(server):
    for path in ("/", "/api/about", "/app.js"):
        whole, body = ask(server, path)
        head, nothing = ask(server, path, "HEAD")
        assert (head.status, nothing) == (200, b"")
        assert head.headers["Content-Length"] == str(len(body)) == whole.headers["Content-Length"]


def test_reading_writes_nothing(server, tmp_path):
    def seen():
        return {path: (found.st_mtime_ns, found.st_size) for path in tmp_path.rglob("*") if (found := path.stat())}

    before = seen()
    for path in (*STATIC, *(f"{route}?run=a&key=overlay" for route in ANSWERS)):
        assert ask(server, path)[0].status == 200
    assert seen() == before


def test_a_token_is_asked_for(make, serve):
    make("runs/a")
    token = "t0ken-t0ken-t0ken"
    server = serve(token=token)
    paths = [*STATIC, *ANSWERS, "/nothing"]
    wrong = [{}, {"Authorization": f"Bearer {token}x"}, {"Authorization": "Bearer "}, {"Authorization": "Bearer \xe9"}]
    name = f"clplat-{server.server_address[1]}"
    wrong += [{"Cookie": f"{name}={token[:-1]}"}, {"Cookie": f"other={token}"}, {"Cookie": f'{name}="'}]
    for path in paths:
        for head in wrong:
            answer, body = ask(server, path, **head)
            assert answer.status == 401
            assert token.encode() not in body
        assert ask(server, f"{path}?token=wrong")[0].status == 401
    assert ask(server, f"/api/runs?token={token}")[0].status == 401  # only the page takes it out of an address
    assert ask(server, "/api/runs", Authorization=f"Bearer {token}")[0].status == 200
    welcome, _ = ask(server, f"/?token={token}")
    assert (welcome.status, welcome.headers["Location"]) == (303, "/")
    cookie = welcome.headers["Set-Cookie"]
    assert {"HttpOnly", "SameSite=Lax", "Path=/"} <= set(cookie.split("; "))
    for path in [*STATIC, *(f"{route}?run=a&key=overlay" for route in ANSWERS)]:
        assert ask(server, path, Cookie=cookie.split(";")[0])[0].status == 200
    assert ask(server, "/api/runs", Cookie=cookie.split(";")[0], Host="evil.example")[0].status == 421


def test_other_addresses_have_a_token_always(make, serve, tmp_path):
    make("runs/a")
    server = serve(host="0.0.0.0")
    assert len(server.token) >= 32
    assert ask(server, "/api/runs")[0].status == 401
    head = {"Authorization": f"Bearer {server.token}"}
    for host in ("10.1.2.3:80", "localhost", socket.gethostname()):
        assert ask(server, "/api/runs", Host=host, **head)[0].status == 200
    assert ask(server, "/api/runs", Host="evil.example", **head)[0].status == 421
    for token in ("short", "", "sixteen letters\n", "sixteen lettérs!"):
        with pytest.raises(UsageError, match="--token"):
            serve(host="0.0.0.0", token=token)
    with pytest.raises(UsageError, match="--host"):
        serve(host="no such host")
    with pytest.raises(UsageError, match="no such folder"):
        serve(tmp_path / "nowhere")


def test_tokens_are_compared_in_constant_time(make, serve, monkeypatch):
    import hmac

    make("runs/a")
    server, calls = serve(token="t0ken-t0ken-t0ken"), []
    compare = hmac.compare_digest
    monkeypatch.setattr(hmac, "compare_digest", lambda a, b: calls.append(a) or compare(a, b))
    ask(server, "/api/runs", Authorization="Bearer guess")
    assert calls == [b"guess"]


def test_hostile_names_in_every_field_are_text(make, serve):
    lines = [
        {"event": "evaluate", "experience": -1, "step": 0, HOSTILE: [0.1, 0.2]},
        {"event": "train", "experience": 0, "phase": HOSTILE, "step": 1, "terms": {HOSTILE: 1.0}},
        {"event": "evaluate", "experience": 0, "step": 2, HOSTILE: [0.5, 0.1], "summary": {HOSTILE: 0.5}},
    ]
    name = HOSTILE.replace("/", "_")
    config = {"strategy": {"name": HOSTILE, HOSTILE: HOSTILE}, "backbone": HOSTILE, "seed": HOSTILE}
    path = make(f"runs/{name}", status=HOSTILE, lines=lines, **config)
    make("runs/b")
    (path / "log.txt").write_text(f"{HOSTILE}\x1b[31m\n")
    server = serve()
    asked_for = [
        f"/api/runs?columns=run,strategy,seed,status,metric,strategy.{quote(HOSTILE)}",
        f"/api/run?run={quote(name)}",
        f"/api/log?run={quote(name)}",
        f"/api/view?key=overlay&run={quote(name)}&run=b&group=strategy",
        f"/api/view?key=training&run={quote(name)}",
        *(f"/api/view?key={key}&run={quote(name)}" for key in ("average", "matrix", "curves")),
        f"/api/runs?where={quote(HOSTILE)}=1",
        f"/api/log?run=a&name={quote(HOSTILE)}",
        f"/{quote(HOSTILE)}",
    ]
    for path in asked_for:
        answer, body = ask(server, path)
        assert answer.headers["Content-Type"].split(";")[0] in ("application/json", "text/plain")
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert "\x1b" not in body.decode()
    for path in asked_for[3:6]:  # plotly reads a small markup: there names are escaped
        assert "<img" not in json.dumps(asked(server, path)["figures"]).replace(json.dumps(name)[1:-1], "")


def test_questions_that_are_none(server):
    for words in ("where=x", "sort=nothing", "since=x", "since=1e3"):
        answer, body = ask(server, f"/api/runs?{words}")
        assert answer.status == 400
        assert json.loads(body)["error"]
    assert ask(server, "/api/view?key=nothing&run=a")[0].status == 404
    assert ask(server, "/api/view?key=overlay" + "&run=a" * 51)[0].status == 400
    assert ask(server, "/api/runs?" + "x=1&" * 1001)[0].status == 400
    assert ask(server, "/" + "x" * 70000)[0].status == 414


def test_a_client_that_says_nothing_keeps_nobody_waiting(server):
    with socket.create_connection(server.server_address[:2]), socket.create_connection(server.server_address[:2]):
        begun = time.monotonic()
        assert ask(server, "/api/runs")[0].status == 200
        assert time.monotonic() - begun < 5


def test_files_of_the_page_are_in_the_package():
    import tomllib
    from importlib.resources import files
    from pathlib import Path

    static = files("clplat.dashboard") / "static"
    there = {entry.name for entry in static.iterdir()}
    assert {name for name, _ in STATIC.values() if name} == there
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))
    assert project["tool"]["setuptools"]["package-data"]["clplat.dashboard"] == ["static/*"]
    assert all(stat.S_ISREG(os.stat(str(entry)).st_mode) for entry in static.iterdir())
