"""How time and memory grow with the table: `python benchmarks/growth.py`.

Draws a few small photos and links to them from tables of 1, 10 and 100 times `--rows` rows. Reads each table, trains for an epoch
and tags, each in its own process. Prints a table and writes `growth.json` to `--out`."""
import argparse
import json
import os
import sys
import tempfile
from pathlib import Path

import pandas as pd
from PIL import Image
from speed import measured

TIMES = (1, 10, 100)


def repeated(folder, n, originals):
    "A table of `n` photos, each a link to one of `originals`."
    images = folder / f"images_{n}"
    images.mkdir()
    rows = []
    for i in range(n):
        row, path = originals[i % len(originals)]
        name = f"shirt-{i // 2:06d}-{i % 2 + 1}.jpg"
        os.link(path, images / name)
        rows.append({**row, "filename": name})
    pd.DataFrame(rows).to_csv(folder / f"{n}.csv", index=False)
    return folder / f"{n}.csv", images


def originals_in(folder):
    "Small sample photos with their labels."
    from deep_fashion.data.samples import make_samples

    make_samples(folder / "samples", n=50)
    rows, originals = pd.read_csv(folder / "samples" / "attributes.csv", dtype=str), []
    (folder / "small").mkdir()
    for row in rows.to_dict("records"):
        path = folder / "small" / row["filename"]
        Image.open(folder / "samples" / "images" / row["filename"]).resize((48, 64)).save(path)
        originals.append((row, path))
    return originals


def tagger_in(folder, csv_path, images):
    "An untrained tagger for small photos."
    from deep_fashion.data.block import attribute_dls
    from deep_fashion.train.learner import attribute_learner
    from deep_fashion.data.split import split_table
    from deep_fashion.data.table import read_table

    attribute_learner(
        attribute_dls(split_table(read_table(csv_path, images)), size=32, num_workers=0, cache=False), "resnet18", pretrained=False
    ).export((folder / "learn.pkl").absolute())
    return folder / "learn.pkl"


def as_table(results):
    lines = ["| rows | what | seconds | seconds per 1,000 rows | MiB |", "|---|---|---|---|---|"]
    return "\n".join(
        lines
        + [
            f"| {r['rows']:,} | {r['part']} | {r['seconds']:.1f} | {1000 * r['seconds'] / r['rows']:.2f} | {r['mebibytes']:.0f} |"
            for r in results
        ]
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1000, help="number of rows of the smallest table (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    args = parser.parse_args()
    results, model = [], None
    with tempfile.TemporaryDirectory() as d:
        folder = Path(d)
        originals = originals_in(folder)
        for times in TIMES:
            n = args.rows * times
            csv_path, images = repeated(folder, n, originals)
            model = model or tagger_in(folder, csv_path, images)
            for part in ("read", "train", "tag"):
                found = measured(
                    "ours.py",
                    "grow",
                    "--part",
                    part,
                    "--csv_path",
                    csv_path,
                    "--img_dir",
                    images,
                    "--model",
                    model,
                    "--cache",
                    folder / "cache",
                )
                results.append({"rows": n, "part": part, **found})
                print(results[-1], file=sys.stderr)
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "growth.json").write_text(json.dumps(results, indent=1) + "\n")
    print(as_table(results))


if __name__ == "__main__": main()
