"""What speed costs in results: `python benchmarks/agreement.py --csv_path CSV --img_dir DIR`.

Two comparisons on one's own table, each over several seeds. The common recipe of a frozen body and twenty epochs of heads,
with features computed once against features computed in every epoch. And a tagger converted for OpenVINO against the same
tagger in 32 bits, on validation photos. Writes `agreement.json` to `--out`."""
import argparse
import json
import tempfile
from pathlib import Path

import numpy as np
import torch
from fastai.torch_core import set_seed

from deep_fashion.catch_all import mask_catch_all, settle_catch_all
from deep_fashion.convert import PRECISIONS, convert_tagger
from deep_fashion.core import write_json
from deep_fashion.data import attribute_dls
from deep_fashion.learner import attribute_learner
from deep_fashion.metrics import score_table
from deep_fashion.model import default_arch
from deep_fashion.split import products_of, split_table
from deep_fashion.table import read_table
from deep_fashion.tagger import load_tagger, predict_files


def trained(table, arch, seed, variants, epochs):
    "Heads of a frozen body, by fastai's own epochs, and the macro-F1 of the last one."
    set_seed(seed, reproducible=True)
    learn = attribute_learner(attribute_dls(split_table(table, seed=seed)), arch, feature_variants=variants)
    with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(epochs, 3e-3)
    return learn, learn.recorder.values[-1][learn.recorder.metric_names.index("macro_f1") - 1]


def predicted(path, rows, img_dir):
    "Class indices in 32 bits, or in those of a converted body."
    learn = load_tagger(path)
    probabilities = [found for _, found, _ in predict_files(learn, [img_dir / name for name in rows.filename], bfloat16=False)]
    return learn.loss_func.decodes(torch.cat(probabilities)), learn.vocab


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--csv_path", required=True)
    parser.add_argument("--img_dir", required=True, type=Path)
    parser.add_argument("--seeds", type=int, default=3, help="how many (default: %(default)s)")
    parser.add_argument("--epochs", type=int, default=20, help="of the heads (default: %(default)s)")
    parser.add_argument("--variants", type=int, nargs="+", default=[4], help="augmented variants whose features are kept (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    args = parser.parse_args()
    table = read_table(args.csv_path, args.img_dir)
    table = mask_catch_all(table, settle_catch_all(table, products_of(table.rows), "auto"))
    arch, results = default_arch(True), []
    for seed in range(args.seeds):
        row = {"seed": seed}
        for variants in (0, *args.variants):
            learn, row[f"macro_f1_{variants or 'every_epoch'}"] = trained(table, arch, seed, variants, args.epochs)
        with tempfile.TemporaryDirectory() as d:
            d, rows = Path(d), learn.dls.valid.items
            learn.export((d / "float32.pkl").absolute())
            expected, vocab = predicted(d / "float32.pkl", rows, args.img_dir)
            targets = vocab.encode_rows(rows)
            row["macro_f1_float32"] = score_table(expected, targets, vocab).loc["mean", "macro_f1"]
            for precision in PRECISIONS:
                convert_tagger(d / "float32.pkl", args.img_dir, d / f"{precision}.pkl", precision)
                found, _ = predicted(d / f"{precision}.pkl", rows, args.img_dir)
                row[f"same_labels_{precision}"] = float((found == expected).float().mean())
                row[f"macro_f1_{precision}"] = score_table(found, targets, vocab).loc["mean", "macro_f1"]
        results.append(row)
        print(json.dumps(row), flush=True)
    for name in results[0]:
        if name == "seed": continue
        values = [row[name] for row in results]
        print(f"{name}: {np.mean(values):.4f} ({min(values):.4f} to {max(values):.4f})")
    args.out.mkdir(parents=True, exist_ok=True)
    write_json(args.out / "agreement.json", {"arch": arch, "epochs": args.epochs, "rows": results})


if __name__ == "__main__": main()
