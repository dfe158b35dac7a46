"""How much memory `tag` takes for photos that are small as files and large as images: `python benchmarks/memory.py`.

Makes `--copies` of images of 49 to 576 megapixels in several formats, each a file of at most some megabytes, and tags a folder of small
photos, one of each kind, and one of all, each in a process of its own. Prints the peak of each beside that of the small photos. To compare
with another version of the library, put it first in PYTHONPATH."""
import argparse
import os
import struct
import subprocess
import sys
import tempfile
import time
import zlib
from pathlib import Path

from growth import originals_in
from kills import tagger_in
from PIL import Image

# Linux: what `resource` calls the peak includes that of the process which started this one.
PROGRAM = """
import re, sys
from deep_fashion.cli import main
status = main(sys.argv[1:])
print(status, int(re.search("VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1])//1024)"""


def write_png(path, width, height, colour, depth, bytes_per_pixel):
    "A black PNG."
    def chunk(kind, content): return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
    packing, at_once = zlib.compressobj(9), max(1, min(height, 2**20 // width))
    rows = bytes((1 + width * bytes_per_pixel) * at_once)
    pixels = b"".join(packing.compress(rows) for _ in range(-(-height // at_once))) + packing.flush()
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b""))


def write_images(folder):
    "Images of which each takes a gigabyte or more when it is decoded carelessly."
    folder.mkdir()
    write_png(folder / "16 bits 177.png", 13_300, 13_300, 0, 16, 2)
    write_png(folder / "transparent 177.png", 13_300, 13_300, 6, 8, 4)
    write_png(folder / "transparent 576.png", 24_000, 24_000, 6, 8, 4)
    write_png(folder / "thin 100.png", 1, 100 * 2**20, 0, 8, 1)
    large, smaller = Image.new("RGB", (16_000, 11_000), "red"), Image.new("RGB", (7500, 6500), "red")
    large.save(folder / "baseline 176.jpg", quality=5)
    large.save(folder / "progressive 176.jpg", quality=5, progressive=True)
    large.save(folder / "176.webp", quality=1, method=0)
    large.save(folder / "176.tif", compression="tiff_lzw")
    large.convert("P").save(folder / "176.gif")
    smaller.save(folder / "49.webp", quality=1, method=0)
    smaller.save(folder / "49.jp2", quality_mode="rates", quality_layers=[1000])


def peak(model, photos, out):
    "Exit status, mebibytes at the peak, and seconds of `tag`."
    words = ["tag", "--model", model, "--img_dir", photos, "--out_csv", out, "-nw", "0"]
    start = time.perf_counter()
    ended = subprocess.run([sys.executable, "-c", PROGRAM, *map(str, words)], capture_output=True, text=True)
    lines = ended.stdout.splitlines()
    status, mebibytes = lines[-1].split() if lines and len(lines[-1].split()) == 2 else (ended.returncode, "0")
    return int(status), int(mebibytes), time.perf_counter() - start


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--copies", type=int, default=4, help="of each image in the last folder (default: %(default)s)")
    args = parser.parse_args()
    Image.MAX_IMAGE_PIXELS = None
    with tempfile.TemporaryDirectory() as d:
        folder = Path(d)
        originals_in(folder)
        model = tagger_in(folder)
        write_images(folder / "large")
        (folder / "all").mkdir()
        groups = {"small photos": folder / "small"}
        for path in sorted((folder / "large").iterdir()):
            groups[path.name] = folder / f"only {path.name}"
            groups[path.name].mkdir()
            os.link(path, groups[path.name] / path.name)
            for i in range(args.copies): os.link(path, folder / "all" / f"{i} {path.name}")
        groups[f"all, {args.copies} of each"] = folder / "all"
        print("| photos | MB of files | exit status | MiB at the peak | beside small photos | seconds |\n|---|---|---|---|---|---|")
        base = None
        for i, (name, photos) in enumerate(groups.items()):
            size = sum(path.stat().st_size for path in photos.iterdir()) / 1e6
            status, mebibytes, seconds = peak(model, photos, folder / f"{i}.csv")
            base = base or mebibytes
            print(f"| {name} | {size:.1f} | {status} | {mebibytes:,} | {mebibytes / base:.1f} x | {seconds:.0f} |", flush=True)


if __name__ == "__main__": main()
