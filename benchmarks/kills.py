"""Whether `tag` survives being killed: `python benchmarks/kills.py --photos 20000 --kills 50`.

Links to a few small photos from a folder of `--photos` files, some of them damaged, and tags them with an untrained tagger: once as a
whole, then killing the process (SIGKILL) at random moments and giving the same command again, until it was killed `--kills` times.
Compares all files with those of the first run, byte by byte, and prints a table."""
import argparse
import hashlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from growth import originals_in

PROGRAM = "import sys; from deep_fashion.cli import main; sys.exit(main())"
DAMAGED = 50 # one of so many photos


def catalogue_in(folder, n, originals):
    "A folder of `n` links to small photos, some of them to a damaged one."
    (folder / "photos").mkdir()
    (folder / "damaged.jpg").write_bytes(originals[0][1].read_bytes()[:500])
    for i in range(n):
        path = folder / "damaged.jpg" if i % DAMAGED == 7 else originals[i % len(originals)][1]
        os.link(path, folder / "photos" / f"shirt-{i // 2:06d}-{i % 2 + 1}.jpg")
    return folder / "photos"


def tagger_in(folder):
    "An untrained tagger for small photos, which is sure of nothing."
    from deep_fashion.data.block import attribute_dls
    from deep_fashion.data.split import split_table
    from deep_fashion.data.table import read_table
    from deep_fashion.train.learner import attribute_learner

    table = split_table(read_table(folder / "samples" / "attributes.csv", folder / "samples" / "images"))
    learn = attribute_learner(attribute_dls(table, size=32, num_workers=0, cache=False), "resnet18", pretrained=False)
    sure = np.linspace(0, 1, 400)
    learn.confidences = {a: (sure, np.random.default_rng(0).random(400) < sure) for a in learn.vocab.attributes}
    learn.export((folder / "learn.pkl").absolute())
    return folder / "learn.pkl"


def started(folder, model, out):
    words = ["tag", "--model", model, "--img_dir", folder / "photos", "--out_csv", out, "--min_precision", "0.7", "-nw", "0",
             "--group_pattern", r"shirt-(\d+)"]
    return subprocess.Popen([sys.executable, "-c", PROGRAM, *map(str, words)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def contents(out):
    "Hashes of all files that a command left beside `out`, by the end of their name."
    return {
        path.name.removeprefix(out.stem): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(out.parent.iterdir())
    }


def whole(folder, model):
    "Files and seconds of a run that is left alone."
    (folder / "whole").mkdir()
    start = time.perf_counter()
    status = started(folder, model, folder / "whole" / "tags.csv").wait()
    assert status == 1, status
    return contents(folder / "whole" / "tags.csv"), time.perf_counter() - start


def killed(folder, model, kills, seconds, seed=0):
    "The files of every finished run, and the seconds after which its processes were killed."
    moments, results, left = random.Random(seed), [], kills
    while left > 0:
        out, lives = folder / f"killed-{len(results)}" / "tags.csv", []
        out.parent.mkdir()
        while True:
            process, life = started(folder, model, out), moments.uniform(0.05, 1) * min(seconds, 12)
            try: process.communicate(timeout=life if left > 0 else None)
            except subprocess.TimeoutExpired:
                process.kill()
                process.communicate()
                lives.append(life)
                left -= 1
                # One that was killed between the last step and its end has nothing left to continue.
                if not out.exists() or out.with_name(f"{out.name}.partial").exists(): continue
            break
        results.append((contents(out), process.returncode, lives))
    return results


def as_table(expected, seconds, results):
    lines = ["| run | kills | seconds until killed | exit status | files | as without kills |", "|---|---|---|---|---|---|"]
    lines.append(f"| left alone | 0 | {seconds:.0f} in all | 1 | {len(expected)} | |")
    for i, (found, status, lives) in enumerate(results, 1):
        span = f"{min(lives):.1f} to {max(lives):.1f}" if lives else ""
        lines.append(f"| {i} | {len(lives)} | {span} | {status} | {len(found)} | {'yes' if found == expected else 'NO'} |")
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--photos", type=int, default=20_000, help="number of photos (default: %(default)s)")
    parser.add_argument("--kills", type=int, default=50, help="how often the process is killed (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the random moments (default: %(default)s)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as d:
        folder = Path(d)
        catalogue_in(folder, args.photos, originals_in(folder))
        model = tagger_in(folder)
        expected, seconds = whole(folder, model)
        results = killed(folder, model, args.kills, seconds, args.seed)
    print(as_table(expected, seconds, results))
    return 0 if all(found == expected and status in (1, -signal.SIGKILL) for found, status, _ in results) else 1


if __name__ == "__main__": sys.exit(main())
