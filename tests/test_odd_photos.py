"Photos and folders as people have them: broken metadata, wrong names, links, and files that are no photos."
import io
import os
import socket
import struct
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from deep_fashion.core import InputError
from deep_fashion.data.folder import list_photos
from deep_fashion.data.photo import open_photo, photo_fault

ORIENTATION = 0x0112
SHORT_6 = struct.pack("<HH", 6, 0)


def encoded(image, format="JPEG", **options):
    image.save(file := io.BytesIO(), format, **options)
    return file.getvalue()


def with_tags(*tags):
    "A lying JPEG, its EXIF made of (tag, type, count, four bytes)."
    entries = b"".join(struct.pack("<HHI4s", *tag) for tag in sorted(tags))
    block = b"Exif\0\0II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4)
    return encoded(Image.new("RGB", (40, 20), "navy"), exif=block)


UPRIGHT = {
    "sound": [(ORIENTATION, 3, 1, SHORT_6)],
    "make is a number": [(ORIENTATION, 3, 1, SHORT_6), (0x010F, 3, 1, SHORT_6)],
    "date is a number": [(ORIENTATION, 3, 1, SHORT_6), (0x0132, 4, 1, b"abcd")],
    "resolution is a text": [(ORIENTATION, 3, 1, SHORT_6), (0x011A, 2, 4, b"72\0\0")],
    "GPS leads nowhere": [(ORIENTATION, 3, 1, SHORT_6), (0x8825, 4, 1, b"\0\0\0\x80")],
    "several values": [(ORIENTATION, 3, 2, struct.pack("<HH", 6, 6))],
    "a long number": [(ORIENTATION, 4, 1, struct.pack("<I", 6))],
    "a byte": [(ORIENTATION, 1, 1, b"\6\0\0\0")],
    "a text": [(ORIENTATION, 2, 2, b"6\0\0\0")],
}
AS_STORED = {
    "no such orientation": [(ORIENTATION, 3, 1, struct.pack("<HH", 99, 0))],
    "no such type": [(ORIENTATION, 99, 1, SHORT_6)],
    "a word": [(ORIENTATION, 2, 3, b"up\0\0")],
    "values elsewhere": [(ORIENTATION, 3, 2**31, b"\xff\xff\xff\x7f")],
}


@pytest.mark.parametrize("name", UPRIGHT)
def test_upright_where_the_orientation_is_readable(name): assert open_photo(with_tags(*UPRIGHT[name])).size == (20, 40)


@pytest.mark.parametrize("name", AS_STORED)
def test_other_orientations_change_nothing(name): assert open_photo(with_tags(*AS_STORED[name])).size == (40, 20)


def test_a_photo_is_turned_once():
    once = open_photo(with_tags(*UPRIGHT["sound"]))
    assert open_photo(once).size == once.size == (20, 40)


@pytest.fixture
def odd(tmp_path):
    "A folder of files to be opened; their names begin with `good` if that should work."
    photo = Image.effect_noise((40, 30), 90).convert("RGB")
    jpeg, png = encoded(photo), encoded(photo, "PNG")
    files = {
        "good.jpg": jpeg, "good.png": png, "good png.jpg": png, "good without extension": jpeg,
        "good.mpo": encoded(photo, "MPO", save_all=True, append_images=[photo]), "good.tga": encoded(photo, "TGA"),
        "good.ico": encoded(photo, "ICO"), "good.jp2": encoded(photo, "JPEG2000"), "good.ppm": encoded(photo, "PPM"),
        "good 16 bits.png": encoded(Image.fromarray(np.arange(1200, dtype=np.uint16).reshape(30, 40)), "PNG"),
        "empty.jpg": b"", "one byte.jpg": b"\xff", "text.jpg": b"no picture", "header.png": png[:8], "half.jpg": jpeg[: len(jpeg) // 2],
        "half.png": png[: len(png) // 2], "page.jpg": b"<!DOCTYPE html><title>404</title>", "archive.jpg": b"PK\3\4" + bytes(90),
        "script.jpg": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n",
        "heic.jpg": b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(90), "video.jpg": b"\0\0\0\x18ftypisom\0\0\0\0isommp42" + bytes(90),
        "huge.png": encoded(Image.new("1", (20_000, 9_000)), "PNG"),
    }
    for name, tags in (UPRIGHT | AS_STORED).items(): files[f"good {name}.jpg"] = with_tags(*tags)
    for name, content in files.items(): (tmp_path / name).write_bytes(content)
    (tmp_path / "folder.jpg").mkdir()
    (tmp_path / "nowhere.jpg").symlink_to("absent")
    (tmp_path / "self.jpg").symlink_to("self.jpg")
    (tmp_path / "good link.jpg").symlink_to("good.jpg")
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "device.jpg").symlink_to("/dev/zero")
    return tmp_path


def test_check_and_opening_agree(odd, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 89_000_000)
    faults = {path.name: photo_fault(path) for path in odd.iterdir()}
    for name, fault in faults.items():
        if fault is None: assert open_photo(odd / name).mode == "RGB", name
        else:
            with pytest.raises(InputError) as raised: open_photo(odd / name)
            assert fault in str(raised.value) and "\n" not in str(raised.value), name
    assert {name for name, fault in faults.items() if fault is None} == {name for name in faults if name.startswith("good")}
    for name, part in {"script": "PostScript", "page": "web page", "archive": "ZIP", "heic": "HEIC", "video": "video", "pipe": "regular",
                       "device": "regular file", "folder": "folder", "nowhere": "no such file", "empty": "empty"}.items():
        assert part in faults[f"{name}.jpg"], faults[f"{name}.jpg"]


def test_a_socket_is_not_opened(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("a.jpg")
        assert "regular file" in photo_fault("a.jpg")


def test_no_program_is_started_for_postscript(odd, monkeypatch):
    started = []
    monkeypatch.setattr(subprocess, "check_call", started.append)
    monkeypatch.setattr(subprocess, "Popen", started.append)
    assert photo_fault(odd / "script.jpg") and started == []


def test_heic_without_its_extra_is_named(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(90))
    program = "import sys; sys.modules['pillow_heif'] = None; from deep_fashion.data.photo import photo_fault; print(photo_fault('a.jpg'))"
    printed = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert "HEIC" in printed and "deep_fashion[heic]" in printed


def test_heic_is_opened_upright(tmp_path):
    heif = pytest.importorskip("pillow_heif")
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    heif.from_pillow(Image.new("RGB", (64, 32), "red")).save(tmp_path / "a.heic", exif=exif.tobytes())
    assert photo_fault(tmp_path / "a.heic") is None
    assert open_photo(tmp_path / "a.heic").size == (32, 64)


@pytest.mark.parametrize("mode", ["I;16", "I", "F", "RGBA", "LA"])
def test_memory_stays_near_the_image(mode):
    "A conversion in one piece would take several times the memory of the image and of the result, four bytes per pixel each."
    pixels = 40_000_000
    program = f"""
import resource
from PIL import Image
from deep_fashion.data.photo import to_rgb
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss*1024
image = Image.new({mode!r}, (8000, {pixels}//8000))
before = peak()
to_rgb(image)
print((peak() - before)/{pixels})"""
    extra = float(subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout)
    assert extra < 7.5


@pytest.mark.parametrize("mode, dtype", [("I;16", np.uint16), ("F", np.float32), ("I", np.int32)])
def test_tiles_do_not_show(mode, dtype):
    values = np.random.default_rng(0).integers(0, 65536, (2100, 2100)).astype(dtype)
    expected = (values.astype(np.float32) / np.float32(257)).round()
    assert np.abs(np.asarray(open_photo(Image.fromarray(values)))[..., 0] - expected).max() <= 1


def test_every_photo_of_a_folder_is_tagged(command, trained, samples, tmp_path):
    photo = Image.open(samples.images / "shirt-00001-1.jpg").convert("RGB")
    (folder := tmp_path / "photos" / "tops").mkdir(parents=True)
    names = ["a.jpg", "b.JFIF", "c.jpg_large", "d", "e.PNG", "f.jp2", "g.tga", "h.webp"]
    for name, format in zip(names, ["JPEG", "JPEG", "JPEG", "JPEG", "PNG", "JPEG2000", "TGA", "WEBP"]): photo.save(folder / name, format)
    for name in ("._a.jpg", "Thumbs.db", ".DS_Store", "desktop.ini", "notes.txt", "damaged.jpg"): (folder / name).write_text("text")
    (folder / "again").symlink_to("..")
    os.mkfifo(folder / "pipe.jpg")
    (folder / os.fsdecode(b"bad\xff.jpg")).write_bytes((folder / "a.jpg").read_bytes())
    result = command("tag", "--model", trained / "learn.pkl", "--img_dir", tmp_path / "photos", "--out_csv", tmp_path / "tags.csv")
    assert result.status == 1
    assert pd.read_csv(tmp_path / "tags.csv").filename.tolist() == [f"tops/{name}" for name in names]
    errors = pd.read_csv(tmp_path / "tags.errors.csv").set_index("filename").reason
    assert set(errors.index) == {"tops/damaged.jpg", "tops/pipe.jpg", "tops/bad\\xff.jpg"}
    assert "1 file skipped, no photos: tops/notes.txt" in result.err


def test_the_table_of_types_of_the_machine_does_not_matter(samples, tmp_path):
    photo = Image.open(samples.images / "shirt-00001-1.jpg").convert("RGB")
    for name, format in {"a.jpg": "JPEG", "b.webp": "WEBP", "c.jfif": "JPEG"}.items(): photo.save(tmp_path / name, format)
    program = ("import mimetypes; mimetypes.knownfiles.clear(); mimetypes.init(); mimetypes.types_map.clear()\n"
               "from deep_fashion.data.folder import list_photos; print(list_photos('.').names)")
    printed = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert printed.strip() == "['a.jpg', 'b.webp', 'c.jfif']"


def test_a_folder_reached_by_several_links_is_listed_once(tmp_path):
    (tmp_path / "photos" / "z").mkdir(parents=True)
    (outside := tmp_path / "outside").mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "photos" / "z" / "a.jpg")
    Image.new("RGB", (4, 4)).save(outside / "b.jpg")
    for link, target in {"a": "z", "z/up": "..", "m": "../outside", "n": "../outside", "around": "../.."}.items():
        (tmp_path / "photos" / link).symlink_to(target)
    (outside / "back").symlink_to("../photos")
    assert list_photos(tmp_path / "photos").names == ["m/b.jpg", "z/a.jpg"]


def test_a_folder_that_cannot_be_read_is_reported(tmp_path, monkeypatch):
    for name in ("closed", "open"): (tmp_path / name).mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "open" / "a.jpg")
    scandir = os.scandir
    def refusing(path):
        if str(path).rstrip("/").endswith("closed"): raise PermissionError(13, "Permission denied", path)
        return scandir(path)
    monkeypatch.setattr(os, "scandir", refusing)
    assert list_photos(tmp_path) == (["open/a.jpg"], ["closed/"])
