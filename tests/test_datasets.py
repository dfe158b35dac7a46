"Public data sets in miniature, in the layouts in which they are published."
import json
import shutil
from pathlib import Path

import pandas as pd
import pytest

from deep_fashion.core import InputError
from deep_fashion.data.samples import SAMPLE_CLASSES
from deep_fashion.data.table import read_table

PATTERNS, SLEEVES = SAMPLE_CLASSES["pattern"], SAMPLE_CLASSES["sleeve_length"]


@pytest.fixture
def drawn(samples):
    "Name, code of the pattern and code of the sleeve length of 40 photos."
    rows = pd.read_csv(samples.csv, dtype=str, keep_default_na=False).drop_duplicates("filename")
    rows = rows[rows.pattern.isin(list("01234")) & rows.sleeve_length.isin(list("012"))]
    rows = rows[[(samples.images / name).exists() and name != "broken.jpg" for name in rows.filename]]
    assert len(rows) > 10
    return [(row.filename, int(row.pattern), int(row.sleeve_length)) for row in rows.itertuples()]


def write_list(path, header, lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{len(lines)}\n{header}\n" + "".join(f"{line}\n" for line in lines))


def write_fine(root, drawn):
    "`Anno_fine` with all six types, as published; the test part has no labels."
    types = {1: PATTERNS, 2: SLEEVES, 3: ["maxi_length", "no_dress"], 4: ["crew_neckline"], 5: ["denim", "cotton"], 6: ["tight"]}
    fine = root / "Anno_fine"
    classes = [f"{name}     {kind}" for kind, names in types.items() for name in names]
    write_list(fine / "list_attr_cloth.txt", "attribute_name   attribute_type", classes)
    write_list(fine / "list_category_cloth.txt", "category_name  category_type", ["Anorak  1", "Tee  1", "Dress  3"])
    for part, rows in (("train", drawn[:-5]), ("val", drawn[-5:]), ("test", drawn[:0])):
        files = {"": "img/Drawn_Tee/{0} \n", "_attr": "{1} {2} 1 0 1 0 \n", "_cate": "2\n", "_bbox": "001 002 100 150\n"}
        for end, line in files.items():
            if rows: (fine / f"{part}{end}.txt").write_text("".join(line.format(*row) for row in rows))
    (fine / "test.txt").write_text("img/Drawn_Tee/unlabelled.jpg\n")


def write_coarse(root, drawn, folder="Anno_coarse"):
    "`Anno_coarse`: a positive pattern (texture) and sleeve (part) each; the first photo has two positive patterns."
    names = [*PATTERNS, *SLEEVES, "a-line", "boho chic"]
    kinds = [1] * len(PATTERNS) + [4] * len(SLEEVES) + [3, 5]
    write_list(root / folder / "list_attr_cloth.txt", "attribute_name   attribute_type", [f"{o}  {k}" for o, k in zip(names, kinds)])
    lines = []
    for i, (name, pattern, sleeve) in enumerate(drawn):
        positive = {PATTERNS[pattern], SLEEVES[sleeve], "a-line" if i % 2 else "boho chic"}
        if i == 0: positive |= set(PATTERNS[:2])
        lines.append(f"img/Drawn_Tee/{name}" + " " * 20 + " ".join(" 1" if o in positive else "-1" for o in names))
    write_list(root / folder / "list_attr_img.txt", "image_name  attribute_labels", lines)
    write_list(root / folder / "list_category_cloth.txt", "category_name  category_type", ["Anorak  1", "Tee  1", "Dress  3"])
    of_photos = [f"img/Drawn_Tee/{name}   {1 + i % 3}" for i, (name, *_) in enumerate(drawn)]
    write_list(root / folder / "list_category_img.txt", "image_name  category_label", of_photos)
    parts = [f"img/Drawn_Tee/{name}   {'val' if i % 4 == 0 else 'train'}" for i, (name, *_) in enumerate(drawn)]
    write_list(root / "Eval" / "list_eval_partition.txt", "image_name  evaluation_status", parts)


@pytest.fixture
def deepfashion(tmp_path, samples, drawn):
    root = tmp_path / "data" / "Category and Attribute Prediction Benchmark"
    shutil.copytree(samples.images, root / "Img" / "img" / "Drawn_Tee")
    write_fine(root, drawn)
    return root


@pytest.mark.parametrize("given", ["", "Anno_fine", ".."])
@pytest.mark.parametrize("img_dir", ["", "Img", "Img/img", None])
def test_fine_labels_of_deepfashion(deepfashion, drawn, given, img_dir):
    table = read_table(deepfashion / given, None if img_dir is None else deepfashion / img_dir)
    assert table.attributes == ["texture", "sleeve_length", "dress_length", "neckline", "fabric", "fit", "category"]
    assert list(table.rows.texture) == [str(pattern) for _, pattern, _ in drawn] and table.dropped.empty
    assert table.name("sleeve_length", table.rows.sleeve_length[0]) == SLEEVES[drawn[0][2]]
    assert set(table.rows.category) == {"Tee"} and dict(table.rows.part.value_counts())["val"] == 5


def test_lists_from_windows_and_one_list_for_all(deepfashion, drawn):
    for path in (deepfashion / "Anno_fine").iterdir():
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n") + b"\r\n")
    table = read_table(deepfashion / "Anno_fine" / "list_attr_cloth.txt", deepfashion)
    assert len(table.rows) == len(drawn) and table.dropped.empty


def test_training_on_the_published_parts(deepfashion, command):
    quick = ["--no-pretrained", "--size", "48", "-bs", "8", "-nw", "0", "-ep", "1", "--no-report"]
    result = command("train", "--run_name", "fine", "--csv_path", deepfashion, "--img_dir", deepfashion, "--valid_column", "part",
                     "--attributes", "texture,sleeve_length", *quick)
    assert result.status == 0, result.err
    assert json.loads(Path("runs/fine/metrics.json").read_text())["mean"]["photos"] == 5


def test_coarse_labels_of_deepfashion(deepfashion, drawn):
    shutil.rmtree(deepfashion / "Anno_fine")
    write_coarse(deepfashion, drawn)
    with pytest.warns(UserWarning, match="several positive classes.*texture 1$"): table = read_table(deepfashion, deepfashion)
    assert table.attributes == ["texture", "part", "shape", "style", "category"]
    assert list(table.rows.texture) == [None, *(PATTERNS[pattern] for _, pattern, _ in drawn[1:])]
    assert list(table.rows.part) == [SLEEVES[sleeve] for *_, sleeve in drawn]
    assert list(table.rows["style"][:2].fillna("")) == ["boho chic", ""] and list(table.rows.category[:2]) == ["Anorak", "Tee"]
    assert list(table.rows.partition[:2]) == ["val", "train"]


@pytest.mark.filterwarnings("ignore:.*several positive")
def test_coarse_labels_in_the_older_folder_and_cut(deepfashion, drawn):
    shutil.rmtree(deepfashion / "Anno_fine")
    write_coarse(deepfashion, drawn, "Anno")
    path = deepfashion / "Anno" / "list_attr_img.txt"
    path.write_text(path.read_text()[:-20])
    table = read_table(deepfashion, deepfashion)
    assert len(table.rows) == len(drawn) - 1
    assert table.dropped.line.tolist() == [len(drawn) + 2] and "labels; expected 10" in table.dropped.reason[0]


def test_fine_labels_come_first_and_the_others_are_named(deepfashion, drawn, command):
    write_coarse(deepfashion, drawn)
    result = command("analyze", "--csv_path", deepfashion, "--img_dir", deepfashion, "--out", "out")
    assert result.status == 0 and "sleeve_length: " in result.out + result.err
    assert any("Anno_fine is read, not" in line and "Anno_coarse" in line for line in result.notes)


def test_other_folders_are_refused_with_what_was_found(tmp_path, refused, deepfashion):
    (tmp_path / "other" / "annos").mkdir(parents=True)
    (tmp_path / "other" / "readme.txt").touch()
    says = ["expected Anno_fine", "list_attr_img.txt", "found annos/, readme.txt"]
    refused("analyze", "--csv_path", tmp_path / "other", "--img_dir", tmp_path, "--out", "out", says=says)
    (tmp_path / "other" / "table.csv").touch()
    says = ["name the table itself", str(tmp_path / "other" / "table.csv")]
    refused("analyze", "--csv_path", tmp_path / "other", "--img_dir", tmp_path, "--out", "out", says=says)
    (deepfashion / "Anno_fine" / "train_cate.txt").write_text("2\n")
    refused("analyze", "--csv_path", deepfashion, "--img_dir", deepfashion, "--out", "out", says=["train.txt", "train_cate.txt labels 1"])


def ontology():
    kinds = [(0, "shirt, blouse", "upperbody"), (1, "top, t-shirt, sweatshirt", "upperbody"), (23, "shoe", "legs and feet"),
             (31, "sleeve", "garment parts")]
    words = [(i, f"{name} (pattern)", "textile pattern") for i, name in enumerate(PATTERNS)]
    words += [(100 + i, f"{name} (length)", "length") for i, name in enumerate(SLEEVES)]
    keys = "id", "name", "supercategory"
    return dict(categories=[dict(zip(keys, o), level=2, taxonomy_id=f"cat{o[0]}") for o in kinds],
                attributes=[dict(zip(keys, o), level=1, taxonomy_id=f"att{o[0]}") for o in words])


def outlines(drawn):
    "Position of the photo, category, attributes and box of each outline; the last photo shows a shoe only."
    for i, (_, pattern, sleeve) in enumerate(drawn[:-1]):
        yield i, 1, [pattern], (20, 40, 100, 120)
        yield i, 0, [(pattern + 1) % 5], (50, 90, 20, 20)
        yield i, 31, [100 + sleeve], (20, 45, 20, 40)
        yield i, 31, [100 + sleeve], (100, 45, 20, 40)
        yield i, 23, [], (0, 0, 144, 192)
    yield len(drawn) - 1, 23, [], (0, 0, 60, 60)


def check_garments(table, drawn):
    assert table.attributes == ["category", "sleeve_length", "textile_pattern"]
    assert list(table.rows.textile_pattern) == [f"{PATTERNS[pattern]} (pattern)" for _, pattern, _ in drawn[:-1]]
    assert list(table.rows.sleeve_length) == [f"{SLEEVES[sleeve]} (length)" for *_, sleeve in drawn[:-1]]
    assert set(table.rows.category) == {"top, t-shirt, sweatshirt"}
    assert len(table.dropped) == 1 and "no main garment" in table.dropped.reason[0]


@pytest.fixture
def fashionpedia(tmp_path, samples, drawn):
    root = tmp_path / "Fashionpedia"
    shutil.copytree(samples.images, root / "train")
    images = [dict(id=500 + i, width=144, height=192, file_name=name, license=1, isstatic=1, kaggle_id=f"{i:032x}", original_url="",
                   time_captured="") for i, (name, *_) in enumerate(drawn)]
    annotations = [dict(id=n, image_id=500 + i, category_id=category, attribute_ids=attributes, bbox=list(box), area=box[2] * box[3],
                        iscrowd=0, segmentation=[[0, 0, 9, 0, 9, 9]]) for n, (i, category, attributes, box) in enumerate(outlines(drawn))]
    whole = dict(info=dict(year=2020), licenses=[], images=images, annotations=annotations, **ontology())
    (root / "instances_attributes_train2020.json").write_text(json.dumps(whole))
    return root


@pytest.mark.parametrize("given", ["instances_attributes_train2020.json", ""])
@pytest.mark.parametrize("img_dir", ["train", "", None])
def test_fashionpedia(fashionpedia, drawn, given, img_dir):
    check_garments(read_table(fashionpedia / given, None if img_dir is None else fashionpedia / img_dir), drawn)


@pytest.mark.parametrize("change, says", [
    (dict(annotations=[dict(imageId="1", labelId=["62", "17"])]), ["iMaterialist (Fashion) 2018", "CSV table"]),
    (dict(annotations=[dict(image_id=500, attribute_ids=[1])]), ["whole photos", "instances_attributes_*.json"]),
    (dict(annotations=[]), ["no list of images with annotations"]),
    (dict(attributes=[]), ["no id 0 among its attributes"]),
])
def test_other_json_is_refused(fashionpedia, refused, change, says):
    path = fashionpedia / "instances_attributes_train2020.json"
    (fashionpedia / "other.json").write_text(json.dumps({**json.loads(path.read_text()), **change}))
    refused("analyze", "--csv_path", fashionpedia / "other.json", "--img_dir", fashionpedia, "--out", "out", says=["other.json", *says])


def runs_of(box, height=192):
    "A box as pairs of start and length of runs of pixels, column by column, the first pixel being 1."
    x, y, w, h = box
    return " ".join(f"{column * height + y + 1} {h}" for column in range(x, x + w))


@pytest.mark.parametrize("year", [2019, 2020])
def test_imaterialist(tmp_path, samples, drawn, year):
    root = tmp_path / "iMaterialist"
    shutil.copytree(samples.images, root / "train")
    (root / "label_descriptions.json").write_text(json.dumps(dict(info={}, **ontology())))
    rows = []
    for i, category, attributes, box in outlines(drawn):
        row = dict(ImageId=drawn[i][0], EncodedPixels=runs_of(box), Height=192, Width=144, ClassId=category)
        if year == 2019: row["ClassId"] = "_".join(map(str, [category, *attributes]))
        else: row |= dict(ImageId=drawn[i][0].removesuffix(".jpg"), AttributesIds=",".join(map(str, attributes)))
        rows.append(row)
    pd.DataFrame(rows).to_csv(root / "train.csv", index=False)
    for given in ("train.csv", ""): check_garments(read_table(root / given, root / "train"), drawn)
    (root / "label_descriptions.json").unlink()
    with pytest.raises(InputError, match="train.csv.*put label_descriptions.json beside it"): read_table(root / "train.csv", root)


def test_fashion_product_images(tmp_path, samples, drawn, command):
    "Kaggle's styles.csv: the file name is an id without .jpg, and titles with commas are not quoted."
    root = tmp_path / "fashion-dataset"
    (root / "images").mkdir(parents=True)
    lines = ["id,gender,masterCategory,subCategory,articleType,baseColour,season,year,usage,productDisplayName"]
    for i, (name, pattern, sleeve) in enumerate(drawn, 15970):
        shutil.copy(samples.images / name, root / "images" / f"{i}.jpg")
        gender, colour = ("Men", "Women", "Boys", "Girls", "Unisex")[pattern], ("Navy Blue", "Blue", "NA")[sleeve]
        title = f"Turtle Check {gender} Shirt" + (", Pack of 2" if i % 7 == 0 else "")
        lines.append(f"{i},{gender},Apparel,Topwear,{('Shirts', 'Tshirts')[i % 2]},{colour},Fall,2011.0,Casual,{title}")
    (root / "styles.csv").write_text("\n".join(lines) + "\n")
    result = command("analyze", "--csv_path", root / "styles.csv", "--img_dir", root / "images", "--out", "out",
                     "--title_column", "productDisplayName", "--attributes", "gender,articleType,baseColour")
    ragged = sum(i % 7 == 0 for i in range(15970, 15970 + len(drawn)))
    assert result.status == 0 and f"{len(drawn) - ragged} photos can be used" in result.out
    assert any(f"{ragged} rows left out" in note and "too many cells" in note for note in result.notes)
