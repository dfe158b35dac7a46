"tag survives: whatever stops it, the same command ends in the same files."
import os
import subprocess
import sys
from pathlib import Path

import pytest

from deep_fashion.predict.predictions import Predictions

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def photos(samples, tmp_path_factory):
    "A folder of photos, one of them damaged, that a test may change."
    folder = tmp_path_factory.mktemp("photos")
    for path in sorted(samples.images.iterdir())[:40]: os.link(path, folder / path.name)
    (folder / "damaged.jpg").write_bytes((folder / os.listdir(folder)[0]).read_bytes()[:400])
    return folder


@pytest.fixture
def tag(command, trained, photos, tmp_path):
    "Tag in batches of four, into a folder of the test's own; gives the result."
    def run(*options, out="tags.csv"):
        return command("tag", "--model", trained, "--img_dir", photos, "--out_csv", tmp_path / out, "-bs", "4", "-nw", "0", *options)
    return run


def outputs(folder): return {path.name: path.read_bytes() for path in folder.iterdir()}


def stopping(monkeypatch, after, error=KeyboardInterrupt):
    "Let the tagger raise an error after some batches; returns the names it has seen."
    predict, seen = Predictions._predict, []
    def stopped(self, names):
        for i, found in enumerate(predict(self, names)):
            if i == after: raise error
            seen.append(names[i * 4 : i * 4 + 4])
            yield found
    monkeypatch.setattr(Predictions, "_predict", stopped)
    return seen


OPTIONS = [(), ("--group_pattern", r"shirt-(\d+)"), ("--min_precision", "0.5")]


@pytest.mark.parametrize("options", OPTIONS, ids=["plain", "products", "review"])
def test_the_same_command_continues_to_the_same_files(tag, tmp_path, monkeypatch, options):
    assert tag(*options).status == 1
    expected = outputs(tmp_path)
    for path in tmp_path.iterdir(): path.unlink()
    for after in (3, 2):
        with monkeypatch.context() as patch:
            stopping(patch, after)
            stopped = tag(*options)
        assert stopped.status == 130 and "the same command continues" in stopped.lines[-1]
        assert os.listdir(tmp_path) == ["tags.csv.partial"]
    seen = stopping(monkeypatch, 99)
    continued = tag(*options)
    assert continued.status == 1 and any("20 photos were tagged before" in note for note in continued.notes)
    assert len(seen) == 6 and outputs(tmp_path) == expected


def test_another_command_is_refused(tag, refused, trained, photos, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        stopping(patch, 2)
        tag()
    words = ["tag", "--model", trained, "--out_csv", tmp_path / "tags.csv", "-nw", "0"]
    refused(*words, "--img_dir", photos, "-bs", "8", says=["tags.csv.partial", "with other batch_size", "remove the file"])
    (photos / "new.jpg").write_bytes((photos / "damaged.jpg").read_bytes())
    refused(*words, "--img_dir", photos, "-bs", "4", says=["with other photos"])
    (photos / "new.jpg").unlink()
    assert tag().status == 1


def test_photos_that_changed_are_tagged_again(tag, photos, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        stopping(patch, 4)
        tag()
    name = sorted(os.listdir(photos))[2]
    content = (photos / name).read_bytes()
    (photos / name).unlink()
    (photos / name).write_bytes(b"no photo")
    seen = stopping(monkeypatch, 99)
    assert tag().status == 1
    assert name in seen[0] and len(seen) == 8
    assert name in (tmp_path / "tags.errors.csv").read_text() and name not in (tmp_path / "tags.csv").read_text()
    (photos / name).write_bytes(content)


@pytest.mark.parametrize("at", [0.1, 0.5, 0.9])
def test_a_damaged_journal_gives_no_wrong_row(tag, tmp_path, monkeypatch, at):
    tag(out="expected.csv")
    expected = (tmp_path / "expected.csv").read_bytes()
    with monkeypatch.context() as patch:
        stopping(patch, 8)
        tag()
    journal = tmp_path / "tags.csv.partial"
    content = bytearray(journal.read_bytes())
    content[int(at * len(content))] ^= 1
    journal.write_bytes(content)
    assert tag().status == 1 and (tmp_path / "tags.csv").read_bytes() == expected


def test_what_is_no_journal_is_kept(refused, trained, photos, tmp_path):
    (tmp_path / "tags.csv.partial").write_text("mine")
    words = ["--img_dir", photos, "--out_csv", tmp_path / "tags.csv"]
    refused("tag", "--model", trained, *words, says=["tags.csv.partial", "damaged, or not"])
    assert outputs(tmp_path) == {"tags.csv.partial": b"mine"}


def test_a_full_disk_stops_and_the_same_command_continues(tag, tmp_path):
    resource = pytest.importorskip("resource")
    tag(out="expected.csv")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3000, before[1]))
    try: full = tag()
    finally: resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert full.status == 2 and "tags.csv.partial: File too large" in full.lines[-1]
    assert sorted(os.listdir(tmp_path)) == ["expected.csv", "expected.errors.csv", "tags.csv.partial"]
    assert any("were tagged before" in note for note in tag().notes)
    assert (tmp_path / "tags.csv").read_bytes() == (tmp_path / "expected.csv").read_bytes()


def test_a_kill_between_two_files_is_continued(tag, tmp_path, monkeypatch):
    tag(out="expected.csv")
    replace = os.replace
    def killed(source, target):
        if str(target).endswith("tags.csv"): raise KeyboardInterrupt
        replace(source, target)
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", killed)
        tag()
    assert {"tags.errors.csv", "tags.csv.partial"} <= set(os.listdir(tmp_path)) and not (tmp_path / "tags.csv").exists()
    assert tag().status == 1
    assert (tmp_path / "tags.csv").read_bytes() == (tmp_path / "expected.csv").read_bytes()
    assert not (tmp_path / "tags.csv.partial").exists()


def test_kills_at_random_moments():
    words = [sys.executable, "kills.py", "--photos", "200", "--kills", "3"]
    ended = subprocess.run(words, cwd=ROOT / "benchmarks", env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert ended.returncode == 0 and "NO" not in ended.stdout and "| yes |" in ended.stdout, ended.stdout + ended.stderr
