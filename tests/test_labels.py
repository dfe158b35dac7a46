"Labels: catch-all classes, titles, corrections, and tags that are left open."
import numpy as np
import pandas as pd
import pytest

from deep_fashion.core import read_json
from deep_fashion.predict.tagger import load_tagger


@pytest.fixture
def train(trained, tmp_path):
    "Train a linear probe on the body of another run: quick, and the default of `train`."
    quick = "--weights", trained, "--views", "whole", "--size", "48", "-nw", "0"
    def words(name, csv, images, *more):
        return "train", "--run_name", name, "--csv_path", csv, "--img_dir", images, "--runs_dir", tmp_path / "runs", *quick, *more
    return words


@pytest.fixture
def titled(samples, table, rows):
    "The sample table with a title that contains the neck."
    rows = rows.drop_duplicates("filename")
    rows = rows[[(samples.images / name).exists() and name.startswith("shirt") for name in rows.filename]]
    rows = pd.concat([rows.assign(filename=rows.filename)], ignore_index=True)
    words = {"0": "henley", "1": "hooded", "2": "polo", "3": "round", "4": "vneck", "5": "zipped"}
    title = [f"Men {words.get(neck, 'Plain')} Shirt" for neck in rows.neck]
    return table(rows.assign(title=title).to_csv(index=False), "titled.csv")


def test_a_given_catch_all_class_is_missing(command, train, samples, tmp_path):
    assert command(*train("a", samples.csv, samples.images, "--catch_all", "neck=2", "--no-report")).status == 0
    vocab = load_tagger(tmp_path / "runs/a/learn.pkl").vocab
    assert "2" not in vocab.classes["neck"] and vocab.encode(["2", None, None]) == [-1, -1, -1]
    assert read_json(tmp_path / "runs/a/metrics.json")["catch_all"] == {"neck": "2"}
    # A table that holds the catch-all can still be scored.
    assert command("evaluate", "--model", tmp_path / "runs/a/learn.pkl", "--csv_path", samples.csv, "--img_dir", samples.images).status == 0


@pytest.mark.parametrize("choice, says", [
    ("neck", ["attribute=label"]),
    ("collar=2", ["no attribute 'collar'"]),
    ("neck=77", ["no label '77'"]),
])
def test_invalid_catch_all_choices(refused, train, samples, choice, says, tmp_path):
    refused(*train("a", samples.csv, samples.images, "--catch_all", choice), says=["catch_all", *says])
    assert not (tmp_path / "runs/a").exists()


def test_found_catch_all_classes_are_reported(command, train, real_data, tmp_path):
    words = train("a", real_data / "flixstock/attributes.csv", real_data / "flixstock/images", "--no-titles", "--folds", "2")
    result = command(*words)
    assert result.status == 0, result.err
    kinds = {note.split(": ")[0] for note in result.notes if "looks like a catch-all class" in note}
    assert kinds == {"neck", "sleeve_length", "pattern"}
    assert load_tagger(tmp_path / "runs/a/learn.pkl").model.sizes == [6, 3, 9]


def test_titles_can_be_used(command, refused, train, titled, samples, tmp_path):
    words = "--title_column", "title", "--attributes", "neck,pattern", "--no-report"
    assert command(*train("a", titled, samples.images, *words)).status == 0
    metrics = read_json(tmp_path / "runs/a/metrics.json")
    assert metrics["with_titles"]["attributes"]["neck"]["accuracy"] > metrics["attributes"]["neck"]["accuracy"]
    model = tmp_path / "runs/a/learn.pkl"
    common = "--model", model, "--img_dir", samples.images, "--csv_path", titled
    assert command("evaluate", *common, "--use_titles", "--title_column", "title").status == 0
    assert command("tag", *common, "--use_titles", "--title_column", "title", "--out_csv", tmp_path / "tags.csv").status == 0
    refused("tag", *common, "--use_titles", "--title_column", "name", "--out_csv", tmp_path / "other.csv", says=["no column 'name'"])


def test_corrections_replace_labels_and_add_photos(command, refused, train, samples, rows, table, tmp_path):
    name = rows.filename[rows.neck == "1"].iloc[0]
    review = table(f"filename,neck,sleeve_length,pattern,neck_suggested\n{name},2,,,1\n", "review.csv")
    assert command(*train("a", samples.csv, samples.images, "--corrections", review, "--no-report")).status == 0
    predictions = pd.read_csv(tmp_path / "runs/a/predictions.csv", dtype=str).set_index("filename")
    assert predictions.neck[name] == "2"
    empty = table(f"filename,neck\n{name},\n", "empty.csv")
    refused(*train("b", samples.csv, samples.images, "--corrections", empty), says=["no label is filled in"])


def test_tags_below_the_precision_are_left_open(command, trained, samples, tmp_path):
    learn = load_tagger(trained / "learn.pkl")
    words = "tag", "--img_dir", samples.images
    assert command(*words, "--model", trained / "learn.pkl", "--out_csv", tmp_path / "all.csv").status == 1
    everything = pd.read_csv(tmp_path / "all.csv")
    middle = {a: everything[f"{a}_confidence"].median() for a in learn.vocab.attributes}
    spread = {a: np.linspace(everything[f"{a}_confidence"].min(), everything[f"{a}_confidence"].max(), 500) for a in middle}
    learn.confidences = {a: (o, (o > middle[a]) | (np.arange(500) % 2 == 0)) for a, o in spread.items()}
    learn.export(tmp_path / "sure.pkl")
    result = command(*words, "--model", tmp_path / "sure.pkl", "--out_csv", tmp_path / "sure.csv", "--min_precision", "0.9")
    tags, review = (pd.read_csv(tmp_path / name, dtype=str, keep_default_na=False) for name in ("sure.csv", "sure.review.csv"))
    is_open = tags[learn.vocab.attributes] == "#N/A"
    assert is_open.any(axis=None) and not is_open.all(axis=None)
    for a in middle:
        confidence = tags[f"{a}_confidence"].astype(float)
        assert confidence[is_open[a]].max() <= confidence[~is_open[a]].min()
    assert set(review.filename) == set(tags.filename[is_open.any(axis=1)]) and (review[learn.vocab.attributes] == "").all(axis=None)
    assert "60 tagged (confidence from" in result.out and "sure.review.csv" in result.out


def test_a_precision_that_nothing_reaches_leaves_all_open(command, trained, samples, tmp_path):
    words = "tag", "--model", trained / "learn.pkl", "--img_dir", samples.images, "--out_csv", tmp_path / "tags.csv"
    assert command(*words, "--min_precision", "0.999").status == 1
    assert (pd.read_csv(tmp_path / "tags.csv", keep_default_na=False).neck == "#N/A").all()


@pytest.mark.parametrize("precision", ["0", "1", "95"])
def test_precisions_out_of_range(refused, trained, samples, tmp_path, precision):
    words = "tag", "--model", trained / "learn.pkl", "--img_dir", samples.images, "--out_csv", tmp_path / "t.csv"
    refused(*words, "--min_precision", precision, says=["min_precision", "between 0 and 1"])


def test_photos_of_one_product_agree_when_averaged(command, trained, samples, tmp_path):
    words = "tag", "--model", trained / "learn.pkl", "--img_dir", samples.images, "--out_csv", tmp_path / "tags.csv"
    assert command(*words, "--group_pattern", r"shirt-(\d+)").status == 1
    tags = pd.read_csv(tmp_path / "tags.csv")
    product = tags.filename.str.extract(r"shirt-(\d+)")[0]
    assert product.duplicated().any() and tags.groupby(product).neck.nunique().max() == 1


def test_folds_and_a_split_contradict_each_other(refused, train, samples):
    refused(*train("a", samples.csv, samples.images, "--folds", "3", "--valid_pct", "0.2"), says=["folds 3", "valid_pct"])


@pytest.fixture
def first_products(samples, rows, table):
    "A table of the first photo of `n` products."
    def write(n):
        few = rows[rows.filename.str.fullmatch(r"shirt-\d+-1\.jpg")].drop_duplicates("filename").head(n)
        return table(few.assign(neck=["0", "1", "0"][:n], sleeve_length=["0", "1", ""][:n], pattern=["1", "", "0"][:n]).to_csv(index=False))
    return write


def test_fewest_possible_products(command, refused, train, samples, first_products, tmp_path):
    assert command(*train("three", first_products(3), samples.images)).status == 0
    assert read_json(tmp_path / "runs/three/config.json")["plan"]["folds"] == 3
    refused(*train("two", first_products(2), samples.images), says=["at least 2"])
    refused(*train("one", first_products(1), samples.images), says=["at least 2 products"])


def test_more_folds_than_products(refused, train, samples, tmp_path):
    refused(*train("a", samples.csv, samples.images, "--folds", "500"), says=["folds", "use fewer"])


def test_layers_trained_in_folds_become_one_tagger(command, samples, tmp_path):
    from conftest import QUICK
    data = "--csv_path", samples.csv, "--img_dir", samples.images
    assert command("train", "--run_name", "a", *data, "--runs_dir", tmp_path, *QUICK, "--folds", "2").status == 0
    assert len(load_tagger(tmp_path / "a/learn.pkl").model.models) == 2 and len(pd.read_csv(tmp_path / "a/predictions.csv")) == 60
    result = command("tag", "--model", tmp_path / "a/learn.pkl", "--img_dir", samples.images, "--out_csv", tmp_path / "tags.csv")
    assert result.status == 1 and len(pd.read_csv(tmp_path / "tags.csv")) == 60
