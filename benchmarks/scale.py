"""How time and memory of every step before and after the features grow with the table: `python benchmarks/scale.py`.

Draws a few small photos and links to them from tables of up to a million rows. Each step runs in a process of its own, which reports its
seconds, those of them in which a core was busy, and its peak of memory. Facts about photos, predictions and features are drawn at
random, since to compute them takes a fixed time per photo. Prints a table of the busy seconds, which other programs change less, with
the exponent of their growth from the last size but one to the last: 1 is linear."""
import argparse
import json
import math
import os
import pickle
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd

STEPS = ("read", "parquet", "table", "products", "folds", "catch_all", "near_hashes", "duplicates", "label_audit", "fit")
LABELS = {"neck": 7, "sleeve_length": 4, "pattern": 30}
N_FEATURES = 64


def make_table(folder, n):
    "A table of `n` photos of a third as many products, with titles, gaps and many labels, each photo a link to one of fifty."
    from growth import originals_in
    originals = folder / "small"
    if not originals.exists(): originals_in(folder)
    files, images, random = sorted(originals.iterdir()), folder / f"images_{n}", np.random.default_rng(0)
    images.mkdir()
    names = [f"mens-{random.integers(2**16):x}-shirt-{i // 3:07d}-{i % 3 + 1}.jpg" for i in range(n)]
    for i, name in enumerate(names): os.link(files[i % len(files)], images / name)
    columns = {a: np.array([f"{a} {i}" for i in range(k)] + [""], object)[random.integers(0, k + 1, n)] for a, k in LABELS.items()}
    words = np.array("polo round v-neck henley striped checked solid floral long short".split(), object)[random.integers(0, 10, (n, 4))]
    rows = pd.DataFrame({"filename": names, "title": [" ".join(o) + f" {i // 3}" for i, o in enumerate(words)], **columns})
    rows.to_csv(folder / f"{n}.csv", index=False)
    rows.to_parquet(folder / f"{n}.parquet", index=False)


def drawn_facts(n):
    "As `photo_facts` returns them: hashes and thumbnails of which every twentieth is nearly that of another photo."
    random = np.random.default_rng(0)
    hashes, thumbnails = random.integers(0, 2**64, n, np.uint64), random.random((n, 768), np.float32) * 255
    copies = np.arange(20, n, 20)
    hashes[copies], thumbnails[copies] = hashes[copies - 1] ^ np.uint64(3), thumbnails[copies - 1] + 1
    return pd.DataFrame({"hash": list(hashes[:, None].view(np.uint8)), "thumbnail": list(thumbnails.reshape(-1, 16, 16, 3))})


def drawn_predictions(rows):
    "As `predictions_table` returns them, right in nine of ten cases."
    random, columns = np.random.default_rng(0), {"filename": rows.filename}
    for a in LABELS:
        classes = sorted(rows[a].dropna().unique())
        index = rows[a].map({label: i for i, label in enumerate(classes)}).fillna(0).to_numpy(int)
        p = random.random((len(rows), len(classes))) / len(classes)
        p[np.arange(len(rows)), np.where(random.random(len(rows)) < .9, index, random.integers(0, len(classes), len(rows)))] += 1
        p /= p.sum(1, keepdims=True)
        predicted = np.array(classes, object)[p.argmax(1)]
        columns |= {a: rows[a], f"{a}_predicted": predicted, f"{a}_confidence": p.max(1)}
        columns |= {f"{a}={label}": p[:, i] for i, label in enumerate(classes)}
    return pd.DataFrame(columns)


def drawn_features(rows):
    "Features in a file, which contain something about the labels."
    from deep_fashion.train.large_features import feature_file
    random, file = np.random.default_rng(0), feature_file(len(rows), N_FEATURES)
    codes = [pd.factorize(rows[a])[0] for a in LABELS]
    direction = [random.normal(size=(k + 1, N_FEATURES)) for k in LABELS.values()]
    for start in range(0, len(rows), 10_000):
        part = slice(start, start + 10_000)
        found = random.normal(size=(len(codes[0][part]), N_FEATURES))
        for code, of_label in zip(codes, direction): found += of_label[code[part]] / 2
        file[part] = found
    return file


def prepared(step, folder, n):
    "What a step needs, made before its time is taken; the function of the step."
    from deep_fashion.data import products, training_set
    from deep_fashion.data.csv_file import CsvFile
    from deep_fashion.data.parquet_file import ParquetFile
    from deep_fashion.data.table import read_table
    if step == "read": return lambda: CsvFile(folder / f"{n}.csv").read()
    if step == "parquet": return lambda: ParquetFile(folder / f"{n}.parquet").read()
    if step == "table": return lambda: read_table(folder / f"{n}.csv", folder / f"images_{n}")
    if step == "near_hashes":
        from deep_fashion.data.hash_pairs import near_hashes
        hashes = np.unique(np.random.default_rng(0).integers(0, 2**64, n, np.uint64))
        return lambda: sum(len(first) for first, _ in near_hashes(hashes))
    if step == "duplicates":
        from deep_fashion.data.near_duplicates import duplicate_groups
        facts = drawn_facts(n)
        return lambda: duplicate_groups(facts)
    table = pickle.loads((folder / f"{n}.table").read_bytes())
    if step == "products": return lambda: products.find_products(table)
    of_row = table.rows.filename.str.extract(r"-(\d+)-\d\.jpg")[0]
    if step == "folds": return lambda: training_set.assign_folds(of_row, 5)
    if step == "catch_all":
        from deep_fashion.data.catch_all import find_catch_all
        return lambda: find_catch_all(table, of_row, "title")
    if step == "label_audit":
        from deep_fashion.evaluate.label_audit import label_errors
        predictions = drawn_predictions(table.rows)
        return lambda: label_errors(predictions, list(LABELS))
    return prepared_fit(table)


def prepared_fit(table):
    "One head on features in a file, fitted once: all photos, no cross-validation."
    from deep_fashion.train.large_features import FeatureRows
    from deep_fashion.train.linear_head import FeatureSpace, fit_head
    features, labels = FeatureRows(drawn_features(table.rows)), pd.factorize(table.rows.sleeve_length, sort=True)[0]
    return lambda: fit_head(FeatureSpace(features)(features), labels, LABELS["sleeve_length"], .03)


def run_step(step, folder, n):
    "Run a step in this process; print its seconds and its peak of memory in MiB as JSON."
    function = prepared(step, folder, n)
    # The peak so far is that of the preparation.
    with open("/proc/self/clear_refs", "w") as f: f.write("5")
    start, busy = time.perf_counter(), time.process_time()
    result = function()
    seconds, busy = time.perf_counter() - start, time.process_time() - busy
    peak = int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]) // 1024
    if step == "table": (folder / f"{n}.table").write_bytes(pickle.dumps(result))
    print(json.dumps({"seconds": round(seconds, 2), "busy": round(busy, 2), "mebibytes": peak}))


def in_process(step, folder, n):
    command = [sys.executable, "-W", "ignore", __file__, "--step", step, "--folder", folder, "--sizes", str(n)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    if done.returncode: return {"seconds": math.nan, "busy": math.nan, "mebibytes": 0, "error": done.stderr.strip().splitlines()[-1]}
    return json.loads(done.stdout.splitlines()[-1])


def as_table(results, sizes):
    lines = ["| step | " + " | ".join(f"{n:,} rows" for n in sizes) + " | growth |", "|---" * (len(sizes) + 2) + "|"]
    for step in dict.fromkeys(r["step"] for r in results):
        of_step = {r["rows"]: r for r in results if r["step"] == step}
        cells = [f"{of_step[n]['busy']:.1f} s, {of_step[n]['mebibytes']:,} MiB" if n in of_step else "" for n in sizes]
        last = [n for n in sizes if n in of_step][-2:]
        few, many = (max(of_step[n]["busy"], 0.01) for n in (last[0], last[-1]))
        growth = f"{math.log(many / few, last[1] / last[0]):.1f}" if len(last) == 2 else ""
        lines.append(f"| {step} | {' | '.join(cells)} | {growth} |")
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", default="1000,10000,100000,1000000", help="rows of the tables (default: %(default)s)")
    parser.add_argument("--steps", default=",".join(STEPS), help="steps to measure (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--folder", type=Path, help="keep the tables here for the next time (default: a temporary folder)")
    parser.add_argument("--step", help=argparse.SUPPRESS)
    args = parser.parse_args()
    sizes, results = [int(n) for n in args.sizes.split(",")], []
    if args.step: return run_step(args.step, args.folder, sizes[0])
    with tempfile.TemporaryDirectory() as d:
        folder = args.folder or Path(d)
        folder.mkdir(exist_ok=True)
        for n in sizes:
            if not (folder / f"{n}.parquet").exists(): make_table(folder, n)
            for step in args.steps.split(","):
                # Of more photos no duplicates are sought, see `MAX_PHOTOS_COMPARED`.
                if step == "duplicates" and n > 200_000: continue
                results.append({"step": step, "rows": n, **in_process(step, folder, n)})
                print(results[-1], file=sys.stderr)
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "scale.json").write_text(json.dumps(results, indent=1) + "\n")
    print(as_table(results, sizes))


if __name__ == "__main__": main()
