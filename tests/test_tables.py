"Tables as users have them: each is read correctly or refused in one line."
import pandas as pd
import pytest
from conftest import QUICK

from deep_fashion.core import InputError
from deep_fashion.data.table import read_table


def analyze(samples, csv, out): return "analyze", "--csv_path", csv, "--img_dir", samples.images, "--out", out
def train(samples, csv, tmp_path, *more):
    return "train", "--run_name", "a", "--csv_path", csv, "--img_dir", samples.images, "--runs_dir", tmp_path / "runs", *QUICK, *more


def test_analyze_leaves_clean_tables_plots_and_summary(command, samples, tmp_path):
    result = command(*analyze(samples, samples.csv, tmp_path / "out"), "--names", samples.names)
    assert result.status == 0
    assert "60 photos can be used" in result.out and "unreadable image 1" in result.out
    found = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"cleaned.csv", "cleaned_missing_as_class.csv", "dropped.csv", "summary.json", "class_shares.png", "examples_neck.png"} <= found


def test_every_dropped_row_is_reported(samples):
    table = read_table(samples.csv, samples.images)
    assert len(table.rows) + len(table.dropped) == len(samples.csv.read_text().splitlines()) - 1


def test_missing_table(refused, samples, tmp_path):
    refused(*analyze(samples, tmp_path / "none.csv", tmp_path / "out"), says=["none.csv", "cannot be read"])


def test_missing_folder(refused, samples, tmp_path):
    words = "analyze", "--csv_path", samples.csv, "--img_dir", tmp_path / "nowhere", "--out", tmp_path / "out"
    refused(*words, says=["nowhere", "no such folder"])


@pytest.mark.parametrize("text, says", [
    ("", ["is empty"]),
    ("filename,neck\n", ["no rows"]),
    ("collar,neck\nx,1\n", ["no column 'filename'", "collar, neck", "filename_column"]),
    ("filename\na.jpg\n", ["no attribute"]),
    ("filename,neck,neck\na.jpg,1,2\n", ["'neck'", "twice"]),
    ("filename,neck\nabsent.jpg,1\n", ["none of its 1 rows", "absent.jpg", "no such image"]),
])
def test_invalid_tables(refused, samples, table, tmp_path, text, says):
    refused(*analyze(samples, table(text), tmp_path / "out"), says=["table.csv", *says])


@pytest.mark.parametrize("content", [b"PK\x03\x04\x14\x00\xff\xfe", b"\x00\x01\x02\x03", "filename,neck\nü.jpg,1\n".encode("utf-16")])
def test_table_that_is_not_text(refused, samples, tmp_path, content):
    (tmp_path / "table.csv").write_bytes(content)
    refused(*analyze(samples, tmp_path / "table.csv", tmp_path / "out"), says=["table.csv"])


def test_unknown_columns(refused, samples, tmp_path):
    refused(*train(samples, samples.csv, tmp_path, "--attributes", "neck,colour"), says=["no column 'colour'"])
    refused(*train(samples, samples.csv, tmp_path, "--group_column", "product"), says=["no column 'product'"])
    refused(*train(samples, samples.csv, tmp_path, "--valid_column", "part"), says=["no column 'part'"])


def test_attribute_without_labels(refused, samples, table, rows, tmp_path):
    csv = table(rows.assign(neck="").to_csv(index=False))
    refused(*train(samples, csv, tmp_path), "--attributes", "neck,pattern", says=["'neck'", "no label"])
    assert read_table(csv, samples.images).attributes == ["sleeve_length", "pattern"]


def test_one_photo_in_all(refused, samples, table, rows, tmp_path):
    single = rows.iloc[[5]].assign(neck="1", sleeve_length="1", pattern="1")
    refused(*train(samples, table(single.to_csv(index=False)), tmp_path), says=["1 usable photo"])


def test_two_photos_of_one_product(refused, samples, table, tmp_path, rows):
    product = rows.filename.str.extract(r"(\d+)-\d+\.jpg$")[0]
    pair = rows[product == product.value_counts().index[0]].assign(neck="1", sleeve_length="1", pattern="1")
    refused(*train(samples, table(pair.to_csv(index=False)), tmp_path), says=["of 1 product", "at least 2 products"])


def test_class_with_one_example_goes_to_training(command, samples, table, rows, tmp_path):
    rows = rows.copy()
    rows.loc[3, "neck"] = "rare"
    assert command(*train(samples, table(rows.to_csv(index=False)), tmp_path)).status == 0
    split = pd.read_csv(tmp_path / "runs" / "a" / "split.csv").set_index("filename")
    assert not split.is_valid[rows.filename[3]]


def test_attribute_with_one_class_is_kept_beside_others(command, samples, table, rows, tmp_path):
    assert command(*train(samples, table(rows.assign(brand="ours").to_csv(index=False)), tmp_path)).status == 0


@pytest.mark.parametrize("n", [1, 9])
def test_any_number_of_attributes(command, samples, table, rows, tmp_path, n):
    several = rows[["filename"]].assign(**{f"attribute {i}": rows[list(rows.columns)[1 + i % 3]] for i in range(n)})
    assert command(*train(samples, table(several.to_csv(index=False)), tmp_path)).status == 0
    photo = samples.images / "shirt-00001-1.jpg"
    result = command("test", "--model", tmp_path / "runs/a/learn.pkl", "-i", photo, "--out_csv", tmp_path / "row.csv")
    assert len(result.out.splitlines()) == n and len((tmp_path / "row.csv").read_text().splitlines()[0].split(",")) == n + 1


def test_only_attribute_has_one_class(refused, samples, table, rows, tmp_path):
    csv = table(rows[["filename"]].assign(brand="ours").to_csv(index=False))
    refused(*train(samples, csv, tmp_path), says=["nothing to learn", "brand: ours"])


def test_title_column_is_an_attribute_only_on_request(samples, tmp_path, table):
    names = [f"shirt-{i}.jpg" for i in range(150)]
    for name in names: (tmp_path / name).write_bytes((samples.images / "shirt-00001-1.jpg").read_bytes())
    csv = table("filename,title,neck\n" + "".join(f"{name},Shirt number {i},1\n" for i, name in enumerate(names)))
    found = read_table(csv, tmp_path)
    assert found.attributes == ["neck"] and found.kinds == {"title": "title"} and "title (text)" in "".join(found.notes)
    assert read_table(csv, tmp_path, ["title"]).attributes == ["title"]


def test_names_of_unknown_attribute(refused, samples, tmp_path):
    (tmp_path / "names.json").write_text('{"colour": {"0": "red"}}')
    refused(*analyze(samples, samples.csv, tmp_path / "out"), "--names", tmp_path / "names.json", says=["colour"])
    (tmp_path / "names.json").write_text("neck: 0")
    refused(*analyze(samples, samples.csv, tmp_path / "out"), "--names", tmp_path / "names.json", says=["is not JSON"])


def test_odd_file_names(samples, table, tmp_path):
    odd = ["with space.jpg", "with, comma.jpg", 'with "quotes".jpg', "größe-纱.jpg", "below/deeper.jpg"]
    (tmp_path / "photos" / "below").mkdir(parents=True)
    for name in odd: (tmp_path / "photos" / name).write_bytes((samples.images / "shirt-00001-1.jpg").read_bytes())
    (tmp_path / "secret.jpg").write_bytes((samples.images / "shirt-00001-1.jpg").read_bytes())
    quoted = ['"' + name.replace('"', '""') + '"' for name in [*odd, "../secret.jpg", str(tmp_path / "secret.jpg")]]
    found = read_table(table("filename,neck\n" + "".join(f"{name},1\n" for name in quoted)), tmp_path / "photos")
    assert list(found.rows.filename) == odd
    assert list(found.dropped.reason) == ["file name leads out of the image folder"] * 2


def test_odd_attribute_names(command, samples, table, rows, tmp_path):
    "Names that cannot be Python identifiers, or that are attributes of modules or data frames."
    renamed = rows.rename(columns={"neck": "type", "sleeve_length": "sleeve.length/cm", "pattern": "größe, usw"})
    for name in ("line", "product", "label", "attribute", "index", "shape", "path", "reason"): renamed[name] = rows.neck
    assert command(*train(samples, table(renamed.to_csv(index=False)), tmp_path)).status == 0
    data = "--csv_path", tmp_path / "table.csv", "--img_dir", samples.images
    result = command("evaluate", "--model", tmp_path / "runs/a/learn.pkl", *data)
    assert result.status == 0 and "größe, usw" in result.out
    assert command("analyze", *data, "--out", tmp_path / "out").status == 0


@pytest.mark.parametrize("name, says", [("mean", "rename it"), ("is_valid", "valid_column")])
def test_reserved_attribute_names(refused, samples, table, rows, tmp_path, name, says):
    csv = table(rows.rename(columns={"neck": name}).to_csv(index=False))
    refused(*train(samples, csv, tmp_path), "--attributes", f"pattern,{name}", says=[f"'{name}'", says])
    assert read_table(csv, samples.images).attributes == ["sleeve_length", "pattern"]


def test_split_by_a_column_of_fastai(command, samples, table, rows, tmp_path):
    csv = table(rows.assign(is_valid=[str(i % 5 == 0) for i in range(len(rows))]).to_csv(index=False))
    assert command(*train(samples, csv, tmp_path, "--valid_column", "is_valid")).status == 0


def test_output_is_never_overwritten(refused, samples, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    refused(*analyze(samples, samples.csv, tmp_path / "out"), says=["out", "is kept"])
    assert (tmp_path / "out" / "mine.txt").read_text() == "mine"


def test_split_by_second_table(samples, rows, table, command, tmp_path):
    first, second = table(rows[:40].to_csv(index=False), "first.csv"), table(rows[45:55].to_csv(index=False), "second.csv")
    assert command(*train(samples, first, tmp_path, "--valid_csv", second)).status == 0
    split = pd.read_csv(tmp_path / "runs" / "a" / "split.csv")
    assert set(split.filename[split.is_valid]) <= set(rows.filename[45:55])


def test_label_that_only_validation_has(samples, rows, table, command, tmp_path):
    "The vocab covers both tables, so no label is unknown in training."
    first = table(rows[:40].to_csv(index=False), "first.csv")
    second = table(rows[45:55].assign(neck="never seen").to_csv(index=False), "second.csv")
    assert command(*train(samples, first, tmp_path, "--valid_csv", second)).status == 0


def test_flixstock_is_read_with_nothing_lost(real_data):
    table = read_table(real_data / "flixstock" / "attributes.csv", real_data / "flixstock" / "images")
    reasons = table.dropped.reason.str.split(":").str[0].value_counts()
    assert len(table.rows) == 1650 and len(table.rows) + len(table.dropped) == 1664
    assert reasons["no such image"] == 1 and reasons["exact duplicate"] + reasons["conflicting duplicate"] == 13


def test_missing_as_a_class_gives_the_widths_of_the_common_recipe(real_data):
    from deep_fashion.data.vocab import AttributeVocab
    table = read_table(real_data / "flixstock" / "attributes.csv", real_data / "flixstock" / "images")
    assert AttributeVocab.from_table(table, "class").sizes == [8, 5, 11]
    assert AttributeVocab.from_table(table, "mask").sizes == [7, 4, 10]


def test_deepfashion_layout_is_read(real_data):
    table = read_table(real_data / "deepfashion_mini")
    assert len(table.rows) == 357 and len(table.attributes) == 6
    assert table.name("sleeve_length", "0") == "long_sleeve"


def test_a_line_without_a_file_name(samples, table):
    found = read_table(table("neck,filename\n1,shirt-00001-1.jpg\n2\n"), samples.images)
    assert list(found.rows.filename) == ["shirt-00001-1.jpg"] and list(found.dropped.reason) == ["no file name"]


@pytest.mark.parametrize("name, content, says", [
    ("train_attr.txt", "0 1\n", "expected 1, one per attribute type"),
    ("list_attr_cloth.txt", "1\nname type\nfloral\n", "line 3"),
    ("train.txt", "a.jpg\nb.jpg\n", "names 2 photos"),
])
def test_deepfashion_layout_that_is_malformed(tmp_path, name, content, says):
    (tmp_path / "split").mkdir()
    good = {"list_attr_cloth.txt": "1\nname type\nfloral 1\n", "train.txt": "a.jpg\n", "train_attr.txt": "0\n"}
    for file, text in {**good, name: content}.items(): (tmp_path / "split" / file).write_text(text)
    with pytest.raises(InputError, match=says): read_table(tmp_path)


def test_deepfashion_layout_that_is_incomplete(tmp_path):
    (tmp_path / "split").mkdir()
    with pytest.raises(InputError, match="list_attr_cloth.txt"): read_table(tmp_path)


@pytest.mark.parametrize("header, column", [("filename,neck,neck_confidence", "neck_confidence"), ("filename,neck,neck=b", "neck=b")])
def test_columns_that_would_be_mistaken(refused, samples, table, header, column):
    csv = table(f"{header}\nshirt-00001-1.jpg,1,2\n")
    assert read_table(csv, samples.images).kinds == {column: "prediction"}
    words = "analyze", "--csv_path", csv, "--img_dir", samples.images, "--attributes", f"neck,{column}"
    refused(*words, says=[f"{column!r} looks like a prediction of 'neck'"])


def test_nameless_columns(samples, table):
    found = read_table(table("filename,neck,\nshirt-00001-1.jpg,1,2\nshirt-00002-1.jpg,1,2\n"), samples.images)
    assert found.attributes == ["neck"] and "unnamed 3" in "".join(found.notes)
