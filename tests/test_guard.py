"What stands between a server and those who may not use it: passwords, guesses, and every way in."
import asyncio
import os
import socket
from base64 import b64encode

import pytest

from deep_fashion.app.rate import Rate
from deep_fashion.app.serving import Bounds, Guard, read_password
from deep_fashion.core import InputError

httpx = pytest.importorskip("httpx", reason="the extra 'serve' is not installed")

PASSWORD = "correct horse battery"
METHODS = "GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "PROPFIND"


async def greet(scope, receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"hello"})


@pytest.fixture
def ask():
    "Ask a guard with a password from an address; gives the status."
    guard = Guard(greet, PASSWORD, Bounds(guesses=5, guess_seconds=1000))
    def status(address, password=None, **headers):
        async def sent():
            transport = httpx.ASGITransport(guard, client=(address, 1))
            async with httpx.AsyncClient(transport=transport, base_url="http://shop.example", headers=headers) as client:
                return await client.get("/", auth=None if password is None else ("anyone", password))
        answer = asyncio.run(sent())
        if answer.status_code == 429: assert 0 < int(answer.headers["Retry-After"]) <= 1000
        return answer.status_code
    status.guard = guard
    return status


def test_an_address_can_guess_a_few_passwords_only(ask):
    assert ask("192.0.2.1", PASSWORD) == 200
    # Browsers ask without a password first, which is no guess.
    assert [ask("192.0.2.1") for _ in range(50)] == [401] * 50
    assert [ask("192.0.2.1", f"wrong {i}") for i in range(100)] == [401] * 5 + [429] * 95
    # The right password is not told from a wrong one, or an attacker could go on.
    assert ask("192.0.2.1", PASSWORD) == 429
    assert ask("192.0.2.1") == 401
    assert ask("192.0.2.2", PASSWORD) == 200


@pytest.mark.parametrize("header", ["Basic ?", "Bearer x", "Basic " + b64encode(b"\xff\xfe").decode(), "x" * 5000])
def test_whatever_claims_to_be_a_password_is_a_guess(ask, header):
    assert [ask("192.0.2.1", Authorization=header) for _ in range(8)] == [401] * 5 + [429] * 3


def test_wrong_passwords_do_not_use_up_the_requests_of_an_address():
    ask_once = Guard(greet, PASSWORD, Bounds(burst=100, guesses=60, rate=1))
    async def statuses(passwords):
        transport = httpx.ASGITransport(ask_once, client=("192.0.2.1", 1))
        async with httpx.AsyncClient(transport=transport, base_url="http://shop.example") as client:
            return [(await client.get("/", auth=("", password))).status_code for password in passwords]
    assert asyncio.run(statuses(["wrong"] * 50 + [PASSWORD] * 50)) == [401] * 50 + [200] * 50


def test_a_network_of_ipv6_counts_as_one_and_ipv4_in_it_does_not(ask):
    assert [ask(f"2001:db8::{i:x}:{i:x}", "wrong") for i in range(1, 9)] == [401] * 5 + [429] * 3
    assert ask("2001:db8:0:1::1", "wrong") == 401
    assert [ask(f"::ffff:192.0.2.{i}", "wrong") for i in range(1, 9)] == [401] * 8
    assert ask("192.0.2.1", "wrong") == 401
    assert [ask("x" * i, "wrong") for i in range(1, 9)] == [401] * 5 + [429] * 3


def test_few_addresses_are_remembered(ask):
    ask.guard.guesses.addresses = ask.guard.rate.addresses = 20
    for i in range(100): ask(f"192.0.2.{i}", "wrong")
    assert len(ask.guard.guesses.buckets) == len(ask.guard.rate.buckets) == 20 and not ask.guard.active


@pytest.mark.skipif(os.name != "posix", reason="Windows has no devices and pipes among the files")
def test_a_password_is_not_read_from_what_has_no_end(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("/dev/zero")
    for path, reason in (("/dev/zero", "device"), (tmp_path / "link", "device"), ("/dev/null", "device"), (tmp_path / "pipe", "pipe")):
        with pytest.raises(InputError, match=f"cannot be read .*{reason}"): read_password(path)
    for path in (tmp_path, tmp_path / "none"):
        with pytest.raises(InputError, match="cannot be read"): read_password(path)


def test_a_password_file_is_small(tmp_path):
    file = tmp_path / "password"
    for content in (PASSWORD, f"\ufeff {PASSWORD} \r\nmore", f"{PASSWORD}\n" + "#" * 4000):
        file.write_text(content, encoding="utf-8", newline="")
        assert read_password(file) == PASSWORD
    with open(file, "wb") as sparse: sparse.truncate(2**40)
    with pytest.raises(InputError, match="4096 bytes at most"): read_password(file)
    file.write_text(PASSWORD, encoding="utf-16")
    with pytest.raises(InputError, match="not text in UTF-8"): read_password(file)


@pytest.mark.skipif(os.name != "posix", reason="Windows has no pipes among the files")
def test_a_password_may_come_through_a_pipe():
    reading, writing = os.pipe()
    os.write(writing, PASSWORD.encode())
    os.close(writing)
    assert read_password(f"/dev/fd/{reading}") == PASSWORD
    os.close(reading)


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@pytest.fixture(scope="module")
def servers(trained, tmp_path_factory):
    "Both servers behind a password, without the bound on requests; each with a list of the paths that got through."
    pytest.importorskip("gradio", reason="the extra 'app' is not installed")
    from deep_fashion.app.api import serve_api
    from deep_fashion.app.server import serve_app
    folder, running = tmp_path_factory.mktemp("guarded"), {}
    (folder / "password").write_text(PASSWORD)
    for name, serve in (("serve", serve_api), ("app", serve_app)):
        options = {"corrections": folder / "corrections.csv"} if name == "app" else {}
        server = serve(trained, free_port(), password_file=folder / "password", **options)
        server.guard.rate = Rate(10**9, 10**9)
        running[name] = server, watched(server.guard)
    yield running
    for server, _ in running.values(): server.close()


def watched(guard):
    "The paths of requests that `guard` lets through from now on."
    app, paths = guard.app, []
    async def recorded(scope, receive, send):
        if scope["type"] != "lifespan": paths.append(scope["path"])
        await app(scope, receive, send)
    guard.app = recorded
    return paths


OF_ALL = "/", "/none", "/tag", "/health", "/version", "/openapi.json", "/docs", "/redoc", "/favicon.ico", "/robots.txt", "//", "/%2e%2e/"
OF_GRADIO = (
    "/config", "/theme.css", "/manifest.json", "/monitoring", "/login", "/logout", "/token", "/user", "/assets/index.js",
    "/static/img/logo.svg", "/svelte/x", "/gradio_api/info", "/gradio_api/app_id", "/gradio_api/upload", "/gradio_api/upload_progress",
    "/gradio_api/file=/etc/passwd", "/gradio_api/proxy=http://127.0.0.1/", "/gradio_api/queue/join", "/gradio_api/queue/status",
    "/gradio_api/queue/data?session_hash=a", "/gradio_api/run/tag", "/gradio_api/call/tag", "/gradio_api/call/v2/tag",
    "/gradio_api/cancel", "/gradio_api/heartbeat/a", "//gradio_api/heartbeat/a", "/gradio_api/startup-events",
    "/gradio_api/stream/a/b/c/playlist.m3u8", "/gradio_api/mcp/sse", "/gradio_api/dev/reload", "/gradio_api/vibe-edit/",
    "/gradio_api/reset", "/gradio_api/deep_link", "/gradio_api/component_server", "/gradio_api/process_recording",
)


@pytest.mark.parametrize("name", ["serve", "app"])
def test_nothing_is_answered_without_the_password(servers, name):
    server, reached = servers[name]
    with httpx.Client(base_url=server.url) as client:
        for path in OF_ALL + OF_GRADIO:
            for method in METHODS:
                answer = client.request(method, server.url + path)
                assert answer.status_code == 401 and answer.headers["WWW-Authenticate"].startswith("Basic"), (method, path)
                assert answer.text in ("", '{"detail":"a password is required"}'), (method, path)
        for headers in ({"Origin": "http://evil.example"}, {"Host": "evil.example"}, {"Cookie": "a=b"}):
            assert client.post("/", headers=headers).status_code == 401, headers
    assert reached == []
    assert httpx.get(server.url, auth=("", PASSWORD)).status_code == 200 and reached == ["/"]
    reached.clear()


UPGRADE = "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: x3JJHMbDL1EzLkh9GBhXDw==\r\nSec-WebSocket-Version: 13\r\n"


@pytest.mark.parametrize("request_line, headers, statuses", [
    ("GET /gradio_api/queue/join HTTP/1.1", UPGRADE, (401,)),
    ("GET / HTTP/1.1", "Upgrade: h2c\r\nConnection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n", (401,)),
    ("OPTIONS * HTTP/1.1", "", (400, 401)), ("GET http://elsewhere.example/health HTTP/1.1", "", (400, 401)),
    ("CONNECT elsewhere.example:443 HTTP/1.1", "", (400, 401)), ("GET /health HTTP/1.0", "", (401,)), ("PRI * HTTP/2.0", "", (400, 401)),
    ("POST /tag HTTP/1.1", "Content-Length: 999999999999\r\n", (401,)),
    ("POST /tag HTTP/1.1", "Transfer-Encoding: chunked\r\n", (401,)),
])
@pytest.mark.parametrize("name", ["serve", "app"])
def test_no_other_protocol_is_a_way_in(servers, name, request_line, headers, statuses):
    server, reached = servers[name]
    with socket.create_connection(server.address, timeout=10) as client:
        client.sendall(f"{request_line}\r\nHost: a\r\n{headers}\r\n".encode())
        assert int(client.recv(1000).split()[1]) in statuses
    assert reached == []
