"Features of a frozen body are kept for later runs, and never change a result."
import json
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from deep_fashion.data import file_cache
from deep_fashion.data.file_cache import FileCache
from deep_fashion.model.body import trained_body
from deep_fashion.train import linear_probe


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    "Weights of a small network, so that a linear probe is fitted."
    torch.manual_seed(0)
    return saved_body(tmp_path_factory.mktemp("weights") / "body.pth")


def saved_body(path):
    torch.save({f"body.{name}": tensor for name, tensor in trained_body("resnet18", False).state_dict().items()}, path)
    return path


@pytest.fixture
def probe(command, samples, weights, tmp_path, monkeypatch):
    "Fit a linear probe with a cache folder of the test's own; gives what was computed, and the files of the run."
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    images = shutil.copytree(samples.images, tmp_path / "images")
    original, computed = linear_probe.inference_features, []
    def counting(model, photos):
        computed.append(len(photos))
        return original(model, photos)
    monkeypatch.setattr(linear_probe, "inference_features", counting)
    def run(name, *words, weights=weights):
        computed.clear()
        options = ("--arch", "resnet18", "--weights", weights, "--crops", "whole", "--size", "48", "--folds", "2", "--no-report")
        result = command("train", "--run_name", name, "--csv_path", samples.csv, "--img_dir", images, *options, *words)
        assert result.status == 0, result.err
        folder = tmp_path / "runs" / name
        return SimpleNamespace(computed=sum(computed), files=[(folder / o).read_bytes() for o in ("metrics.json", "predictions.csv")])

    run.images, run.store = images, tmp_path / "cache" / "deep_fashion" / "features"
    return run


def test_known_features_change_nothing(probe):
    first = probe("first")
    again, without = probe("again"), probe("without", "--no-photo_cache")
    assert first.computed > 50 and again.computed == 0 and without.computed == first.computed
    assert first.files == again.files == without.files


def test_plain_and_no_photo_cache_store_nothing(probe):
    probe("without", "--no-photo_cache")
    probe("plain", "--plain")
    assert not probe.store.exists()


def test_other_settings_use_the_same_features(probe):
    first = probe("first")
    assert probe("penalty", "--penalty", "0.03").computed == 0
    assert probe("seed", "--random_seed", "1", "--no-titles").computed == 0
    assert probe("attribute", "--attributes", "neck").computed == 0
    assert probe("size", "--size", "64").computed == first.computed
    assert probe("crops", "--crops", "garment", "--size", "64").computed == first.computed


def test_a_changed_photo_and_damaged_files_are_computed_again(probe):
    first = probe("first")
    photo = probe.images / "shirt-00002-1.jpg"
    with Image.open(photo) as opened: content = opened.convert("RGB").rotate(180)
    times = photo.stat()
    content.save(photo)
    os.utime(photo, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert probe("changed").computed == 1
    stored = sorted(probe.store.iterdir())
    stored[0].write_bytes(stored[0].read_bytes()[:-1])
    stored[1].write_bytes(b"\1" + stored[1].read_bytes()[1:])
    shutil.copy(stored[3], stored[2])
    # One of them may be that of the photo before it was changed.
    assert probe("damaged").computed in (2, 3)
    assert probe("mended").computed == 0 and first.computed > 3


def test_other_weights_are_another_body(probe, tmp_path):
    first = probe("first")
    torch.manual_seed(1)
    assert probe("other", weights=saved_body(tmp_path / "other.pth")).computed == first.computed


def test_a_folder_that_cannot_be_written_does_no_harm(probe, monkeypatch):
    first = probe("first")
    def refuse(*_): raise OSError(28, "No space left on device")
    shutil.rmtree(probe.store)
    monkeypatch.setattr(file_cache.Path, "replace", refuse)
    cache = FileCache(probe.store)
    cache.store("key", np.zeros(3, np.float32))
    assert cache.load("key", 12) is None and list(probe.store.iterdir()) == []
    monkeypatch.setattr(file_cache.Path, "replace", os.replace)
    shutil.rmtree(probe.store)
    probe.store.write_text("a file where the folder should be")
    assert probe("blocked").files == first.files


def test_the_folder_is_bounded(tmp_path):
    cache = FileCache(tmp_path / "cache", max_bytes=10 * 44)
    for start in range(0, 30, 5):
        keys = cache.make_room_for([f"key{i}" for i in range(start, start + 5)], 40)
        for key in keys: cache.store(key, np.zeros(10, np.float32))
        assert sum(o.stat().st_size for o in cache.folder.iterdir()) <= 10 * 44
    assert sum(key is None for key in cache.make_room_for([f"new{i}" for i in range(14)], 40)) == 4


def test_several_writers_leave_complete_files(tmp_path):
    def write(seed):
        program = f"""
import numpy as np
from deep_fashion.data.file_cache import FileCache
cache = FileCache({str(tmp_path / "cache")!r}, max_bytes=200 * 404)
for i in range(200):
    key = f"key{{i % 50}}"
    cache.make_room_for([key], 400)
    cache.store(key, np.full(100, i % 50, np.float32))
    found = cache.load(key, 400)
    assert found is None or (found.view(np.float32) == i % 50).all()
"""
        return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)

    with ThreadPoolExecutor() as pool: done = list(pool.map(write, range(2)))
    assert [o.returncode for o in done] == [0, 0], done[0].stderr + done[1].stderr
    cache = FileCache(tmp_path / "cache")
    assert sorted(o.name for o in cache.folder.iterdir()) == sorted(f"key{i}" for i in range(50))
    assert all((cache.load(f"key{i}", 400).view(np.float32) == i).all() for i in range(50))


def test_penalty_is_for_the_linear_probe(probe, refused, samples, tmp_path):
    probe("penalty", "--penalty", "0.5")
    heads = json.loads((tmp_path / "runs" / "penalty" / "metrics.json").read_text())["heads"]
    assert {head["penalty"] for head in heads} == {0.5}
    photos = ("--csv_path", samples.csv, "--img_dir", samples.images)
    refused("train", "--run_name", "a", *photos, "--penalty", "1", "--epochs", "2", says=["penalty 1", "linear probe"])
    refused("train", "--run_name", "a", *photos, "--penalty", "0", says=["penalty 0", "between 0 and"])


def test_what_was_read_keeps_no_file_open(tmp_path):
    resource = pytest.importorskip("resource")
    cache, content = FileCache(tmp_path), np.arange(4, dtype=np.float32)
    keys = [f"{i:032x}" for i in range(500)]
    for key in keys: cache.store(key, content)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(400, hard), hard))
    try: found = [cache.load(key, content.nbytes) for key in keys]
    finally: resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert all((o.view(np.float32) == content).all() for o in found)
