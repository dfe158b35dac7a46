"""Photos per second of one and of two processes with one thread each, and the scores of both over several seeds.

Run it on an idle machine: python benchmarks/distributed.py [--photos 200] [--seeds 3]"""
import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pandas as pd

from deep_fashion.data.samples import make_samples

ROOT = Path(__file__).resolve().parent.parent
PROBE = ["--arch", "tf_efficientnet_lite0", "--size", "128", "--crops", "whole", "-bs", "16"]
EPOCHS = ["--no-pretrained", "--size", "64", "-bs", "16", "-lr", "0.003", "-ep", "3"]
SPEED = """
import sys, time
from deep_fashion.settings import Settings
from deep_fashion.experiment import training
from deep_fashion.train import linear_probe, schedule
from deep_fashion.cli import main

def timed(module, name):
    inner = getattr(module, name)
    def call(*args, **kwargs):
        started = time.perf_counter()
        found = inner(*args, **kwargs)
        print('SECONDS', time.perf_counter() - started, flush=True)
        return found
    return call

from deep_fashion.experiment import recipes
for name in ('extract_features', 'fit_phases'): setattr(recipes, name, timed(recipes, name))
sys.exit(main())
"""


def train(folder, name, processes, options, seed):
    "Seconds of extracting features, or of training, and the mean scores of a run."
    cache = tempfile.mkdtemp(dir=folder)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "XDG_CACHE_HOME": cache, "PYTHONPATH": str(ROOT)}
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)] if processes > 1 else []
    given = ["--csv_path", folder / "photos/attributes.csv", "--img_dir", folder / "photos/images", "--runs_dir", folder / "runs"]
    words = ["train", "--run_name", name, *given, "--no-report", "-nw", "0", "--random_seed", str(seed), *options]
    command = [sys.executable, *launcher, folder / "timed.py", *words]
    done = subprocess.run([*map(str, command)], env=environment, capture_output=True, text=True)
    if done.returncode: sys.exit(done.stderr)
    seconds = next(float(line.split()[1]) for line in done.stdout.splitlines() if line.startswith("SECONDS"))
    return seconds, json.loads((folder / "runs" / name / "metrics.json").read_text())["mean"]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--photos", type=int, default=200)
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder, rows = Path(name), []
        (folder / "timed.py").write_text(SPEED)
        make_samples(folder / "photos", n=args.photos)
        for recipe, options, passes in (("linear probe", PROBE, 1), ("epochs", EPOCHS, 3)):
            for seed in range(1, args.seeds + 1):
                for processes in (1, 2):
                    seconds, scores = train(folder, f"{recipe}-{seed}-{processes}".replace(" ", "-"), processes, options, seed)
                    facts = dict(photos_per_second=passes * args.photos / seconds, load=os.getloadavg()[0])
                    rows.append(dict(recipe=recipe, seed=seed, processes=processes, accuracy=scores["accuracy"],
                                     macro_f1=scores["macro_f1"], **facts))
                    print(rows[-1], flush=True)
        found = pd.DataFrame(rows).groupby(["recipe", "processes"])
        table = found[["accuracy", "macro_f1", "photos_per_second"]].agg(["mean", "std"]).round(3)
        print(table.to_string())
        speed = found.photos_per_second.mean().unstack()
        print("photos per second, two processes to one:", (speed[2] / speed[1]).round(2).to_dict())


if __name__ == "__main__": main()
