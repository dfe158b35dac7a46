"The interface for programs as a client meets it: tags, bounds, passwords, ends; and what OpenAPI promises, tried at random."
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from PIL import Image

from deep_fashion.app.api import build_api, serve_api
from deep_fashion.app.serving import Bounds, Guard, Serving, listen
from deep_fashion.predict.tagger import load_tagger

fastapi = pytest.importorskip("fastapi", reason="the extra 'serve' is not installed")
httpx = pytest.importorskip("httpx", reason="the extra 'dev' is not installed")
schemathesis = pytest.importorskip("schemathesis", reason="the extra 'dev' is not installed")

ROOT = Path(__file__).resolve().parents[1]
PASSWORD = "correct horse battery"


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@pytest.fixture(scope="module")
def learn(trained): return load_tagger(trained)


@pytest.fixture(scope="module")
def served(trained):
    server = serve_api(trained, free_port())
    yield server
    server.close()


@pytest.fixture
def bounded(learn):
    "Serve within other bounds, or with a password; gives the address."
    running = []
    def start(password=None, **bounds):
        bounds = Bounds(**bounds)
        guard = Guard(build_api(learn, has_password=password is not None, bounds=bounds), password, bounds)
        running.append(Serving(guard, listen("127.0.0.1", free_port())))
        return running[-1].url
    yield start
    for server in running: server.close()


@pytest.fixture(scope="module")
def photo(samples): return (samples.images / "shirt-00001-1.jpg").read_bytes()


def ask(address, *files, **options): return httpx.post(f"{address}/tag", files=[("files", file) for file in files], timeout=60, **options)


def answer_to_guide(start, url, samples, folder):
    "The photos of the answer to the line of the guide that begins so, run in `folder` and sent to `url`."
    cells = json.loads((ROOT / "nbs" / "guide.serving.ipynb").read_text(encoding="utf-8"))["cells"]
    [line] = re.findall(f"^{start} .*:8000.*$", "\n".join("".join(cell["source"]) for cell in cells), re.M)
    if shutil.which("curl") is None: pytest.skip("curl is not installed")
    for i, name in enumerate(("photo.jpg", "other.jpg"), 1): shutil.copy(samples.images / f"shirt-{i:05}-1.jpg", folder / name)
    words = shlex.split(line.replace("http://127.0.0.1:8000", url))
    answer = subprocess.run([*words, "--silent", "--fail"], cwd=folder, capture_output=True, check=True).stdout
    return httpx.Response(200, content=answer).json()["photos"]


def test_the_lines_in_the_guide_work(served, bounded, samples, tmp_path):
    photos = answer_to_guide("curl -F", served.url, samples, tmp_path)
    assert [found["filename"] for found in photos] == ["photo.jpg", "other.jpg"]
    assert all(set(found["attributes"]) == {"neck", "sleeve_length", "pattern"} for found in photos)
    photos = answer_to_guide("curl -u", bounded("at least 12 characters"), samples, tmp_path)
    assert [found["filename"] for found in photos] == ["photo.jpg"]


def test_every_file_gets_tags_or_a_reason(served, photo):
    bomb = BytesIO()
    Image.new("1", (8000, 8000)).save(bomb, "PNG")
    names = "größe, (1).jpg", "cut.jpg", "empty.jpg", "notes.jpg", "bomb.png", "large.png"
    contents = photo, photo[:900], b"", b"not a photo", bomb.getvalue(), bytes(21 * 2**20)
    found = ask(served.url, *zip(names, contents)).json()["photos"]
    assert [o["filename"] for o in found] == list(names)
    assert sum(o["probability"] for o in found[0]["attributes"]["neck"]) == pytest.approx(1, abs=0.01)
    reasons = "cannot be read", "empty", "no known image format", "exceeds limit", "larger than 20 MB"
    for answer, reason in zip(found[1:], reasons): assert reason in answer["error"] and "attributes" not in answer
    alone = httpx.post(f"{served.url}/tag", content=photo, headers={"Content-Type": "image/jpeg"}).json()["photos"]
    assert alone[0]["attributes"] == found[0]["attributes"]


def test_many_clients_at_once_get_the_answers_they_would_get_alone(served, samples):
    photos = [path.read_bytes() for path in sorted(samples.images.glob("shirt-*.jpg"))[:6]]
    alone = [ask(served.url, ("a.jpg", content)).json() for content in photos]
    with ThreadPoolExecutor(16) as clients:
        together = list(clients.map(lambda i: ask(served.url, ("a.jpg", photos[i % 6])).json(), range(96)))
    for i, answer in enumerate(together):
        for attribute, classes in answer["photos"][0]["attributes"].items():
            expected = {o["label"]: o["probability"] for o in alone[i % 6]["photos"][0]["attributes"][attribute]}
            assert {o["label"]: o["probability"] for o in classes} == pytest.approx(expected, abs=0.01)


def test_the_server_refuses_what_is_too_much(bounded, photo):
    address = bounded(photos=2, megabytes=1, body=3, burst=12, rate=1)
    assert ask(address, *[("a.jpg", photo)] * 2).status_code == 200
    assert ask(address, *[("a.jpg", photo)] * 3).status_code == 422
    assert "larger than 1 MB" in ask(address, ("a.jpg", bytes(2 * 2**20))).json()["photos"][0]["error"]
    def endless():
        for _ in range(64): yield bytes(2**20)
    # The server closes the connection, so the client may not get to read the answer.
    try: assert httpx.post(f"{address}/tag", content=endless(), headers={"Content-Type": "image/png"}).status_code == 413
    except httpx.TransportError: pass
    answers = [httpx.get(f"{address}/health") for _ in range(20)]
    assert {answer.status_code for answer in answers} == {200, 429} and int(answers[-1].headers["Retry-After"]) > 0
    full = ask(bounded(waiting=1), *[("a.jpg", photo)] * 2)
    assert full.status_code == 503 and int(full.headers["Retry-After"]) > 0 and "waiting" in full.json()["detail"]


def test_a_client_gets_the_reason_even_if_it_still_sends(served):
    head = b'--XX\r\nContent-Disposition: form-data; name="files"; filename="a"\r\n'
    for body, status in (
        (head + b"H: " + b"a" * 20_000_000 + b"\r\n\r\nabc\r\n--XX--\r\n", 400),
        (head.replace(b"files", b"other") + b"\r\n" + bytes(20_000_000), 422),
    ):
        answer = httpx.post(f"{served.url}/tag", content=body, headers={"Content-Type": "multipart/form-data; boundary=XX"}, timeout=60)
        assert answer.status_code == status and answer.json()["detail"]


def test_slow_and_broken_clients_do_not_disturb_others(bounded, photo):
    address = bounded(idle=1)
    place = address.removeprefix("http://").split(":")
    slow = [socket.create_connection(place) for _ in range(20)]
    unfinished = b"POST /tag HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: image/png\r\nContent-Length: 99\r\n\r\nabc"
    starts = b"", b"GET / HT", unfinished, b"\0\xff\r\n\r\n"
    for i, client in enumerate(slow): client.sendall(starts[i % 4])
    assert ask(address, ("a.jpg", photo)).status_code == 200
    for i, client in enumerate(slow):
        client.settimeout(20)
        answer = client.recv(1000)
        assert answer.startswith((b"", b"", b"HTTP/1.1 408", b"HTTP/1.1 400")[i % 4])
        client.close()
    assert ask(address, ("a.jpg", photo)).status_code == 200


@pytest.mark.parametrize("command_name", ["app", "serve"])
def test_other_computers_need_a_password(refused, trained, tmp_path, monkeypatch, command_name):
    words = command_name, "--model", trained, "--port", free_port(), "--host", "0.0.0.0"
    refused(*words, says=["host 0.0.0.0", "a password is required", "password_file"])
    (tmp_path / "short").write_text("secret\n")
    refused(*words, "--password_file", tmp_path / "short", says=["short", "6 characters", "at least 12"])
    refused(*words, "--password_file", tmp_path / "none", says=["none", "cannot be read"])
    monkeypatch.setenv("DEEP_FASHION_PASSWORD", "")
    refused(*words, says=["DEEP_FASHION_PASSWORD", "at least 12"])


def test_every_path_is_behind_the_password(trained, tmp_path, photo, monkeypatch):
    pytest.importorskip("gradio", reason="the extra 'app' is not installed")
    from deep_fashion.app.server import serve_app
    monkeypatch.setenv("DEEP_FASHION_PASSWORD", PASSWORD)
    with pytest.warns(UserWarning, match="without encryption"): server = serve_api(trained, free_port(), "0.0.0.0")
    page = serve_app(trained, free_port(), tmp_path / "corrections.csv")
    right = httpx.BasicAuth("anyone", PASSWORD)
    try:
        for address, paths in (
            (server.url, ("", "/tag", "/health", "/version", "/openapi.json", "/none")),
            (page.url, ("", "/config", "/theme.css", "/favicon.ico", "/assets/none.js", "/static/img/logo.svg", "/gradio_api/info",
                        "/gradio_api/heartbeat/a", "/gradio_api/queue/data?session_hash=a", "/gradio_api/startup-events", "/login")),
        ):
            for path in paths:
                for auth in (None, ("anyone", "wrong " + PASSWORD)):
                    answer = httpx.get(address + path, auth=auth)
                    assert answer.status_code == 401 and answer.headers["WWW-Authenticate"].startswith("Basic"), path
        assert httpx.post(f"{page.url}/gradio_api/upload", files={"files": photo}).status_code == 401
        assert httpx.get(page.url, auth=right).status_code == 200
        assert ask(server.url, ("a.jpg", photo), auth=right, headers={"Host": "shop.example"}).status_code == 200
        assert "HTTPBasic" in httpx.get(f"{server.url}/openapi.json", auth=right).json()["components"]["securitySchemes"]
    finally: server.close(), page.close()


def start(name, port, model, folder):
    "A command in a process of its own, with a folder for its temporary files."
    folder.mkdir()
    code = "import sys; from deep_fashion.cli import main; sys.exit(main(sys.argv[1:]))"
    words = [sys.executable, "-c", code, name, "--model", model, "--port", str(port)]
    return subprocess.Popen(words, cwd=folder, env={**os.environ, "TMPDIR": str(folder), "PYTHONPATH": str(ROOT)},
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.skipif(os.name != "posix", reason="Windows has no SIGTERM")
def test_servers_finish_what_they_have_and_leave_nothing(trained, photo, tmp_path):
    pytest.importorskip("gradio", reason="the extra 'app' is not installed")
    ports = {"serve": free_port(), "app": free_port()}
    running = {name: start(name, port, trained, tmp_path / name) for name, port in ports.items()}
    for name, process in running.items(): assert f"http://127.0.0.1:{ports[name]}" in process.stdout.readline()
    upload = httpx.post(f"http://127.0.0.1:{ports['app']}/gradio_api/upload", files={"files": ("a.jpg", photo)})
    assert upload.status_code == 200 and Path(upload.json()[0]).exists()
    noise = BytesIO()
    Image.fromarray(np.random.default_rng(1).integers(0, 255, (1500, 1500, 3), "uint8")).save(noise, "PNG")
    with ThreadPoolExecutor(1) as client:
        answer = client.submit(ask, f"http://127.0.0.1:{ports['serve']}", *[("a.png", noise.getvalue())] * 12)
        while httpx.get(f"http://127.0.0.1:{ports['serve']}/health").json()["waiting"] == 0 and not answer.done(): time.sleep(.01)
        running["serve"].send_signal(signal.SIGTERM)
        running["app"].send_signal(signal.SIGTERM)
        assert [len(found["attributes"]) for found in answer.result().json()["photos"]] == [3] * 12
    for name, process in running.items():
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 0 and "Traceback" not in errors and "unexpected" not in errors, errors
        assert [path for path in (tmp_path / name).rglob("*") if path.is_file() and "deep_fashion" in str(path.relative_to(tmp_path))] == []
        assert [path for kind in ("deep_fashion-*", "gradio*") for path in (tmp_path / name).glob(kind)] == []


def test_mistakes_are_one_line(refused, trained, served, tmp_path, monkeypatch):
    refused("serve", "--model", tmp_path / "none.pkl", "--port", free_port(), says=["none.pkl", "no such file"])
    refused("serve", "--model", trained, "--port", served.address[1], says=["port", "cannot be used"])
    refused("serve", "--model", trained, "--host", "no.such.host.invalid", says=["no.such.host.invalid", "is not known"])
    monkeypatch.setitem(sys.modules, "fastapi", None)
    refused("serve", "--model", trained, says=["fastapi is not installed", "deep_fashion[serve]"])


def test_a_bug_is_an_answer_and_one_line(learn, photo, capsys):
    api = build_api(learn)
    server = Serving(Guard(api), listen("127.0.0.1", free_port()))
    try:
        def broken(_): raise KeyError("bug")
        api.state.batcher.tag = broken
        for _ in range(3):
            answer = ask(server.url, ("a.jpg", photo))
            assert answer.status_code == 500 and answer.json()["detail"].startswith("unexpected error")
        assert httpx.get(f"{server.url}/health").json() == {"status": "ok", "waiting": 0}
    finally: server.close()
    printed = capsys.readouterr().err.splitlines()
    assert len(printed) == 1 and "unexpected error (KeyError: 'bug')" in printed[0]
    Path(re.search(r"details are in (\S+): please", printed[0])[1]).unlink()


@pytest.mark.parametrize("mode", list(schemathesis.GenerationMode))
def test_the_interface_keeps_what_openapi_promises(served, mode):
    "With requests that follow the description (positive), and with others (negative)."
    for operation in schemathesis.openapi.from_url(f"{served.url}/openapi.json").get_all_operations():
        # Nothing can be wrong in a request without a body and parameters.
        if mode == schemathesis.GenerationMode.NEGATIVE and operation.ok().path != "/tag": continue
        @settings(max_examples=30, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck))
        @given(case=operation.ok().as_strategy(generation_mode=mode))
        def try_one(case): case.call_and_validate()
        try_one()
