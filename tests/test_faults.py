"Faults of machines, files and people: one line, the right status, whole files, nothing lost."
import os
import shutil
import signal
import struct
import subprocess
import sys
import zlib

import pytest
import torch
from PIL import Image

import deep_fashion.experiment.analysis
from deep_fashion.core import InputError
from deep_fashion.data.photo import open_photo, photo_fault

PROGRAM = "import sys; from deep_fashion.cli import main; sys.exit(main())"


def png(width, height, colour=6):
    "A PNG of any size, without its pixels."
    def chunk(kind, content): return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
    header = struct.pack(">IIBBBBB", width, height, 8, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(99))) + chunk(b"IEND", b"")


def gif(width, height):
    frame = b"," + struct.pack("<HHHHB", 0, 0, width, height, 0) + b"\x02\x02\x44\x01\0;"
    return b"GIF89a" + struct.pack("<HHBBB", width, height, 0, 0, 0) + frame


def ico(content): return struct.pack("<HHHBBBBHHII", 0, 1, 1, 16, 16, 0, 0, 1, 32, len(content), 22) + content


def bmp(width, height):
    return b"BM" + struct.pack("<IIIIiiHHIIiiII", 99, 0, 54, 40, width, height, 1, 32, 0, 0, 0, 0, 0, 0) + bytes(99)


def psd(width, height): return b"8BPS" + struct.pack(">HxxxxxxHIIHH", 1, 3, height, width, 8, 3) + bytes(99)


BOMBS = {
    "large.png": (png(24_000, 24_000), "576 megapixels"), "thin.png": (png(1, 2_000_000_000, 0), "not that of a photo"),
    "wide.png": (png(170_000_000, 1, 2), "not that of a photo"), "large.gif": (gif(65_000, 65_000), "4225 megapixels"),
    "large.bmp": (bmp(30_000, 30_000), "900 megapixels"), "large.psd": (psd(29_000, 29_000), "841 megapixels"),
    "icon.ico": (ico(png(13_000, 13_000)), "an icon that contains 13000 x 13000"),
    "icon.icns": (b"icns" + struct.pack(">I4sI", 500, b"ic07", 492) + png(13_000, 13_000), "an icon that contains"),
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_refused_before_it_is_decoded(name, tmp_path, monkeypatch):
    "Whatever limit of Pillow a user has set."
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    content, reason = BOMBS[name]
    (tmp_path / name).write_bytes(content)
    assert reason in photo_fault(tmp_path / name)
    with pytest.raises(InputError, match=reason): open_photo(tmp_path / name)


def test_ghostscript_never_starts(tmp_path, monkeypatch):
    (tmp_path / "gs").write_text(f"#!/bin/sh\ntouch {tmp_path}/started\n")
    (tmp_path / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    script = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n"
    binary = b"\xc5\xd0\xd3\xc6" + struct.pack("<IIIIIIH", 30, len(script), 0, 0, 0, 0, 0xFFFF) + script
    for name in ("a.eps", "a.ps", "a.jpg", "a.png", "a.tif", "a"):
        for content in (script, binary, b"\n" + script, b"\x04" + script):
            (tmp_path / name).write_bytes(content)
            assert photo_fault(tmp_path / name)
    assert not (tmp_path / "started").exists()


WIDE = {
    "columns": "filename," + ",".join(f"c{i}" for i in range(100_000)) + "\na.jpg\n",
    "name": "filename," + "n" * 2_000_000 + "\na.jpg,1\n",
}


@pytest.mark.parametrize("kind", WIDE)
def test_absurd_headers_are_refused(refused, table, samples, trained, tmp_path, kind):
    words = ["--csv_path", table(WIDE[kind]), "--img_dir", samples.images]
    says = ["table.csv", "the header has"]
    refused("analyze", *words, "--out", "analysis", says=says)
    refused("train", *words, "--run_name", "a", says=says)
    refused("tag", *words, "--model", trained, "--out_csv", "tags.csv", says=says)
    refused("evaluate", *words, "--model", trained, says=says)
    assert not os.path.exists("analysis") and os.listdir("runs") == [] and not os.path.exists("tags.csv.partial")


def test_pipes_and_devices_are_refused(refused, samples, trained, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    photos = ["--img_dir", samples.images]
    for path, reason in ((tmp_path / "pipe", "pipe"), ("/dev/zero", "device"), (tmp_path, "directory")):
        refused("train", *photos, "--run_name", "a", "--csv_path", path, says=[str(path)])
        refused("train", *photos, "--run_name", "a", "--csv_path", samples.csv, "--names", path, says=[str(path), reason])
        refused("train", "--config", path, says=[str(path), reason])
        refused("analyze", *photos, "--csv_path", samples.csv, "--labels_map", path, says=[str(path), reason])
        refused("tag", *photos, "--csv_path", path, "--model", trained, "--out_csv", "tags.csv", says=[str(path), reason])
        refused("tag", "--model", path, *photos, "--out_csv", "tags.csv", says=[str(path)])


@pytest.fixture
def stopped_run(trained, tmp_path):
    "A run without its model, as if it had been stopped."
    shutil.copytree(trained, tmp_path / "runs" / "short")
    run = tmp_path / "runs" / "short"
    for name in ("learn.pkl", "report.html"): (run / name).unlink()
    config = (run / "config.json").read_text(encoding="utf-8")
    (run / "config.json").write_text(config.replace(str(trained.parent), str(tmp_path / "runs")), encoding="utf-8")
    return run


def resumed(run): return ["train", "--resume", "--run_name", run.name, "--runs_dir", run.parent]


def test_a_damaged_checkpoint_is_refused(refused, stopped_run):
    checkpoint = stopped_run / "checkpoint.pth"
    content = checkpoint.read_bytes()
    for damaged in (content[: len(content) // 2], content[:9_000_000] + bytes(50) + content[9_000_050:], b"", b"text"):
        checkpoint.write_bytes(damaged)
        refused(*resumed(stopped_run), says=["checkpoint.pth", "is damaged", "remove it"])
    torch.save(dict(origin="another"), checkpoint)
    refused(*resumed(stopped_run), says=["is the checkpoint of another run"])
    (stopped_run / "config.json").unlink()
    refused(*resumed(stopped_run), says=["has no config.json", "start it anew"])


def test_a_run_that_never_began_is_taken_over(refused, samples, tmp_path):
    words = ["train", "--run_name", "a", "--csv_path", samples.csv, "--img_dir", samples.images, "--attributes", "absent"]
    (tmp_path / "runs" / "a").mkdir(parents=True)
    for name in (".lock", "split.csv", ".config.unfinished-1.toml"): (tmp_path / "runs" / "a" / name).touch()
    refused(*words, says=["no column 'absent'"])
    (tmp_path / "runs" / "a" / "mine.txt").touch()
    refused(*words, says=["exists and is kept"])
    lock = str(tmp_path / "runs" / "b" / ".lock")
    program = f"import time; from deep_fashion.core import sole_user\nwith sole_user({lock!r}, ''): print(1, flush=True), time.sleep(60)"
    (tmp_path / "runs" / "b").mkdir()
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as other:
        other.stdout.readline()
        refused(*words[:2], "b", *words[3:], says=["another process is training this run"])
        other.kill()


def test_an_analysis_that_was_stopped_can_be_started_again(command, refused, samples, tmp_path, monkeypatch):
    words = ["analyze", "--csv_path", samples.csv, "--img_dir", samples.images]
    with monkeypatch.context() as patch:
        def stopped(*_): raise KeyboardInterrupt
        patch.setattr(deep_fashion.experiment.analysis, "audit_page", stopped)
        assert command(*words).status == 130 and not (tmp_path / "analysis").exists()
    (tmp_path / "analysis" / ".unfinished-1").mkdir(parents=True)
    (tmp_path / "analysis" / ".unfinished-1" / "audit.html").touch()
    assert command(*words).status == 0
    assert (tmp_path / "analysis" / "audit.html").stat().st_size and not list((tmp_path / "analysis").glob(".*"))
    refused(*words, says=["is kept"])


@pytest.mark.parametrize(("number", "seconds"), [(signal.SIGINT, 0.4), (signal.SIGTERM, 1.5), (signal.SIGHUP, 0.4)])
def test_requests_to_stop_are_one_line(samples, tmp_path, number, seconds):
    words = ["analyze", "--csv_path", samples.csv, "--img_dir", samples.images, "--out", tmp_path / "analysis"]
    process = subprocess.Popen([sys.executable, "-c", PROGRAM, *map(str, words)], stderr=subprocess.PIPE, text=True)
    try: process.wait(seconds)
    except subprocess.TimeoutExpired: process.send_signal(number)
    _, printed = process.communicate(timeout=60)
    assert process.returncode == 128 + number and "Traceback" not in printed
    assert printed.replace("\r", "\n").count("deep_fashion: stopped\n") == 1 and not (tmp_path / "analysis").exists()
