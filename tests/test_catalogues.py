"Tables as spreadsheets and shops export them: what can be used is used, the rest is listed, nothing is guessed silently."
import hashlib
import json
import re
import shutil
import warnings

import pandas as pd
import pytest
from conftest import QUICK

from deep_fashion.core import InputError
from deep_fashion.data import corrections as corrections_module
from deep_fashion.data import table as table_module
from deep_fashion.data.csv_dialect import CsvFormat

LABELS = {"neck": ["round", "v-neck", "polo", "henley", "hood"], "pattern": ["solid", "striped", "checked", "dotted"]}


def read_table(*args, **kwargs):
    "Quietly: the notes are tested as part of the table."
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return table_module.read_table(*args, **kwargs)


def correct_table(*args, **kwargs):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return corrections_module.correct_table(*args, **kwargs)


@pytest.fixture(scope="session")
def photos(samples, tmp_path_factory):
    "Thirty photos of ten products."
    folder = tmp_path_factory.mktemp("catalogue") / "images"
    folder.mkdir()
    sources = sorted(path for path in samples.images.iterdir() if path.name.startswith("shirt-00"))
    for i in range(30): shutil.copy(sources[i + 5], folder / f"shirt-{i // 3:05}-{i % 3 + 1}.jpg")
    return folder


@pytest.fixture(scope="session")
def catalogue(photos):
    "A clean table of the photos, as text."
    names = sorted(path.name for path in photos.iterdir())
    return pd.DataFrame({"filename": names, **{a: [labels[i // 3 % len(labels)] for i in range(30)] for a, labels in LABELS.items()}})


def written(tmp_path, rows, encoding="utf-8", **options):
    path = tmp_path / "mine.csv"
    path.write_bytes(rows.to_csv(index=False, **options).encode(encoding))
    return path


def noted(found, *words): assert any(all(word in note for word in words) for note in found.notes), (words, found.notes)


@pytest.mark.parametrize("encoding, options, words", [
    ("utf-16", dict(sep="\t"), ["UTF-16"]), ("utf-16-le", {}, ["UTF-16-LE"]), ("utf-32", {}, ["UTF-32"]),
                                                      ("utf-8-sig", dict(sep=";"), ["semicolons"]),
    ("cp1252", dict(sep=";", lineterminator="\r\n"), ["cp1252"]), ("utf-8", dict(sep="|"), ["bars"]), ("utf-8", dict(sep="\t"), ["tabs"]),
    ("utf-8", dict(lineterminator="\r"), []), ("utf-8", dict(quoting=1), []),
])
def test_encodings_and_separators(photos, catalogue, tmp_path, encoding, options, words):
    found = read_table(written(tmp_path, catalogue.replace("dotted", "à pois"), encoding, **options), photos)
    assert len(found.rows) == 30 and "à pois" in set(found.rows.pattern)
    if words: noted(found, *words)


def test_format_can_be_given(photos, catalogue, tmp_path, command):
    csv = written(tmp_path, catalogue.rename(columns={"filename": "Datei"}).replace("dotted", "gepünktet"), "mac_roman", sep="~")
    options = "--filename_column", "Datei", "--delimiter", "~", "--encoding", "mac_roman"
    assert set(read_table(csv, photos, csv_format=CsvFormat("Datei", "~", "mac_roman")).rows.pattern) > {"gepünktet"}
    result = command("analyze", "--csv_path", csv, "--img_dir", photos, "--out", tmp_path / "out", *options)
    assert result.status == 0 and "gepünktet" in result.out
    summary = json.loads((tmp_path / "out/summary.json").read_text())
    assert summary["photos"] == 30


@pytest.mark.parametrize("start, words", [("sep=;\n", ["names the separator"]), ("Export of 1 March\n\n", ["Export of 1 March"]),
                                          ("\n\n", [])])
def test_lines_before_the_header(photos, catalogue, tmp_path, start, words):
    csv = tmp_path / "mine.csv"
    csv.write_text(start + catalogue.to_csv(index=False, sep=";"))
    found = read_table(csv, photos)
    assert len(found.rows) == 30
    if words: noted(found, *words)


def test_ragged_lines_are_dropped_with_the_line_of_an_editor(photos, catalogue, tmp_path):
    lines = catalogue.assign(title="tee").to_csv(index=False).splitlines()
    lines[3] = lines[3].replace(",tee", ',"tee\nin two lines"')
    lines[9] += ", blue"
    lines[12] += ",,"
    lines += [",,,", lines[0]]
    (tmp_path / "mine.csv").write_text("\n".join(lines))
    found = read_table(tmp_path / "mine.csv", photos, other_columns=["title"])
    assert len(found.rows) == 29 and list(found.dropped.line) == [11, 34]
    noted(found, "too many cells", "line 11")
    noted(found, "repeats the header", "line 34")


@pytest.mark.parametrize("closing", [None, 20])
def test_stray_quotes_swallow_nothing(photos, catalogue, tmp_path, closing):
    lines = catalogue.assign(title="tee").to_csv(index=False).splitlines()
    lines[7] = lines[7].replace(",tee", ',"15 inch tee')
    if closing: lines[closing] = lines[closing].replace(",tee", ',"20 inch tee')
    (tmp_path / "mine.csv").write_text("\n".join(lines))
    found = read_table(tmp_path / "mine.csv", photos, other_columns=["title"])
    assert len(found.rows) == 30
    noted(found, "quote", "lines 8, 21" if closing else "line 8")


@pytest.mark.parametrize("column", ["image", "Image Name", "img_path", "file", "Bild"])
def test_column_of_file_names_is_recognised(photos, catalogue, tmp_path, column):
    found = read_table(written(tmp_path, catalogue.rename(columns={"filename": column})), photos)
    assert len(found.rows) == 30 and found.attributes == ["neck", "pattern"]
    noted(found, repr(column))


def test_id_beside_image(photos, catalogue, tmp_path):
    rows = catalogue.rename(columns={"filename": "image"})
    rows.insert(0, "id", range(500, 530))
    assert read_table(written(tmp_path, rows), photos).attributes == ["neck", "pattern"]


@pytest.mark.parametrize("written_as", [
    lambda name, folder: name.removesuffix(".jpg"), lambda name, folder: name.upper(), lambda name, folder: f".\\{name}", lambda name,
                                        folder: f"./{name}",
    lambda name, folder: f"{folder}/{name}", lambda name, folder: f"images/{name}", lambda name, folder: f"C:\\shop\\photos\\{name}",
    lambda name, folder: f"https://cdn.example.com/w_800/{name}?v=2", lambda name, folder: name.replace(".jpg", ".jpeg"),
    lambda name, folder: f"file://{folder}/{name}", lambda name, folder: f"/home/someone/{name}",
])
def test_spellings_of_file_names(photos, catalogue, tmp_path, written_as):
    rows = catalogue.assign(filename=[written_as(name, photos) for name in catalogue.filename])
    found = read_table(written(tmp_path, rows), photos)
    assert list(found.rows.filename) == list(catalogue.filename)
    assert rows.filename[0].startswith("./") or any("file names" in note for note in found.notes)


def test_names_that_are_no_files(photos, catalogue, tmp_path):
    rows = pd.concat([catalogue, pd.DataFrame(dict(filename=["shirt-00000-l.jpg", "../up.jpg", "https://x.example/none.jpg", ""],
                                                   neck="polo"))])
    found = read_table(written(tmp_path, rows), photos)
    assert len(found.rows) == 30 and list(found.dropped.line) == [32, 33, 34, 35]
    wanted = ["nearest name is shirt-00000-", "leads out", "download", "no file name"]
    for reason, words in zip(found.dropped.reason, wanted): assert words in reason


def test_two_files_fit(photos, catalogue, tmp_path):
    folder = tmp_path / "images"
    shutil.copytree(photos, folder)
    shutil.copy(folder / "shirt-00000-1.jpg", folder / "shirt-00000-1.png")
    rows = catalogue.assign(filename=catalogue.filename.str.removesuffix(".jpg"))
    found = read_table(written(tmp_path, rows), folder)
    assert len(found.rows) == 29 and found.dropped.reason[0].startswith("several files fit: shirt-00000-1.jpg, shirt-00000-1.png")


def test_two_spellings_are_one_photo(photos, catalogue, tmp_path):
    again = catalogue.head(3).assign(filename=["./shirt-00000-1.jpg", "SHIRT-00000-2.JPG", "shirt-00000-3"],
                                     neck=["hood", "round", "round"])
    found = read_table(written(tmp_path, pd.concat([catalogue, again])), photos)
    assert len(found.rows) == 30 and list(found.dropped.reason) == ["conflicting duplicate: neck round or hood", "exact duplicate",
                                                                    "exact duplicate"]


def test_labels_that_are_one_label(photos, catalogue, tmp_path, command):
    rows = catalogue.copy()
    rows.loc[:6, "neck"] = ["Round", "ROUND", "round ", "v neck", "v_neck", "V-Neck", "po\u00adlo"]
    rows["printed"] = ["True", "TRUE", "true", "False", "FALSE"]*6
    csv = written(tmp_path, rows)
    result = command("analyze", "--csv_path", csv, "--img_dir", photos, "--out", tmp_path / "a")
    assert result.status == 0 and any("look alike" in note and "neck" in note for note in result.notes)
    assert re.search(r"printed: False 12, True 18", result.out)
    merged = read_table(csv, photos, labels_map=tmp_path / "a/labels_map.csv")
    assert set(merged.rows.neck) == set(LABELS["neck"]) and not any("look alike" in note for note in merged.notes)


def test_placeholders_are_gaps_unless_they_are_mapped(photos, catalogue, tmp_path):
    rows = catalogue.copy()
    rows.loc[:4, "neck"] = ["None", "-", "?", "Unknown", "N.A."]
    found = read_table(written(tmp_path, rows), photos)
    assert found.rows.neck.isna().sum() == 5
    noted(found, "neck", "'None'", "5 labels")
    (tmp_path / "map.csv").write_text("attribute,label,use\nneck,None,none\nneck,hood,\n")
    mapped = read_table(written(tmp_path, rows), photos, labels_map=tmp_path / "map.csv").rows.neck
    assert (mapped == "none").sum() == 1 and "hood" not in set(mapped)


@pytest.mark.parametrize("lists", [["solid|striped", "striped | dotted"], ["['solid', 'striped']", '["striped"]'],
                                   ["solid; striped", "solid;dotted"]])
def test_cells_that_hold_lists_are_left_out(photos, catalogue, tmp_path, lists):
    rows = catalogue.copy()
    rows.loc[:1, "pattern"] = lists
    found = read_table(written(tmp_path, rows), photos)
    many = [cell for cell in lists if cell != '["striped"]']
    assert list(found.refused.label) == many and list(found.refused.line) == list(range(2, 2 + len(many)))
    assert found.rows.pattern.isna().sum() == len(many) and len(found.rows) == 30
    noted(found, "several labels", "labels_map")


def test_columns_that_hold_no_labels(photos, catalogue, tmp_path):
    n = range(30)
    rows = catalogue.assign(**{
        "": n, "sku": [f"SKU-{i // 3:04}" for i in n], "price": [9.95 + i // 2 for i in n], "title": [f"A tee no {i}" for i in n],
                               "amount": [f"{i * 37},50 €" for i in n],
        "shop": [f"https://shop.example/{i // 9}" for i in n], "made": [f"2024-01-{i + 1:02}" for i in n], "neck_confidence": 0.9,
                               "colour": "", "is_valid": "",
    })
    found = read_table(written(tmp_path, rows), photos)
    assert found.attributes == ["neck", "pattern"]
    kinds = {"sku": "identifier", "price": "number", "title": "title", "amount": "number", "shop": "url", "made": "date", "colour": "empty"}
    assert kinds.items() <= found.kinds.items()
    noted(found, "sku (identifiers)", "price (numbers)", "title (text)", "attributes overrules")
    assert read_table(written(tmp_path, rows), photos, ["sku"]).attributes == ["sku"]
    (tmp_path / "names.json").write_text('{"sku": {"SKU-0001": "first"}}')
    assert read_table(written(tmp_path, rows), photos, names=tmp_path / "names.json").attributes == ["neck", "pattern", "sku"]


def test_long_format_is_refused_with_the_way_out(photos, catalogue, tmp_path):
    long = catalogue.melt("filename", var_name="attribute")
    with pytest.raises(InputError, match=r"long format.*pivot\(index='filename', columns='attribute', values='value'\)"):
        read_table(written(tmp_path, long), photos)


def test_one_hot_columns_are_attributes(photos, catalogue, tmp_path):
    hot = pd.get_dummies(catalogue.neck, dtype=int)
    assert read_table(written(tmp_path, catalogue[["filename"]].join(hot)), photos).attributes == list(hot)


def test_names_of_labels_that_do_not_occur(photos, catalogue, tmp_path):
    (tmp_path / "names.json").write_text(json.dumps({"neck": {"00": "crew"}, "pattern": {"solid": "plain", "dotted": "plain"}}),
                                         encoding="utf-8-sig")
    found = read_table(written(tmp_path, catalogue), photos, names=tmp_path / "names.json")
    noted(found, "neck has none of the labels 00", "henley")
    noted(found, "several labels of pattern are called plain")


def test_corrections_cannot_make_classes_by_mistake(refused, photos, catalogue, tmp_path):
    csv, review = written(tmp_path, catalogue), tmp_path / "review.csv"
    review.write_text("filename;neck;pattern\nshirt-00000-1;POLO;\nSHIRT-00000-2.jpg;vneck;strypes\nshirt-00000-3.jpg;?;05-Apr\n")
    words = "train", "--run_name", "a", "--csv_path", csv, "--img_dir", photos, "--corrections", review, *QUICK
    refused(*words, says=["line 3: pattern 'strypes' (nearest: 'striped')", "line 4: pattern '05-Apr'", "new_classes"])
    table = read_table(csv, photos)
    assert "strypes" in set(correct_table(table, review, new_classes=True).rows.pattern)
    review.write_text(review.read_text().replace("strypes", "Striped").replace("05-Apr", ""))
    corrected = correct_table(table, review)
    assert list(corrected.rows.neck[:3]) == ["polo", "v-neck", "round"] and corrected.rows.pattern[1] == "striped"
    noted(corrected, "neck 2, pattern 1")


def test_corrections_find_photos_in_sub_folders(photos, catalogue, tmp_path):
    for folder in ("tops", "knit"): shutil.copytree(photos, tmp_path / "images" / folder)
    shutil.copy(photos / "shirt-00009-3.jpg", tmp_path / "images/knit/shirt-00000-2.jpg")
    (tmp_path / "images/knit/shirt-00000-1.jpg").unlink()
    rows = pd.concat([catalogue.assign(filename="tops/" + catalogue.filename),
                      catalogue[1:].assign(filename="knit/" + catalogue.filename[1:])])
    table, review = read_table(written(tmp_path, rows), tmp_path / "images"), tmp_path / "review.csv"
    digest = hashlib.sha256((photos / "shirt-00009-3.jpg").read_bytes()).hexdigest()
    review.write_text(f"filename,neck,sha256\nshirt-00000-1.jpg,hood,\nshirt-00000-2.jpg,hood,{digest}\nshirt-00000-3.jpg,hood,\n")
    corrected = correct_table(table, review)
    changed = corrected.rows.filename[corrected.rows.neck != table.rows.neck]
    assert list(changed) == ["tops/shirt-00000-1.jpg", "knit/shirt-00000-2.jpg"]
    assert "several files fit" in corrected.dropped.reason.iloc[-1]


@pytest.mark.parametrize("opened, closed", [
    (1, None), (1, 20), (5, 20), (30, None)], ids=["first row", "first row, closed later", "closed later", "last row"])
@pytest.mark.parametrize("end", ["", ","], ids=["full width", "surplus comma"])
def test_a_stray_quote_costs_no_row(photos, catalogue, tmp_path, opened, closed, end):
    lines = [line + end for line in catalogue.assign(title="tee").to_csv(index=False).splitlines()]
    lines[0] = lines[0].removesuffix(",")
    lines[opened] = lines[opened].replace(",tee", ',"15 inch')
    if closed: lines[closed] = lines[closed].replace(",tee", ',"tee"')
    (tmp_path / "mine.csv").write_text("\n".join(lines))
    found = read_table(tmp_path / "mine.csv", photos, other_columns=["title"])
    assert found.rows[["filename", "neck", "pattern"]].to_numpy().tolist() == catalogue.to_numpy().tolist()
    noted(found, "quote", f"line {opened + 1}")


def test_text_of_several_lines_is_believed(photos, catalogue, tmp_path):
    csv = written(tmp_path, catalogue.assign(description='Sizes:\n38, 40, 42, 44\n"Wash" cold'))
    found = read_table(csv, photos)
    assert len(found.rows) == 30 and found.dropped.empty and not any("quote" in note for note in found.notes)


def test_lines_with_too_few_cells_are_named(photos, catalogue, tmp_path):
    lines = catalogue.assign(title="tee").to_csv(index=False).splitlines()
    lines[2] = lines[2].replace(",solid", " solid")
    (tmp_path / "mine.csv").write_text("\n".join(lines))
    noted(read_table(tmp_path / "mine.csv", photos), "1 line has fewer cells", "(3)")


@pytest.mark.parametrize("word, encoding", [("круглый", "cp1251"), ("圆领", "gb18030"), ("丸首", "shift_jis"), ("라운드", "euc_kr")])
def test_other_scripts_have_to_be_named(photos, catalogue, tmp_path, word, encoding):
    csv = written(tmp_path, catalogue.replace("round", word), encoding)
    with pytest.raises(InputError, match="name its encoding"): read_table(csv, photos)
    assert word in set(read_table(csv, photos, csv_format=CsvFormat(encoding=encoding)).rows.neck)


def test_names_with_dots_folders_of_the_same_name_and_other_folders(samples, tmp_path):
    folder, photo = tmp_path / "images", samples.images / "shirt-00001-1.jpg"
    names = ["polo.jpg", "polo.front.jpg", "1001.jpg", "1001/inside.jpg", "b/front.jpg", "c/front.jpg", "two  blanks.jpg"]
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(photo, folder / name)
    cells = ["polo", "polo.front", "1001", "data/images/1001/inside", "\u200bb\u2044".replace("\u2044", "/") + "front", "two blanks.jpg"]
    rows = pd.DataFrame(dict(filename=cells, neck=list("ababab")))
    found = read_table(written(tmp_path, rows), folder)
    assert list(found.rows.filename) == ["polo.jpg", "polo.front.jpg", "1001.jpg", "1001/inside.jpg", "b/front.jpg", "two  blanks.jpg"]
    wrong = pd.DataFrame(dict(filename=["https://x.example/d/front.jpg", "C:\\d\\front.jpg", "polo.jpg|1001.jpg", "polo"],
                              neck=list("abab")))
    assert list(read_table(written(tmp_path, wrong), folder).rows.filename) == ["polo.jpg"]


def test_two_folders_that_are_not_there(photos, catalogue, tmp_path):
    rows = catalogue.assign(filename="a/" + catalogue.filename)
    assert len(read_table(written(tmp_path, rows), photos).rows) == 30
    rows = pd.concat([rows, catalogue.head(2).assign(filename="b/" + catalogue.filename[:2])])
    found = read_table(written(tmp_path, rows), photos)
    assert len(found.rows) == 28 and set(found.dropped.reason.str[:22]) == {"names from several fol"}


def test_columns_with_one_value_do_not_dilute_the_mean(photos, catalogue, tmp_path):
    rows = catalogue.assign(vendor="ours", price_eur=[9.5, 8.5] * 15, launch=["01.03.2023", "01.04.2023"] * 15)
    found = read_table(written(tmp_path, rows), photos)
    assert found.attributes == ["neck", "pattern"] and found.kinds == {"vendor": "constant", "price_eur": "number", "launch": "date"}
    assert read_table(written(tmp_path, rows[["filename", "vendor"]]), photos).attributes == ["vendor"]


def test_a_named_file_column_beside_filename(photos, catalogue, tmp_path):
    rows = catalogue.rename(columns={"filename": "picture"}).assign(filename="Polo shirt")
    for source in (written(tmp_path, rows), rows):
        assert len(read_table(source, photos, ["neck"], csv_format=CsvFormat("picture")).rows) == 30


def test_a_map_of_labels_is_used_as_a_whole_or_refused(photos, catalogue, tmp_path):
    path = tmp_path / "map.csv"
    for text, words in [("neck,polo, crew,crew\n", "line 2: too many cells"), ("neck,polo\n", "line 2"),
                        ('neck,"polo,crew\nneck,hood,v\n', "line 2")]:
        path.write_text("attribute,label,use\n" + text)
        with pytest.raises(InputError, match=words): read_table(written(tmp_path, catalogue), photos, labels_map=path)
    path.write_text("attribute,label,use\n")
    assert len(read_table(written(tmp_path, catalogue), photos, labels_map=path).rows) == 30


def test_the_spelling_of_a_list_changes_no_tag(command, photos, catalogue, trained, tmp_path):
    tags = []
    for i, names in enumerate((catalogue.filename, catalogue.filename.str.upper(), "./" + catalogue.filename)):
        names.to_csv(tmp_path / f"list{i}.csv", index=False)
        words = "--model", trained, "--img_dir", photos, "--csv_path", tmp_path / f"list{i}.csv", "--out_csv", tmp_path / f"tags{i}.csv"
        assert command("tag", *words, "--group_pattern", r"(shirt-\d+)").status == 0
        tags.append(pd.read_csv(tmp_path / f"tags{i}.csv", dtype=str))
        assert list(tags[-1].filename) == list(names)
    assert all(tags[0].drop(columns="filename").equals(other.drop(columns="filename")) for other in tags[1:])


def test_no_photo_of_the_table_is_there(refused, photos, catalogue, tmp_path):
    csv = written(tmp_path, catalogue.assign(filename="else-" + catalogue.filename))
    for command in (["analyze", "--out", tmp_path / "out"], ["train", "--run_name", "a", "--runs_dir", tmp_path / "runs", *QUICK]):
        refused(*command, "--csv_path", csv, "--img_dir", photos, says=["none of its 30 rows", "else-shirt", "nearest name"])
    assert not (tmp_path / "out").exists() and not (tmp_path / "runs/a").exists()
