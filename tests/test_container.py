"The container: what it installs is what serving an exported tagger needs, and the proxy in front has the bounds of the server."
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from deep_fashion.app.serving import BOUNDS

ROOT = Path(__file__).resolve().parents[1]
PASSWORD = "correct horse battery"
for library in ("fastapi", "httpx", "onnx", "onnxruntime"): pytest.importorskip(library, reason=f"{library} is not installed")

# Finds modules of the standard library, of the project and of the distributions in the arguments, as in the container; prints at the end
# which distributions were used.
ONLY = """
import atexit, re, sys
from importlib.metadata import distribution, packages_distributions, PackageNotFoundError
def plain(name): return re.sub("[-_.]+", "-", name).lower()
def installed(names, found):
    for name in names:
        if plain(name) in found: continue
        try: requires = distribution(name).requires or []
        except PackageNotFoundError: continue
        found.add(plain(name))
        installed([re.match("[A-Za-z0-9._-]+", o)[0] for o in requires if "extra ==" not in o], found)
    return found
n, names = int(sys.argv[1]), sys.argv[2:]
of_module, there = packages_distributions(), installed(names[:n], set())
class Refuse:
    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        # What belongs to no distribution is of the standard library, or of the project.
        if top in of_module and top != "deep_fashion" and not {plain(o) for o in of_module[top]} & there:
            raise ModuleNotFoundError(f"No module named {name!r}", name=top)
sys.meta_path.insert(0, Refuse())
def used():
    modules = {name.partition(".")[0] for name in sys.modules}
    print("used", *sorted({plain(o) for m in modules for o in of_module.get(m, [])}))
atexit.register(used)
from deep_fashion.cli import main
sys.exit(main(names[n:]))
"""


def text(name): return (ROOT / name).read_text(encoding="utf-8")


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def required():
    "What the container installs, by name."
    found = subprocess.run([sys.executable, ROOT / "container" / "requirements.py"], capture_output=True, text=True, check=True)
    return [re.match(r"[\w.-]+", line)[0] for line in found.stdout.splitlines()]


@pytest.fixture(scope="module")
def exported(samples, tmp_path_factory):
    "A tagger as it is mounted in the container. It is not trained."
    from deep_fashion.data.block import attribute_dls
    from deep_fashion.data.split import split_table
    from deep_fashion.data.table import read_table
    from deep_fashion.predict.export import export_tagger
    from deep_fashion.predict.saving import save_bundle
    from deep_fashion.train.learner import attribute_learner
    folder = tmp_path_factory.mktemp("container")
    dls = attribute_dls(split_table(read_table(samples.csv, samples.images)), size=64, num_workers=0, cache=False)
    save_bundle(attribute_learner(dls, "test_resnet", pretrained=False), folder / "bundle")
    export_tagger(model=folder / "bundle", img_dir=samples.images, out=folder / "model", photos=4)
    return folder / "model"


def test_the_container_serves_with_what_it_installs_and_needs_all_of_it(exported, samples, tmp_path):
    import httpx
    port, names = free_port(), required()
    words = [*names, "serve", "--model", exported, "--host", "0.0.0.0", "--port", port, "--names", samples.names]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "DEEP_FASHION_PASSWORD": PASSWORD}
    server = subprocess.Popen([sys.executable, "-c", ONLY, str(len(names)), *map(str, words)], cwd=tmp_path, env=environment,
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    healthy = [sys.executable, ROOT / "container" / "healthy.py", f"http://127.0.0.1:{port}"]
    try:
        while server.poll() is None and subprocess.run(healthy, env=environment, capture_output=True).returncode: time.sleep(.1)
        assert server.poll() is None, server.communicate()[1]
        photo = (samples.images / "shirt-00001-1.jpg").read_bytes()
        answer = httpx.post(f"http://127.0.0.1:{port}/tag", files={"files": ("a.jpg", photo)}, auth=("me", PASSWORD), timeout=60)
        [found] = answer.json()["photos"]
        assert set(found["attributes"]) == {"neck", "sleeve_length", "pattern"}
        names_of_necks = json.loads(samples.names.read_text())["neck"]
        assert [o["name"] for o in found["attributes"]["neck"]] == [names_of_necks[o["label"]] for o in found["attributes"]["neck"]]
        assert "POST /tag" in httpx.get(f"http://127.0.0.1:{port}", auth=("me", PASSWORD)).json()["endpoints"]
        other = {**environment, "DEEP_FASHION_PASSWORD": "another password"}
        assert subprocess.run(healthy, env=other, capture_output=True).returncode
    finally:
        server.send_signal(signal.SIGTERM)
        printed, errors = server.communicate(timeout=60)
    assert server.returncode == 0, errors
    used = set(re.search("^used (.*)", printed, re.M)[1].split())
    # These belong to other commands and are imported where they are used.
    assert {re.sub("[-_.]+", "-", name).lower() for name in names} - used <= {"tqdm", "tomli-w"}


def test_a_requirement_that_is_gone_is_noticed(tmp_path):
    (tmp_path / "container").mkdir()
    (tmp_path / "container" / "requirements.py").write_text(text("container/requirements.py"))
    (tmp_path / "settings.ini").write_text(re.sub(r"pandas\S+ ", "", text("settings.ini")))
    found = subprocess.run([sys.executable, tmp_path / "container" / "requirements.py"], capture_output=True, text=True)
    assert found.returncode and "settings.ini does not require pandas" in found.stderr


def test_the_proxy_has_the_bounds_of_the_server():
    proxy = text("container/nginx.conf")
    value = dict(re.findall(r"^\s+(\w+) (\w+);", proxy, re.M))
    assert value["client_max_body_size"] == f"{BOUNDS.body}m" and f"may have {BOUNDS.body} MB" in proxy
    for name in ("client_header_timeout", "client_body_timeout", "proxy_send_timeout"): assert value[name] == f"{BOUNDS.idle}s"
    # A worker closes an idle connection after `idle` seconds; the proxy has to be first.
    assert int(value["keepalive_timeout"].rstrip("s")) < BOUNDS.idle
    # The last of all photos that may wait is answered, at the four or so a second of one core.
    assert int(value["proxy_read_timeout"].rstrip("s")) >= BOUNDS.waiting / 4.2
    assert "proxy_set_header X-Forwarded-For $remote_addr;" in proxy and "$proxy_add_x_forwarded_for" not in proxy


def test_compose_fits_the_proxy_and_the_server():
    yaml = pytest.importorskip("yaml", reason="PyYAML is not installed")
    composed = yaml.safe_load(text("compose.yaml"))
    services, proxy = composed["services"], text("container/nginx.conf")
    workers = {name: service for name, service in services.items() if name != "proxy"}
    assert {f"{name}:8000" for name in workers} == set(re.findall(r"server (worker-\d:\d+) ", proxy)) and len(workers) == 2
    addresses = {f"{name}:{worker['networks']['inside']['ipv4_address']}" for name, worker in workers.items()}
    assert addresses == set(services["proxy"]["extra_hosts"]) and composed["networks"]["inside"]["internal"]
    assert services["proxy"]["ports"] == ["${PORT:-8000}:" + re.search(r"listen (\d+)", proxy)[1]]
    for service in services.values():
        assert service["read_only"] and service["cap_drop"] == ["ALL"] and service["security_opt"] == ["no-new-privileges:true"]
        assert service["mem_limit"] and service["cpus"] and "privileged" not in service
        assert int(service["stop_grace_period"].rstrip("s")) > BOUNDS.ending
    for worker in workers.values():
        assert worker["volumes"][0].endswith(":/model:ro") and "ports" not in worker
        assert int(worker["mem_limit"].rstrip("g")) * 1024 > BOUNDS.held
    # Uploads wait in memory, as many as a worker holds.
    assert "size=1g" in services["proxy"]["tmpfs"][0] and BOUNDS.held <= 1024


def test_the_image_does_not_run_as_root_and_has_all_that_it_copies():
    image = text("Dockerfile")
    assert re.search(r"^USER (?!0|root)\d+:\d+$", image, re.M) and re.search(r"^HEALTHCHECK .*healthy\.py", image, re.M)
    copied = {word.strip("./") for line in re.findall(r"^COPY (?!--from)(.*)", image, re.M) for word in line.split()[:-1]}
    kept = set(re.findall(r"^!(.*)", text(".dockerignore"), re.M))
    for name in copied: assert (ROOT / name).exists() and name.split("/")[0] in kept, name
    # No password is part of an image; one that others can reach does not start without.
    assert '"--host", "0.0.0.0"' in image and "DEEP_FASHION_PASSWORD=" not in image
