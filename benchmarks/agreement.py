"""What the feature cache costs in accuracy: `python benchmarks/agreement.py --csv_path CSV --img_dir DIR`.

Heads are trained for twenty epochs on a frozen body, once with features computed in every epoch and once with cached features
of a few augmented variants per photo, with several seeds, and scored on held-out products. Writes `agreement.json` to `--out`.
(`deep_fashion convert` reports how many labels stay the same after a conversion for OpenVINO.)"""
import argparse
import json
import time
from pathlib import Path

import numpy as np
from fastai.torch_core import set_seed

from deep_fashion.data.catch_all import mask_catch_all, resolve_catch_all
from deep_fashion.core import write_json
from deep_fashion.data.block import attribute_dls
from deep_fashion.train.learner import attribute_learner
from deep_fashion.model.body import default_arch
from deep_fashion.model.precision import Speed
from deep_fashion.data.split import products_of, split_table
from deep_fashion.data.table import read_table


def trained(table, arch, seed, variants, epochs):
    "Macro-F1 after the last epoch, and the time of all epochs in seconds."
    set_seed(seed, reproducible=True)
    learn = attribute_learner(attribute_dls(split_table(table, seed=seed)), arch, speed=Speed(feature_variants=variants))
    start = time.perf_counter()
    with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(epochs, 3e-3)
    return learn.recorder.values[-1][learn.recorder.metric_names.index("macro_f1") - 1], time.perf_counter() - start


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--csv_path", required=True)
    parser.add_argument("--img_dir", required=True, type=Path)
    parser.add_argument("--seeds", type=int, default=3, help="number of random seeds (default: %(default)s)")
    parser.add_argument("--epochs", type=int, default=20, help="epochs of training the heads (default: %(default)s)")
    parser.add_argument(
        "--variants", type=int, nargs="+", default=[4], help="augmented variants per photo in the feature cache (default: %(default)s)"
    )
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    args = parser.parse_args()
    table = read_table(args.csv_path, args.img_dir)
    table = mask_catch_all(table, resolve_catch_all(table, products_of(table.rows), "auto"))
    arch, rows = default_arch(True), []
    for seed in range(args.seeds):
        row = {"seed": seed}
        for variants in (0, *args.variants):
            name = f"{variants}_variants" if variants else "every_epoch"
            row[f"macro_f1_{name}"], row[f"seconds_{name}"] = trained(table, arch, seed, variants, args.epochs)
        rows.append(row)
        print(json.dumps(row), flush=True)
    for name in rows[0]:
        if name == "seed": continue
        values = [row[name] for row in rows]
        print(f"{name}: {np.mean(values):.4f} ({min(values):.4f} to {max(values):.4f})")
    args.out.mkdir(parents=True, exist_ok=True)
    write_json(args.out / "agreement.json", {"arch": arch, "epochs": args.epochs, "rows": rows})


if __name__ == "__main__": main()
