"Tagging on a Ray cluster: the same rows as on one machine, from disks, buckets and web servers, whatever ends on the way."
import http.server
import json
import logging
import os
import re
import shlex
import shutil
import signal
import threading
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest

from deep_fashion.commands import TagSettings
from deep_fashion.predict.output_parts import OutputParts, list_name, tags_name, tries_name, write_part
from deep_fashion.predict.part_tagger import PartTagger, TaggingJob, packed_model
from deep_fashion.predict.ray_tags import tag_with_ray
from deep_fashion.predict.storage import Storage

for name in ("ray", "pyarrow", "s3fs"): pytest.importorskip(name, reason="the extra ray is not installed")


@pytest.fixture(scope="module")
def model(trained, samples, tmp_path_factory):
    "The short run as a graph, which loads without PyTorch."
    pytest.importorskip("onnxscript", reason="the extra export is not installed")
    from deep_fashion.predict.export import export_tagger
    folder = tmp_path_factory.mktemp("exported") / "model"
    export_tagger(model=trained, img_dir=samples.images, out=folder, photos=5)
    return folder


@pytest.fixture(scope="module")
def bucket():
    "A server with the interface of S3 on this machine, and its file system."
    server = pytest.importorskip("moto.server").ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    given = dict(AWS_ENDPOINT_URL=f"http://{host}:{port}", AWS_ACCESS_KEY_ID="a", AWS_SECRET_ACCESS_KEY="b", AWS_DEFAULT_REGION="us-east-1")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in given.items(): patch.setenv(name, value)
        import s3fs
        files = s3fs.S3FileSystem(use_listings_cache=False, skip_instance_cache=True)
        files.mkdir("shop")
        yield files
    server.stop()


@pytest.fixture(scope="module")
def cluster(bucket):
    "A cluster of two cores, for all tests of this file."
    import ray
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    handler = signal.getsignal(signal.SIGTERM)
    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level=logging.CRITICAL, object_store_memory=2**28)
    yield ray
    ray.shutdown()
    signal.signal(signal.SIGTERM, handler)


@pytest.fixture
def web(samples):
    "A web server with the sample photos, which fails at first, and knows no photo called absent."
    asked = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def log_message(self, *_): pass
        def do_GET(self):
            name = self.path.rpartition("/")[2]
            status = 404 if name == "absent.jpg" else 503 if asked.count(name) < 1 and name == "flaky.jpg" else 200
            asked.append(name)
            photo = samples.images / ("shirt-00001-1.jpg" if name == "flaky.jpg" else name)
            content = photo.read_bytes() if status == 200 else b""
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield SimpleNamespace(url=f"http://127.0.0.1:{server.server_port}/new", asked=asked)
    server.shutdown()


def joined(folder):
    "The parts of CSV files as one text."
    texts = [path.read_text(encoding="utf-8").partition("\n") for path in sorted((folder / "tags").iterdir())]
    return texts[0][0] + "\n" + "".join(rows for _, _, rows in texts)


def test_no_cluster_is_one_line(refused, model, samples, monkeypatch):
    import ray
    assert not ray.is_initialized() # so this test comes before those that share a cluster
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    words = ["tag", "--model", model, "--img_dir", samples.images, "--engine", "ray", "--out_dir", "out"]
    refused(*words, says=["127.0.0.1:1 cannot be used"])
    with pytest.raises(ValueError, match="engine 'local'"): tag_with_ray(model=model, img_dir=samples.images, out_csv="a.csv")


def test_the_same_files_as_on_one_machine(cluster, command, model, samples):
    words = ["tag", "--model", model, "--img_dir", samples.images, "--names", samples.names, "--min_precision", "0.6"]
    assert command(*words, "--out_csv", "local.csv").status == 1
    result = command(*words, "--engine", "ray", "--out_dir", "out", "--parts", "csv", "--part_rows", "16")
    assert result.status == 1 and result.lines == [] and "60 photos tagged: out/tags" in result.out
    out = Path("out")
    assert joined(out) == Path("local.csv").read_text(encoding="utf-8")
    assert (out / "errors.csv").read_text(encoding="utf-8") == Path("local.errors.csv").read_text(encoding="utf-8")
    assert (out / "review.csv").read_text(encoding="utf-8") == Path("local.review.csv").read_text(encoding="utf-8")
    assert sorted(o.name for o in out.iterdir()) == ["errors.csv", "manifest.json", "review.csv", "tags"]
    manifest = json.loads((out / "manifest.json").read_text())
    assert (manifest["state"], manifest["rows"], manifest["parts"]) == ("complete", 61, 4)
    again = command(*words, "--engine", "ray", "--out_dir", "out", "--parts", "csv", "--part_rows", "16")
    assert again.status == 1 and again.notes == ["out: is complete already; nothing is tagged again"] and again.out == result.out
    assert again.out.count("could not be read: out/errors.csv") == 1
    assert f"\nnext: deep_fashion review out/review.csv --img_dir {samples.images} --names {samples.names} --model {model}\n" in again.out
    # The photos that could not be read, by the command that is printed.
    shown = re.search("^next, to try again what could not be read: deep_fashion (.*)$", again.out, re.M).group(1)
    retried = command(*shlex.split(shown))
    assert retried.status == 1 and retried.out.startswith("0 photos tagged: out-again/tags"), retried.err
    # A Learner that is exported afterwards holds it.
    assert print.__module__ == "builtins"


def test_a_bucket_and_a_web_server(cluster, bucket, web, command, model, samples, monkeypatch):
    address = cluster.get_runtime_context().gcs_address
    monkeypatch.setenv("RAY_ADDRESS", address)
    files = sorted(o.name for o in samples.images.iterdir() if o.suffix == ".jpg")[:12]
    for name in files: bucket.pipe_file(f"shop/new/{name}", (samples.images / name).read_bytes())
    bucket.pipe_file("shop/new/empty.jpg", b"")
    urls = [f"{web.url}/{name}" for name in (files[1], "absent.jpg", "flaky.jpg")]
    rows = [*files, "never.jpg", "empty.jpg", *urls, "../x.jpg", "s3://nowhere/a.jpg"]
    bucket.pipe_file("shop/list.csv", ("photo;price\n" + "".join(f"{name};1\n" for name in rows)).encode())
    result = command("tag", "--model", model, "--img_dir", "s3://shop/new", "--csv_path", "s3://shop/list.csv", "--engine", "ray",
                     "--out_dir", "s3://shop/out", "--part_rows", "9")
    assert result.status == 1 and not result.err.count("Traceback")
    assert result.notes[0] == f"tagging on a Ray cluster of 1 machine at {address}"
    assert "--csv_path s3://shop/out/errors.csv --out_dir s3://shop/out-again" in result.out
    assert any("s3://shop/list.csv: the file names are taken from the column 'photo'" in note for note in result.notes)
    assert [name for name in bucket.find("shop/out") if "/tags/" not in name] == ["shop/out/errors.csv", "shop/out/manifest.json"]
    tags = pd.concat([pd.read_parquet(bucket.open(name)) for name in sorted(bucket.find("shop/out/tags"))])
    errors = pd.read_csv(bucket.open("shop/out/errors.csv")).set_index("filename").reason
    broken = [name for name in files if name in errors.index]
    assert tags.filename.tolist() == [name for name in [*files, urls[0], urls[2]] if name not in broken]
    assert errors[urls[1]] == "no such file (status 404)" and errors["never.jpg"] == "no such file"
    assert errors["s3://nowhere/a.jpg"] == "no such bucket" and "leads out" in errors["../x.jpg"] and "is empty" in errors["empty.jpg"]
    assert web.asked.count("flaky.jpg") == 2 and len(errors) == 5 + len(broken)
    command("tag", "--model", model, "--img_dir", samples.images, "--out_csv", "local.csv")
    local = pd.read_csv("local.csv", dtype={a: str for a in tags.columns[1:4]}).set_index("filename")
    good = tags[~tags.filename.str.contains("http")].set_index("filename")
    pd.testing.assert_frame_equal(good, local.loc[good.index], check_dtype=False)


def end_worker(stop):
    "Kill the first process that tags, once it does."
    import psutil
    while not stop.is_set():
        for process in psutil.process_iter(["cmdline"]):
            if "MapWorker(MapBatches(PartWorker)).submit" in " ".join(process.info["cmdline"] or []):
                process.kill()
                return stop.set()
        stop.wait(.01)


def test_a_killed_process_loses_and_doubles_nothing(cluster, command, model, samples, tmp_path):
    names = sorted(o.name for o in samples.images.iterdir() if o.suffix == ".jpg")
    table = tmp_path / "list.parquet"
    pd.DataFrame(dict(image=names * 3)).to_parquet(table)
    stop = threading.Event()
    killer = threading.Thread(target=end_worker, args=(stop,), daemon=True)
    killer.start()
    words = ["tag", "--model", model, "--img_dir", samples.images, "--csv_path", table, "--part_rows", "10"]
    result = command(*words, "--engine", "ray", "--out_dir", "out")
    was_killed = stop.is_set()
    stop.set()
    assert was_killed and result.status in (0, 1), result.err
    tags = pd.read_parquet("out/tags")
    errors = pd.read_csv("out/errors.csv").filename.tolist() if Path("out/errors.csv").exists() else []
    assert tags.filename.tolist() == [name for name in names * 3 if name not in errors]


def job_in(folder, model, **given):
    settings = TagSettings(model=model, engine="ray", out_dir=folder, img_dir=folder, **given)
    owner = json.loads((folder / "manifest.json").read_text())["owner"]
    return TaggingJob(str(folder), packed_model(model), None, settings, [0.] * 3, "this command", owner)


@pytest.fixture
def planned(samples, tmp_path):
    "A folder with one part of three photos that nobody has begun."
    names = sorted(o.name for o in samples.images.iterdir())[-3:]
    class Photos(list):
        columns = []
        def find(self, name): return name, str(samples.images / name), None
    output = OutputParts(tmp_path / "out", {}, 10)
    output.plan(Photos([pd.DataFrame(dict(filename=names))]))
    return output, names


def test_a_photo_that_ends_processes_is_left_out(planned, model):
    output, names = planned
    tries = dict(command="this command", begun=4, loads=0, at=1, deaths={"1": 1})
    output.storage.write(tries_name(0), json.dumps(tries).encode())
    found = PartTagger(job_in(output.storage.place, model))(0)
    assert found["photos"] == 2 and found["errors"] == [[names[1], "the process that opened it ended, 2 times; it may take more memory "
                                                                   "than there is"]]
    assert pd.read_parquet(output.storage.place / tags_name(0, "parquet")).filename.tolist() == [names[0], names[2]]


def test_a_model_that_ends_processes_is_given_up(planned, model):
    output, _ = planned
    job = job_in(output.storage.place, model)
    class Ends(PartTagger):
        def _loaded(self): raise SystemExit
    for _ in range(4):
        with pytest.raises(SystemExit): Ends(job)(0)
    with pytest.raises(ValueError, match="enough memory for the model"): Ends(job)(0)


def test_a_stopped_command_is_continued_by_the_same_alone(cluster, command, refused, model, samples):
    words = ["tag", "--model", model, "--engine", "ray", "--out_dir", "out", "--part_rows", "30"]
    photos = ["--img_dir", samples.images]
    assert command(*words, *photos).status == 1
    # As a command leaves it that was stopped after the first part.
    whole = {path.name: path.read_bytes() for path in Path("out/tags").iterdir()}
    manifest = json.loads(Path("out/manifest.json").read_text())
    Path("out/manifest.json").write_text(json.dumps(manifest | dict(state="planned")))
    facts = dict(photos=30, errors=[], review=[], tagged=[30] * 3, known=0)
    write_part(Storage("out"), 0, ("parquet", whole["part-000000.parquet"]), facts, manifest["owner"])
    for part in (1, 2): Path("out", tags_name(part, "parquet")).unlink()
    refused(*words, *photos, "-bs", "7", says=["out", "with other batch_size", "to continue"])
    shutil.copytree(samples.images, "others")
    refused(*words, "--img_dir", "others", says=["out", "with other img_dir"])
    result = command(*words, *photos)
    assert result.notes == ["continues out: 30 rows were tagged before"]
    assert {path.name: path.read_bytes() for path in Path("out/tags").iterdir()} == whole
    assert not Path("out", list_name(1)).exists()


def test_a_bucket_that_cannot_be_used_is_named_as_given(bucket, refused, model):
    words = ["tag", "--model", model, "--img_dir", "s3://shop/new", "--engine", "ray", "--out_dir", "s3://unknown/out"]
    bucket.pipe_file("shop/new/a.jpg", b"photo")
    refused(*words, says=["s3://unknown/out: cannot be written (no such bucket)"])


def test_what_an_engine_does_not_do_is_refused(refused, model, samples, tmp_path):
    words, ray = ["tag", "--model", model], ["--engine", "ray"]
    refused(*words, *ray, "--img_dir", samples.images, says=["out_dir is missing"])
    refused(*words, *ray, "--out_dir", "out", says=["img_dir is missing"])
    names = tmp_path / "list.parquet"
    pd.DataFrame(dict(image=["s3://shop/b.jpg", "a.jpg"])).to_parquet(names)
    refused(*words, *ray, "--csv_path", names, "--out_dir", "out",
            says=["img_dir is missing", "list.parquet has names without a folder or a URL, such as 'a.jpg'"])
    refused(*words, *ray, "--img_dir", samples.images, "--out_csv", "a.csv",
            says=["out_csv is for --engine local; with --engine ray, give out_dir"])
    grouped = ["--out_dir", "out", "--group_pattern", "(.*)-"]
    refused(*words, *ray, "--img_dir", samples.images, *grouped, says=["group_pattern", "--engine local"])
    refused(*words, *ray, "--img_dir", samples.images, "--out_dir", "https://shop.example/out", says=["web server cannot be written to"])
    refused(*words, *ray, "--img_dir", "https://shop.example", "--out_dir", "out", says=["give a table"])
    refused(*words, "--img_dir", "s3://shop/new", "--out_csv", "a.csv", says=["s3://shop/new", "photos at URLs take --engine ray"])
    refused(*words, "--csv_path", names, "--out_csv", "a.csv", says=["img_dir is missing", "photos at URLs take --engine ray"])
    refused(*words, "--img_dir", samples.images, "--out_dir", "out", says=["out_dir takes --engine ray"])
    refused(*words, *ray, "--csv_path", tmp_path, "--img_dir", samples.images, "--out_dir", "out",
            says=["is a directory; csv_path takes one table"])
    refused("review", names, "--img_dir", "s3://shop/new", says=["s3://shop/new: photos have to be in a folder on this machine"])
    refused(*words, "--img_dir", samples.images, says=["out_csv is missing"])
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/a.txt").touch()
    refused(*words, *ray, "--img_dir", samples.images, "--out_dir", "mine", says=["mine", "is kept"])
    assert not Path("out").exists()
