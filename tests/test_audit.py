"Audits of a table, its photos and its labels."
import re

import pandas as pd
import pytest
from PIL import Image

from deep_fashion.core import read_json
from deep_fashion.data.catch_all import find_catch_all
from deep_fashion.data.split import products_of
from deep_fashion.data.table import read_table


@pytest.fixture(scope="module")
def probed(trained, samples, tmp_path_factory):
    "The folder of a run: a cross-validated linear probe on the body of another run."
    from deep_fashion.cli import main
    runs = tmp_path_factory.mktemp("probed")
    inputs = ["--csv_path", str(samples.csv), "--img_dir", str(samples.images), "--names", str(samples.names)]
    assert main(["train", "--run_name", "a", *inputs, "--runs_dir", str(runs), "--weights", str(trained),
                 "--views", "whole", "--size", "48", "-nw", "0"]) == 0
    return runs / "a"


def test_flixstock_has_three_catch_alls(real_data):
    table = read_table(real_data / "flixstock" / "attributes.csv", real_data / "flixstock" / "images")
    found = find_catch_all(table, products_of(table.rows))
    assert {attribute: evidence["label"] for attribute, evidence in found.items()} == {"neck": "6", "sleeve_length": "3", "pattern": "9"}


def test_deepfashion_has_no_catch_all(real_data):
    table = read_table(real_data / "deepfashion_mini")
    assert find_catch_all(table, products_of(table.rows)) == {}


def test_sample_photos_have_no_catch_all_and_no_near_duplicates_of_other_products(command, samples, tmp_path):
    result = command("analyze", "--csv_path", samples.csv, "--img_dir", samples.images, "--out", tmp_path / "out")
    summary = read_json(tmp_path / "out/summary.json")
    assert result.status == 0 and "says nothing" not in result.out
    assert summary["catch_all"] == {} and summary["leaking"] == 0 and summary["unusable"] == {}


def test_planted_faults_are_on_the_page(command, samples, table, tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    rows = pd.read_csv(samples.csv, dtype=str).drop_duplicates("filename").fillna("")
    rows = rows[[(samples.images / name).exists() and name.startswith("shirt") for name in rows.filename]].head(20)
    for name in rows.filename: (images / name).write_bytes((samples.images / name).read_bytes())
    first = rows.filename.iloc[0]
    (images / "copy-99001-1.jpg").write_bytes((images / first).read_bytes())
    Image.new("RGB", (300, 400), "navy").save(images / "empty-99002-1.png")
    Image.new("RGB", (20, 30), "red").save(images / "<b>small.png")
    planted = [["copy-99001-1.jpg", "0", "0", "0"], ["empty-99002-1.png", "1", "1", "1"], ["<b>small.png", "1", "1", "1"]]
    csv = table(pd.concat([rows, pd.DataFrame(planted, columns=rows.columns)]).to_csv(index=False))
    assert command("analyze", "--csv_path", csv, "--img_dir", images, "--out", tmp_path / "out").status == 0
    duplicates = pd.read_csv(tmp_path / "out/near_duplicates.csv")
    assert {first, "copy-99001-1.jpg"} <= set(duplicates[duplicates.leaks].filename)
    unusable = pd.read_csv(tmp_path / "out/unusable_photos.csv")
    assert set(unusable.itertuples(index=False, name=None)) == {("empty-99002-1.png", "blank"), ("<b>small.png", "tiny")}
    page = (tmp_path / "out/audit.html").read_text()
    assert "copy-99001-1.jpg" in page and "&lt;b&gt;small.png" in page and "<b>small" not in page
    assert not re.search(r"(src|href)=\"(?!data:|#)", page)


def test_label_errors_of_a_run(command, probed, samples, tmp_path):
    result = command("analyze", "--csv_path", samples.csv, "--img_dir", samples.images, "--names", samples.names,
                     "--run", probed, "--out", tmp_path / "out")
    assert result.status == 0 and "labels that look wrong" in result.out
    errors = pd.read_csv(tmp_path / "out/label_errors.csv", dtype={"label": str, "predicted": str})
    assert list(errors.columns) == ["filename", "attribute", "label", "predicted", "confidence", "quality"]
    assert errors.quality.is_monotonic_increasing and (errors.label != errors.predicted).any()


def test_folders_that_are_no_runs_are_refused(refused, samples, tmp_path):
    refused("analyze", "--csv_path", samples.csv, "--img_dir", samples.images, "--run", tmp_path, "--out", tmp_path / "out",
            says=["predictions.csv", "finished run"])


def test_every_photo_is_scored_by_heads_that_were_not_trained_on_its_product(probed):
    split, predictions = pd.read_csv(probed / "split.csv"), pd.read_csv(probed / "predictions.csv")
    metrics = read_json(probed / "metrics.json")
    product = split.filename.str.extract(r"(\d+)-\d+\.jpg$")[0]
    assert split.groupby(product).fold.nunique().max() == 1 and split.fold.nunique() == 5
    assert len(predictions) == metrics["training_photos"] == 60
    known = predictions.neck.notna()
    right = (predictions.neck_predicted == predictions.neck)[known].mean()
    assert metrics["attributes"]["neck"]["accuracy"] == pytest.approx(right, abs=1e-4)
    assert {"mean", "deviation", "lowest", "highest"} == set(metrics["folds"]["macro_f1"])
