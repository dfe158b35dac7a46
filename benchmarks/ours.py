"""One measurement of deep_fashion, in a process of its own, as one line of JSON.

As in the baseline, start-up and the first batch are left out of photos per second."""
import argparse
import json
import os
import resource
import sys
import tempfile
import time
from pathlib import Path

import pandas as pd


def table_of(args):
    from dataclasses import replace

    from deep_fashion.data.split import split_table
    from deep_fashion.data.table import read_table

    table = split_table(read_table(args.csv_path, args.img_dir))
    # The baseline trains on all photos; one batch is validated.
    rows = table.rows.head(args.limit or len(table.rows))
    return replace(table, rows=rows.assign(is_valid=[i < 24 for i in range(len(rows))]))


def learner_of(args, **options):
    from deep_fashion.data.block import attribute_dls
    from deep_fashion.train.learner import attribute_learner

    dls = attribute_dls(table_of(args), cache=args.cache)
    return attribute_learner(dls, "resnet18", pretrained=False, **options)


def train(args):
    "An epoch of all layers from the files, and one from the cache; what several epochs cost on average lies between."
    from fastai.callback.core import Callback

    class Clock(Callback):
        order = 1
        def before_train(self): self.start = None

        def after_batch(self):
            if not self.training: return
            if self.start is None: self.start, self.photos = time.perf_counter(), 0
            else: self.photos += len(self.yb[0])

        def after_train(self): rates.append(self.photos / (time.perf_counter() - self.start))

    rates = []
    learn = learner_of(args, cbs=Clock())
    with learn.no_bar(), learn.no_logging(): learn.fit(args.epochs, 1e-3)
    return {"photos_per_second": rates[-1], "first_epoch": rates[0]}


def frozen(args):
    "Twenty epochs of heads on a frozen body, looking included."
    learn = learner_of(args)
    learn.freeze()
    start = time.perf_counter()
    with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(args.epochs, 1e-3)
    return {"photos_per_second": args.epochs * len(learn.dls.train_ds) / (time.perf_counter() - start)}


def export(args):
    "A resnet18 to tag with, and its conversions."
    from deep_fashion.predict.openvino import PRECISIONS, convert_tagger

    learner_of(args).export(args.model / "pytorch.pkl")
    for precision in PRECISIONS: convert_tagger(args.model / "pytorch.pkl", args.img_dir, args.model / f"{precision}.pkl", precision)
    return {}


def tag(args):
    "From files to a CSV: the time for all photos less the time for the first few."
    from deep_fashion.predict.photo_list import photo_names
    from deep_fashion.predict.tags import tag

    names = photo_names(args.img_dir)[: args.limit]
    while len(names) < 1000: names += names
    seconds = {}
    with tempfile.TemporaryDirectory() as d:
        for n in (160, len(names)):
            pd.DataFrame({"filename": names[:n]}).to_csv(Path(d) / "list.csv", index=False)
            start = time.perf_counter()
            tag(model=args.model, img_dir=args.img_dir, out_csv=Path(d) / f"{n}.csv", csv_path=Path(d) / "list.csv")
            seconds[n] = time.perf_counter() - start
    return {"photos_per_second": (len(names) - 160) / (seconds[len(names)] - seconds[160])}


def grow(args):
    "Seconds and memory to read a table, train an epoch of small photos, or tag."
    start = time.perf_counter()
    if args.part == "read":
        from deep_fashion.data.table import read_table

        start = time.perf_counter()
        read_table(args.csv_path, args.img_dir)
    elif args.part == "train":
        from deep_fashion.data.block import attribute_dls
        from deep_fashion.train.learner import attribute_learner

        learn = attribute_learner(attribute_dls(table_of(args), size=32, cache=args.cache), "resnet18", pretrained=False)
        start = time.perf_counter()
        with learn.no_bar(), learn.no_logging(): learn.fit(1, 1e-3)
    else:
        from deep_fashion.predict.tags import tag

        start = time.perf_counter()
        with tempfile.TemporaryDirectory() as d:
            tag(model=args.model, img_dir=args.img_dir, out_csv=Path(d) / "tags.csv", csv_path=args.csv_path)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    return {"seconds": time.perf_counter() - start, "mebibytes": peak[0] / 1024, "mebibytes_of_largest_worker": peak[1] / 1024}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["train", "frozen", "export", "tag", "grow"])
    parser.add_argument("--part", choices=["read", "train", "tag"])
    parser.add_argument("--csv_path")
    parser.add_argument("--img_dir")
    parser.add_argument("--model", type=Path)
    parser.add_argument("--cache")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--limit", type=int)
    args = parser.parse_args()
    # Only the figure goes to standard output.
    figures, sys.stdout = sys.stdout, open(os.devnull, "w")
    result = globals()[args.what](args)
    print(json.dumps(result), file=figures)


if __name__ == "__main__": main()
