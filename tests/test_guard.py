"What stands between a server and those who may not use it: passwords, guesses, and every way in."
import asyncio
import os
import socket
import warnings
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
