"""What choosing photos to label is worth: `python benchmarks/selection.py attributes.csv images --attribute neck`.

Takes the photos with an informative label of one attribute, sets a fifth of the products aside, and labels the others in rounds: by
chance, by coverage, by coverage and then uncertainty. After each round a linear probe is fitted and scored on the products set aside.
Repeated for `--seeds` draws of that fifth. Prints macro-F1 per number of labels, mean and standard deviation over the draws, the
difference from chance with its standard error over draws, and the number of classes that were found; writes it as JSON to `--out`."""
import argparse
import json
import warnings
from pathlib import Path

import numpy as np
import pandas as pd

from deep_fashion.data.training_set import assign_folds
from deep_fashion.data.vocab import mask_missing
from deep_fashion.experiment.bodies import photos_to_compare
from deep_fashion.experiment.plan import training_plan
from deep_fashion.experiment.recipes import Training, new_learner
from deep_fashion.data.training_set import read_training_set
from deep_fashion.metrics.bootstrap import macro_f1_from_confusion
from deep_fashion.settings import Settings
from deep_fashion.train.linear_head import FeatureSpace, fit_head
from deep_fashion.train.linear_probe import extract_features
from deep_fashion.train.selection import coverage_order, margin_doubt, principal_features, uncertainty_order

METHODS = {"chance": ("chance", "chance"), "coverage": ("coverage", "coverage"), "coverage, then uncertainty": ("coverage", "uncertainty"),
           "chance, then uncertainty": ("chance", "uncertainty")}


def labelled_photos(args):
    "Features, class indices and products of the photos with an informative label."
    settings = Settings(run_name="selection", csv_path=args.csv_path, img_dir=args.img_dir, arch=args.arch, titles=False,
                        attributes=[args.attribute])
    plan = training_plan(settings)
    data = photos_to_compare(read_training_set(settings, plan.folds))
    learn = new_learner(Training(None, settings, plan, data))
    targets = mask_missing(learn.vocab.encode_rows(data.rows), learn.vocab).numpy()[:, 0]
    known = targets >= 0
    return extract_features(learn, data.rows)[known], targets[known], data.products.to_numpy()[known]


def chosen_by(method, n, points, known, probabilities, rng):
    "Positions of `n` photos that are not in `known`."
    free = np.setdiff1d(np.arange(len(points)), known)
    if method == "coverage": return coverage_order(points, n, known)
    if method == "chance": return rng.permutation(free)[:n].tolist()
    doubt = margin_doubt([probabilities], np.ones((len(points), 1)))
    return uncertainty_order(points, n, doubt, free, int(rng.integers(2**31)))


def softmax(logits):
    odds = np.exp(logits - logits.max(1, keepdims=True))
    return odds / odds.sum(1, keepdims=True)


def macro_f1(predicted, targets, n):
    confusion = np.bincount(targets * n + predicted, minlength=n * n).reshape(n, n)
    return float(macro_f1_from_confusion(confusion))


def curve(methods, photos, is_test, rounds, seed):
    "Macro-F1 on the photos of `is_test`, and classes found, after each round."
    features, targets, _ = photos
    n_classes, rng, known, probabilities, found = targets.max() + 1, np.random.default_rng(seed), [], None, []
    space, points = FeatureSpace(features[~is_test]), principal_features(features[~is_test])
    coordinates, of_test, answers = space(features[~is_test]), space(features[is_test]), targets[~is_test]
    for n in rounds:
        method = methods[0] if not known else methods[1]
        known = known + chosen_by(method, n - len(known), points, known, probabilities, rng)
        head = fit_head(coordinates[known], answers[known], n_classes, 0.03)
        probabilities = softmax(head.logits(coordinates))
        score = macro_f1(head.logits(of_test).argmax(1), targets[is_test], n_classes)
        found.append((score, len(set(answers[known]))))
    return found


def measured(args):
    photos = labelled_photos(args)
    rounds = [n for n in args.rounds if n <= 0.75 * len(photos[1])]
    rows = []
    for seed in range(args.seeds):
        fold = assign_folds(pd.Series(photos[2]), 5, seed)
        for test in range(args.folds):
            for name, methods in METHODS.items():
                found = curve(methods, photos, fold == test, rounds, 100 * seed + test)
                rows += [dict(method=name, seed=seed, fold=test, labels=n, macro_f1=f1, classes=c) for n, (f1, c) in zip(rounds, found)]
    return pd.DataFrame(rows), len(photos[1])


def summary(rows):
    "Mean per method and number of labels; spread over seeds; difference from chance with its standard error over all draws."
    base = rows[rows.method == "chance"].set_index(["seed", "fold", "labels"]).macro_f1
    rows = rows.assign(gain=rows.macro_f1 - base.loc[pd.MultiIndex.from_frame(rows[["seed", "fold", "labels"]])].to_numpy())
    by = rows.groupby(["method", "labels"], sort=False)
    spread = rows.groupby(["method", "labels", "seed"], sort=False).macro_f1.mean().groupby(["method", "labels"], sort=False).std()
    return pd.DataFrame(dict(macro_f1=by.macro_f1.mean(), spread=spread, gain=by.gain.mean(), error=by.gain.sem(),
                             classes=by.classes.mean())).round(3).reset_index()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("csv_path", type=Path)
    parser.add_argument("img_dir", type=Path)
    parser.add_argument("--attribute", required=True)
    parser.add_argument("--arch", default="tf_efficientnet_lite0")
    parser.add_argument("--rounds", type=int, nargs="+", default=[25, 50, 100, 200, 300, 400])
    parser.add_argument("--seeds", type=int, default=3, help="draws of the division of the products into fifths")
    parser.add_argument("--folds", type=int, default=5, help="how many of the fifths are set aside in turn")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    rows, n = measured(args)
    found = summary(rows)
    print(f"{n} photos with a label of {args.attribute}; {args.seeds} seeds, {args.folds} of 5 parts set aside in turn\n")
    print(found.to_string(index=False))
    if args.out: args.out.write_text(json.dumps(found.to_dict("records"), indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__": main()
