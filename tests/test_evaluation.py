"Evaluating on known photos and unknown labels; a run's predictions on another table."
import re
import shutil

import pandas as pd
import pytest
from PIL import Image

from deep_fashion.core import read_json
from deep_fashion.data.samples import make_samples
from deep_fashion.predict.tagger import load_tagger


def notes(result): return [line.removeprefix("deep_fashion: note: ") for line in result.lines if ": note: " in line]
def about_training(result): return [note for note in notes(result) if "in the training" in note]


@pytest.fixture
def evaluate(command, trained, samples, tmp_path):
    "Score the short run on a table; gives what was printed, and the JSON."
    def run(csv, images=samples.images, model=trained):
        result = command("evaluate", "--model", model, "--csv_path", csv, "--img_dir", images, "--out", tmp_path / "scores.json")
        assert result.status == 0, result.err
        return result, read_json(tmp_path / "scores.json")
    return run


def test_photos_of_the_training_are_noticed_under_any_name(evaluate, trained, samples, tmp_path):
    split = pd.read_csv(trained / "split.csv")
    trained_on = list(split.filename[~split.is_valid])
    result, scores = evaluate(samples.csv)
    seen = scores["seen_in_training"]
    assert 0 < seen["photos"] <= len(trained_on)
    assert about_training(result)[0].startswith(f"{seen['photos']} of {len(split)} photos ({seen['products']} products) were")
    assert f"{seen['photos']} of {len(split)} photos" in (tmp_path / "scores.html").read_text()
    (tmp_path / "renamed").mkdir()
    for i, name in enumerate(trained_on[:3]): shutil.copy(samples.images / name, tmp_path / "renamed" / f"{'abc'[i]}.jpg")
    csv = tmp_path / "renamed.csv"
    csv.write_text("filename,neck,sleeve_length,pattern\na.jpg,0,0,0\nb.jpg,1,1,1\nc.jpg,0,1,1\n")
    (tmp_path / "scores.json").unlink(), (tmp_path / "scores.html").unlink()
    result, scores = evaluate(csv, tmp_path / "renamed")
    assert scores["seen_in_training"] == dict(photos=3, products=3, photos_by_name=0, products_by_name=0)


def test_validation_photos_are_not_counted_as_trained_on(evaluate, trained, samples, table, rows):
    split = pd.read_csv(trained / "split.csv")
    valid = rows[rows.filename.isin(split.filename[split.is_valid])]
    result, scores = evaluate(table(valid.to_csv(index=False)))
    assert not about_training(result) and not any(scores["seen_in_training"].values())


def test_a_product_of_the_same_name_is_only_a_hint(evaluate, tmp_path):
    "Names such as 00001 occur in many catalogues: the photos are others, and so may be the products."
    other = make_samples(tmp_path / "other", n=12, seed=7)
    result, scores = evaluate(other / "attributes.csv", other / "images")
    assert scores["seen_in_training"]["photos"] == 0 < scores["seen_in_training"]["photos_by_name"]
    [note] = about_training(result)
    assert "not in the training" in note and "if they are the same products" in note


def test_products_of_other_names_are_not_mentioned(evaluate, tmp_path):
    other = make_samples(tmp_path / "other", n=12, seed=7)
    rows = pd.read_csv(other / "attributes.csv", dtype=str)
    for name in rows.filename: (other / "images" / name).rename(other / "images" / f"x{name.replace('-0', '-7')}")
    rows.assign(filename="x" + rows.filename.str.replace("-0", "-7")).to_csv(other / "attributes.csv", index=False)
    result, scores = evaluate(other / "attributes.csv", other / "images")
    assert not about_training(result) and not any(scores["seen_in_training"].values())


def test_a_tagger_of_an_earlier_version_is_scored_without_such_notes(evaluate, trained, samples, tmp_path):
    learn = load_tagger(trained)
    del learn.seen
    learn.export(tmp_path / "old.pkl")
    result, scores = evaluate(samples.csv, model=tmp_path / "old.pkl")
    assert scores["seen_in_training"] is None and not about_training(result)


def test_the_tagger_carries_no_names_of_files(trained, samples):
    content = (trained / "learn.pkl").read_bytes()
    assert b"shirt-0" not in content and str(samples.images).encode() not in content


def test_cross_validation_trains_on_every_labelled_photo(command, samples, tmp_path):
    words = ["--csv_path", samples.csv, "--img_dir", samples.images]
    quick = ["--no-pretrained", "--size", "48", "-bs", "16", "-nw", "0", "-lr", "0.003", "-ep", "1", "--no-report"]
    assert command("train", "--run_name", "folds", *words, "--runs_dir", tmp_path, "--folds", "2", *quick).status == 0
    predictions = pd.read_csv(tmp_path / "folds/predictions.csv")
    labelled = predictions[["neck", "sleeve_length", "pattern"]].notna().any(axis=1)
    seen = load_tagger(tmp_path / "folds").seen
    assert seen.has_photos([samples.images / name for name in predictions.filename]).tolist() == labelled.tolist()


def test_an_unknown_label_does_not_stop_the_others(evaluate, table, rows, tmp_path):
    clean = rows.drop_duplicates("filename", keep=False).reset_index(drop=True)
    i = clean.index[clean.neck != ""][3]
    name, changed = clean.filename[i], clean.copy()
    changed.loc[i, ["neck", "pattern"]] = "99", "x"
    result, scores = evaluate(table(changed.to_csv(index=False)))
    assert [(o["line"], o["filename"], o["attribute"], o["label"]) for o in scores["unknown_labels"]] == [
        (i + 2, name, "neck", "99"), (i + 2, name, "pattern", "x")]
    [note] = [note for note in notes(result) if "unknown" in note]
    assert "2 labels unknown" in note and f"neck '99' (1 photo, line {i + 2}, {name}; known are 0, 1" in note
    (tmp_path / "scores.json").unlink(), (tmp_path / "scores.html").unlink()
    _, unchanged = evaluate(table(clean.to_csv(index=False)))
    assert unchanged["unknown_labels"] == []
    assert scores["attributes"]["neck"]["photos"] == unchanged["attributes"]["neck"]["photos"] - 1 > 10


def test_the_nearest_known_label_is_suggested(command, samples, trained, tmp_path, rows):
    words = ["solid", "striped", "dotted", "checked", "printed", "floral", "plain", "other", "a", "b"]
    named = rows.assign(pattern=rows.pattern.map(lambda o: o and words[int(o)]))[["filename", "pattern"]]
    named.to_csv(tmp_path / "named.csv", index=False)
    quick = ["--no-pretrained", "--size", "48", "-bs", "16", "-nw", "0", "-lr", "0.003", "-ep", "1", "--no-report"]
    data = ["--csv_path", tmp_path / "named.csv", "--img_dir", samples.images]
    assert command("train", "--run_name", "words", *data, *quick).status == 0
    (tmp_path / "other.csv").write_text("filename,pattern\nshirt-00001-1.jpg,striped\nshirt-00002-1.jpg,Strped\n")
    result = command("evaluate", "--model", "runs/words", "--csv_path", "other.csv", "--img_dir", samples.images, "--out", "e.json")
    assert result.status == 0 and "pattern 'Strped' (1 photo, line 3, shirt-00002-1.jpg; nearest known label 'striped')" in result.err
    assert read_json(tmp_path / "e.json")["unknown_labels"][0]["nearest"] == "striped"


@pytest.mark.parametrize("pattern", [None, ""])
def test_an_attribute_without_labels_is_not_scored(evaluate, table, rows, pattern):
    changed = rows.drop(columns="pattern") if pattern is None else rows.assign(pattern=pattern)
    result, scores = evaluate(table(changed.to_csv(index=False)))
    assert any("no label of pattern" in note for note in notes(result))
    assert scores["attributes"]["pattern"]["photos"] == 0 < scores["attributes"]["neck"]["photos"]
    assert scores["attributes"]["pattern"]["accuracy"] is None and scores["mean"]["accuracy"] is not None


@pytest.fixture
def analyze(command, trained, samples, tmp_path):
    "Audit a table with the short run; gives what was printed, and the summary."
    def run(csv, images=samples.images):
        result = command("analyze", "--csv_path", csv, "--img_dir", images, "--run", trained, "--out", tmp_path / "audit")
        assert result.status == 0, result.err
        return result, read_json(tmp_path / "audit/summary.json")
    return run


def test_a_run_checks_the_photos_it_predicted(analyze, trained, samples):
    predicted = len(pd.read_csv(trained / "predictions.csv"))
    result, summary = analyze(samples.csv)
    assert summary["photos_predicted"] == predicted and f"{predicted} photos that the run predicted" in result.out
    [note] = [note for note in notes(result) if "predicted" in note]
    assert f"predicted {predicted} of the 60 photos" in note and f"the other {60 - predicted} are not checked" in note


def test_only_photos_of_the_table_are_listed_with_its_labels(analyze, trained, table, tmp_path):
    predictions = pd.read_csv(trained / "predictions.csv", dtype=str)
    some = predictions.iloc[::2]
    csv = table(some[["filename"]].assign(neck=[str(i % 2) for i in range(len(some))]).to_csv(index=False))
    result, summary = analyze(csv)
    errors = pd.read_csv(tmp_path / "audit/label_errors.csv", dtype=str)
    labels = pd.read_csv(csv, dtype=str).set_index("filename").neck
    assert summary["photos_predicted"] == len(some) and not [note for note in notes(result) if "predicted" in note]
    assert set(errors.filename) <= set(some.filename) and (labels[errors.filename].to_numpy() == errors.label.to_numpy()).all()


def test_a_table_the_run_knows_nothing_of(analyze, tmp_path):
    (tmp_path / "new").mkdir()
    for i in range(4): Image.new("RGB", (80, 100), (60 * i, 90, 120)).save(tmp_path / "new" / f"new-{i}-1.jpg")
    (tmp_path / "new.csv").write_text("filename,neck\n" + "".join(f"new-{i}-1.jpg,{i % 2}\n" for i in range(4)))
    result, summary = analyze(tmp_path / "new.csv", tmp_path / "new")
    assert summary["photos_predicted"] == 0 and "label_errors" not in summary
    assert any("predicted none of the 4 photos" in note for note in notes(result))


def test_another_photo_of_the_same_name_is_not_checked(analyze, trained, tmp_path):
    predictions = pd.read_csv(trained / "predictions.csv", dtype=str)
    (tmp_path / "other").mkdir()
    for i, name in enumerate(predictions.filename): Image.new("RGB", (80, 100), (9 * i % 255, 90, 120)).save(tmp_path / "other" / name)
    predictions[["filename", "neck"]].fillna("0").to_csv(tmp_path / "other.csv", index=False)
    result, summary = analyze(tmp_path / "other.csv", tmp_path / "other")
    assert summary["photos_predicted"] == 0
    assert any(re.search("the file name is that of a photo it predicted, the content is not", note) for note in notes(result))
