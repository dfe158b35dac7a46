"""How much sooner a second run is done: `python benchmarks/quick.py [--csv_path CSV --img_dir DIR]`.

Trains linear probes in processes and with a cache folder of their own: the first computes the features of all photos, the others
change a setting and find them known. Prints the ratio of the first run to each; writes `quick.json` to `--out`. Without a table,
sample photos are drawn."""
import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from time import perf_counter

SECOND = {
    "without titles": ["--no-titles"],
    "another penalty": ["--penalty", "0.03"],
    "four folds": ["--folds", "4"],
    "another seed": ["--random_seed", "1"],
}


def seconds_of(folder, name, words):
    "How long a run takes, start-up and report included."
    command = [sys.executable, "-c", "import sys; from deep_fashion.cli import main; sys.exit(main())", "train"]
    environment = {**os.environ, "XDG_CACHE_HOME": str(folder / "cache")}
    started = perf_counter()
    done = subprocess.run(
        [*command, "--run_name", name.replace(" ", "-"), "--runs_dir", folder / "runs", *words],
        capture_output=True, text=True, env=environment,
    )
    if done.returncode: sys.exit(done.stderr[-2000:])
    return perf_counter() - started


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--csv_path")
    parser.add_argument("--img_dir")
    parser.add_argument("--out", type=Path, default=Path())
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if not args.csv_path:
            from deep_fashion.data.samples import make_samples

            samples = make_samples(folder / "samples", n=300)
            args.csv_path, args.img_dir = samples / "attributes.csv", samples / "images"
        photos = ["--csv_path", args.csv_path, "--img_dir", args.img_dir, "--arch", "tf_efficientnet_lite0"]
        first = seconds_of(folder, "first", photos)
        rows = [{"what": what, "seconds": seconds_of(folder, what, photos + words)} for what, words in SECOND.items()]
    print(f"| second run | seconds | first run ({first:.0f} s) to this |\n|---|---|---|")
    for row in rows: print(f"| {row['what']} | {row['seconds']:.1f} | {first / row['seconds']:.1f} |")
    (args.out / "quick.json").write_text(json.dumps({"first": first, "second": rows, "load": os.getloadavg()}, indent=1) + "\n")


if __name__ == "__main__": main()
