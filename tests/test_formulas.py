"A table that people open in a spreadsheet runs nothing, and comes back as it was."
import csv
import shutil

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deep_fashion.core import CsvWriter, write_csv
from deep_fashion.data.csv_file import read_csv

ODD_NAMES = "=1+1.jpg", "+a.jpg", "-a.jpg", "@a.jpg", "'=a.jpg", "x\ry.jpg", "x\ny.jpg", '=HYPERLINK("a").jpg', "plain.jpg"
FORMULA_STARTS = tuple("=+-@\t\r\n")


@pytest.fixture
def odd_photos(samples, tmp_path):
    folder = tmp_path / "odd"
    folder.mkdir()
    for i, name in enumerate(ODD_NAMES, 1): shutil.copy(samples.images / f"shirt-{i:05}-1.jpg", folder / name)
    (folder / "=broken.jpg").write_text("no photo")
    return folder


def cells_of(path):
    with path.open(newline="", encoding="utf-8") as file: return list(csv.reader(file))


def test_tags_of_photos_with_odd_names(command, trained, odd_photos, tmp_path):
    tags, again = tmp_path / "tags.csv", tmp_path / "again.csv"
    assert command("tag", "--model", trained, "--img_dir", odd_photos, "--out_csv", tags, "-nw", "0").status == 1
    cells = cells_of(tags)
    assert len(cells) == 1 + len(ODD_NAMES) and {len(row) for row in cells} == {7}
    assert not [cell for row in [*cells, *cells_of(tmp_path / "tags.errors.csv")] for cell in row if cell.startswith(FORMULA_STARTS)]
    assert "plain.jpg" in {row[0] for row in cells} and set(read_csv(tags).filename) == set(ODD_NAMES)
    # The table lists photos, too.
    assert command("tag", "--model", trained, "--img_dir", odd_photos, "--csv_path", tags, "--out_csv", again, "-nw", "0").status == 0
    assert sorted(cells_of(again)) == sorted(cells)


def test_labels_that_look_like_formulas_survive_training_tagging_and_corrections(command, samples, rows, tmp_path):
    labels = {"0": "=none", "1": "+size", "2": "-slim"}
    table = rows.assign(neck=rows.neck.map(labels).fillna("@other"))[["filename", "neck", "sleeve_length"]]
    write_csv(tmp_path / "table.csv", table)
    options = "--csv_path", tmp_path / "table.csv", "--img_dir", samples.images, "--runs_dir", tmp_path, "--no-report"
    quick = "--no-pretrained", "--size", "48", "-bs", "16", "-nw", "0", "-lr", "0.003", "-ep", "1", "--catch_all", "class"
    (tmp_path / "corrections.csv").write_text("filename,neck\nshirt-00001-1.jpg,'+size\n")
    trained = command("train", "--run_name", "odd", *options, *quick, "--corrections", tmp_path / "corrections.csv")
    assert trained.status == 0, trained.err
    from deep_fashion.predict.tagger import load_tagger
    from deep_fashion.run import Run
    run = Run(tmp_path / "odd")
    assert set(load_tagger(run.path).vocab.classes["neck"]) == {"=none", "+size", "-slim", "@other"}
    assert not [cell for path in run.path.glob("*.csv") for row in cells_of(path) for cell in row if cell[:1] in ("=", "+", "@")]
    assert {"neck==none", "neck=+size"} <= set(run.predictions)
    assert set(run.predictions.neck_predicted) <= {"=none", "+size", "-slim", "@other"}


def test_harmless_tables_are_written_as_pandas_does(tmp_path):
    names, texts = ["a-b.jpg", "it's.jpg", 'say "a", b.jpg'], ["-1", "+2.5", None]
    table = pd.DataFrame({"filename": names, "n": [1, 2, 3], "x": [-0.5, None, 1e-9], "t": texts})
    write_csv(tmp_path / "a.csv", table)
    assert (tmp_path / "a.csv").read_text(encoding="utf-8") == table.to_csv(index=False, na_rep="#N/A")


cell = st.text(st.sampled_from("=+-@'\t\r\n,;\"ab1.é＝ "), max_size=8)


@settings(max_examples=150, deadline=None, database=None, derandomize=True)
@given(st.lists(st.tuples(cell, cell), min_size=1, max_size=4))
def test_any_text_comes_back_without_blanks_around_it(tmp_path_factory, texts):
    names, labels = [f"{text}{i}.jpg" for i, (text, _) in enumerate(texts)], [text for _, text in texts]
    path = tmp_path_factory.mktemp("csv") / "a.csv"
    write_csv(path, pd.DataFrame(dict(filename=names, neck=labels, fit="v")))
    written = path.read_bytes()
    with path.open("w", newline="", encoding="utf-8") as file:
        CsvWriter(file).writerows([("filename", "neck", "fit"), *zip(names, labels, ["v"] * len(names))])
    assert path.read_bytes() == written
    found = read_csv(path)
    assert [list(map(str.strip, o)) for o in (names, labels)] == [list(map(str.strip, o)) for o in (found.filename, found.neck)]
    assert not [c for row in cells_of(path) for c in row if c.startswith(FORMULA_STARTS) and not c.strip("+-.,e0123456789") == ""]
