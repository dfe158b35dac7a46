"""Serve a tagger to many users at once, bad ones among them, and count what they get: python benchmarks/load.py RUN [USERS] [SECONDS]

For the page's interface (app) and the one for programs (serve): answers by kind of request, how long valid ones took, the memory of the
server at the start, in the middle and at the end, and the files left when all is done and after SIGTERM."""
import io
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from pathlib import Path

import httpx
import numpy as np
from PIL import Image

VALID = "same photo", "other photo", "several photos"


def jpeg(seed, side=300):
    "A photo of noise and a few colours, of about 30 kB."
    pixels = np.random.default_rng(seed).integers(0, 255, (8, 8, 3), "uint8")
    photo, file = Image.fromarray(pixels).resize((side, side)), io.BytesIO()
    photo.save(file, "JPEG", quality=95)
    return file.getvalue()


def bomb():
    "A PNG of some kilobytes with 400 million pixels."
    file = io.BytesIO()
    Image.new("1", (20_000, 20_000)).save(file, "PNG")
    return file.getvalue()


SAME, OTHERS, BOMB, LARGE = jpeg(0), [jpeg(i) for i in range(1, 20)], bomb(), bytes(21 * 2**20)


def files_of(kind):
    "The files of a request, each a name and a content."
    many = [(f"{i}.jpg", photo) for i, photo in enumerate(random.sample(OTHERS, 4))]
    return {"same photo": [("same.jpg", SAME)], "other photo": [("other.jpg", random.choice(OTHERS))], "several photos": many,
            "broken": [("cut.jpg", SAME[:500])], "empty": [("empty.jpg", b"")], "no photo": [("page.jpg", b"<html>" * 100)],
            "bomb": [("bomb.png", BOMB)], "too large": [("large.jpg", LARGE)], "too many": [("a.jpg", SAME)] * 51}[kind]


def ask_serve(client, files):
    answer = client.post("/tag", files=[("files", file) for file in files])
    return answer.status_code, answer.json()["photos"] if answer.status_code == 200 else []


def ask_app(client, files):
    answer = client.post("/gradio_api/upload", files=[("files", file) for file in files])
    if answer.status_code != 200: return answer.status_code, []
    named = [{"path": path, "orig_name": name} for path, (name, _) in zip(answer.json(), files)]
    started = client.post("/gradio_api/call/tag", json={"data": [named]})
    if started.status_code != 200: return started.status_code, []
    text = client.get(f"/gradio_api/call/tag/{started.json()['event_id']}").text
    if "event: complete" not in text: return "error", []
    return 200, json.loads(text.split("event: complete\ndata: ")[1].splitlines()[0])[0]


def abort(address, seconds):
    "Start an upload, wait, and go away."
    with socket.create_connection(address) as client:
        client.sendall(b"POST /tag HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: image/jpeg\r\nContent-Length: 100000\r\n\r\n" + SAME[:1000])
        client.settimeout(seconds)
        try: return client.recv(100).split(b" ")[1].decode() if seconds else "gone"
        except TimeoutError: return "gone"


class Load:
    "What users got."
    def __init__(self, ask, url): self.ask, self.url, self.counts, self.times = ask, url, defaultdict(Counter), []

    def use(self, until, seed):
        "A user: two thirds of the requests are valid, the others of every other kind."
        choose = random.Random(seed)
        others = "broken", "empty", "no photo", "bomb", "too large", "too many", "aborted", "slow"
        with httpx.Client(base_url=self.url, timeout=180) as client:
            while time.time() < until:
                kind = choose.choice(VALID) if choose.random() < 2 / 3 else choose.choice(others)
                started = time.time()
                try: result = self.result(client, kind)
                except httpx.TransportError as e: result = type(e).__name__
                self.counts[kind][result] += 1
                if kind in VALID: self.times.append(time.time() - started)
                time.sleep(choose.random() / 2)

    def result(self, client, kind):
        address = client.base_url.host, client.base_url.port
        if kind in ("aborted", "slow"): return abort(address, 0 if kind == "aborted" else 30)
        status, photos = self.ask(client, files_of(kind))
        if status != 200: return str(status)
        return "tagged" if all("attributes" in photo for photo in photos) else "reason given"


def start(name, run, port, folder):
    code, output = "import sys; from deep_fashion.cli import main; sys.exit(main())", dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    words = [sys.executable, "-c", code, name, "--model", run, "--port", str(port)]
    process = subprocess.Popen(words, cwd=folder, env={**os.environ, "TMPDIR": str(folder)}, text=True, **output)
    process.stdout.readline()
    return process


def megabytes(process):
    status = Path(f"/proc/{process.pid}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) // 1024


def left(folder): return [str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file() and path.name != "corrections.csv"]


def measure(name, ask, run, users, seconds):
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        process, load = start(name, run, port, folder), Load(ask, f"http://127.0.0.1:{port}")
        load.use(time.time() + 3, 0)
        load.counts.clear(), load.times.clear()
        memory, until = [megabytes(process)], time.time() + seconds
        working = [threading.Thread(target=load.use, args=(until, i)) for i in range(users)]
        for user in working: user.start()
        for _ in range(8):
            time.sleep(seconds / 8)
            memory.append(megabytes(process))
        for user in working: user.join()
        print(f"\n{name}: {users} users for {seconds} s")
        for kind, results in sorted(load.counts.items()): print(f"  {kind:15}", ", ".join(f"{o} {n}" for o, n in results.most_common()))
        valid = sum((load.counts[kind] for kind in VALID), Counter())
        print(f"  valid requests: {valid.total()}, not tagged: {valid.total() - valid['tagged']}; {valid.total() / seconds:.1f} per second")
        print("  seconds, median, 95 %, longest:", *(f"{np.quantile(load.times, q):.2f}" for q in (.5, .95, 1)))
        print("  memory in MB:", *memory, "and when all were gone", megabytes(process))
        print("  files left:", left(folder))
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=60)
        errors = [line for line in errors.splitlines() if line.startswith("deep_fashion: ") or "Error" in line]
        print(f"  after SIGTERM: status {process.returncode}, files left {left(folder)}, errors {errors[:5]}", flush=True)


def batching(run):
    "How many times faster photos are answered at once than one after the other."
    from deep_fashion.app.api import serve_api
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    server, n = serve_api(run, port), 200
    with httpx.Client(base_url=server.url, timeout=60) as client:
        ask_serve(client, [("a.jpg", SAME)])
        started = time.time()
        for i in range(n): ask_serve(client, [("a.jpg", OTHERS[i % len(OTHERS)])])
        alone = time.time() - started
    def user(k):
        with httpx.Client(base_url=server.url, timeout=60) as client:
            for i in range(k, n, 16): ask_serve(client, [("a.jpg", OTHERS[i % len(OTHERS)])])
    users, started = [threading.Thread(target=user, args=(k,)) for k in range(16)], time.time()
    for one in users: one.start()
    for one in users: one.join()
    together = time.time() - started
    server.close()
    print(f"{n} photos: one after the other {alone:.1f} s, from 16 clients {together:.1f} s, ratio {alone / together:.1f}", flush=True)


if __name__ == "__main__":
    run, users, seconds, *_ = [*sys.argv[1:], *(None, 50, 120)[len(sys.argv) - 1:]]
    run, users, seconds = str(Path(run).resolve()), int(users), int(seconds)
    batching(run)
    measure("serve", ask_serve, run, users, seconds)
    measure("app", ask_app, run, users, seconds)
