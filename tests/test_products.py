"Which photos show the same product, as file names, columns and photos reveal it, and what is reported."
import random
import time
import uuid
import warnings
from dataclasses import replace

import pandas as pd
import pytest
from conftest import QUICK

from deep_fashion.data.products import find_products, products_of
from deep_fashion.data.split import split_table
from deep_fashion.data.table import Table, read_table

VIEWS = ["front", "back", "side"]
COLOURS, GARMENTS = ["red", "blue", "green", "pink"], ["tee", "polo", "coat", "skirt", "dress"]
SCHEMES = {
    "number": lambda p, k: f"{p:05}_{k}.jpg",
    "number and title": lambda p, k: f"blue-polo-shirt-{p:07}-{k + 1}.jpg",
    "letter": lambda p, k: f"p{p:04}_{'abc'[k]}.jpg",
    "letter without separator": lambda p, k: f"SKU{p:04}{'ABC'[k]}.jpg",
    "view": lambda p, k: f"{p:05}-{VIEWS[k]}.jpg",
    "view in capitals": lambda p, k: f"{p:05}_{VIEWS[k].upper()}.JPG",
    "camel case": lambda p, k: f"{p:05}{VIEWS[k].title()}.jpg",
    "German view": lambda p, k: f"{p:05}_{['vorne', 'hinten', 'Rückseite'][k]}.jpg",
    "French view": lambda p, k: f"REF{p:04}-{['face', 'dos', 'côté'][k]}.jpg",
    "folder": lambda p, k: f"{p:05}/{k}.jpg",
    "folder with backslash": lambda p, k: f"{p:05}\\{k}.jpg",
    "folder and view": lambda p, k: f"{p:05}/{VIEWS[k]}.jpg",
    "folder and camera": lambda p, k: f"SKU{p:05}/IMG_{3 * p + k:04}.jpg",
    "folder and hash": lambda p, k: f"SKU{p:05}/{uuid.UUID(int=random.Random(3 * p + k).getrandbits(128))}.jpg",
    "folder per view": lambda p, k: f"{VIEWS[k]}/{p:05}.jpg",
    "folder per part": lambda p, k: f"{['train', 'val', 'test'][k]}/{p:05}_{k}.jpg",
    "DeepFashion In-shop": lambda p, k: f"WOMEN/Dresses/id_{p:08}/02_{k}_{VIEWS[k]}.jpg",
    "code": lambda p, k: f"AB{p:03}X_{k}.jpg",
    "parentheses": lambda p, k: f"SKU {p:04} ({k}).jpg",
    "copies": lambda p, k: f"{p:05}{['', ' - Copy', ' - Copy (2)'][k]}.jpg",
    "first without number": lambda p, k: f"P{p:05}{['', '_1', '_2'][k]}.jpg",
    "colour": lambda p, k: f"{p:05}_{k}_blue.jpg",
    "view and colour": lambda p, k: f"{p:05}_{VIEWS[k]}_navy.jpg",
    "size": lambda p, k: f"{p:05}_{k}_800x600.jpg",
    "high resolution": lambda p, k: f"{p:05}_{k}@2x.png",
    "sizes": lambda p, k: f"{p:05}_{['large', 'thumb', 'small'][k]}.jpg",
    "the same end": lambda p, k: f"{p:05}_{'abc'[k]}_1000.jpg",
    "query": lambda p, k: f"https://cdn.example.com/{p:05}_{k}.jpg?v=1&w=200",
    "title": lambda p, k: f"{COLOURS[p % 4]}-cotton-{GARMENTS[p // 4 % 5]}-style-{chr(97 + p // 20)}x-{k}.jpg",
    "padded": lambda p, k: f"{p:05}-{k + 1:03}.jpg",
    "camera with view": lambda p, k: f"IMG_{p:04}_{VIEWS[k]}.jpg",
}
DAYS = pd.date_range("2023-01-01", periods=120)
COUNTERS = {
    "date": [f"2024-01-{i:04}.jpg" for i in range(100)],
    "days": [f"shirt_{day:%Y-%m-%d}.jpg" for day in DAYS],
    "days with numbers": [f"{day:%Y%m%d}_{k}.jpg" for day in DAYS for k in range(3)],
    "German days": [f"{day:%d.%m.%Y}_{k}.jpg" for day in DAYS for k in range(3)],
    "times": [f"IMG_{day:%Y%m%d}_{101112 + i}.jpg" for i, day in enumerate(DAYS)],
    "camera": [f"IMG_{i:04}.jpg" for i in range(40)],
    "two cameras": [f"{camera}_{i:04}.jpg" for camera in ("IMG", "DSC") for i in range(40)],
    "counter": [f"shirt_{i}.jpg" for i in range(1, 91)],
    "short counter": [f"shirt_{i}.jpg" for i in range(1, 31)],
    "counter per class": [f"{name}_{i}.jpg" for name in ("shirt", "polo", "dress") for i in range(40)],
    "folder per class": [f"{name}/{i}.jpg" for name in ("shirts", "polos", "dresses") for i in range(40)],
    "numbers": [f"{i}.jpg" for i in range(1, 501)],
    "ids": [f"{15970 + 3 * i}.jpg" for i in range(200)],
    "hashes": [f"{random.Random(i).getrandbits(32):08x}.jpg" for i in range(500)],
    "sharded hashes": [f"{i % 256:02x}/{i % 256:02x}{random.Random(i).getrandbits(64):016x}.jpg" for i in range(500)],
    "styles": [f"{1100 + i}-{random.Random(i * 7 + k).randrange(1, 100):02}.jpg" for i in range(60) for k in range(4)],
    "styles of a collection": [f"1163-{i:02}.jpg" for i in range(1, 91)],
    "titles": [f"{colour} {cloth} {garment}.jpg" for colour in COLOURS for cloth in ("linen", "wool") for garment in GARMENTS],
}


def files(names): return pd.DataFrame(dict(filename=names))


@pytest.mark.parametrize("scheme", SCHEMES)
def test_products_of_naming_schemes(scheme):
    pairs = [(SCHEMES[scheme](p, k), p) for p in range(100) for k in range(3)]
    random.Random(0).shuffle(pairs)
    rows = files([name for name, _ in pairs])
    found, true = products_of(rows), pd.Series([p for _, p in pairs])
    assert found.nunique() == true.nunique() == 100
    assert found.groupby(true).nunique().max() == 1


@pytest.mark.parametrize("kind", COUNTERS)
def test_names_that_show_no_products(kind):
    names = list(dict.fromkeys(COUNTERS[kind]))
    assert products_of(files(names)).nunique() == len(names)


def test_names_of_a_catalogue_are_grouped_as_ever(real_data):
    names = pd.read_csv(real_data / "flixstock" / "attributes.csv").filename
    digits = names.str.extract(r"(\d+)[-_]\d+\.\w+$")[0]
    assert (products_of(files(names)) == digits.fillna(names)).all()


def test_many_names_take_seconds():
    names = [f"p{i // 4:07}_{'abcd'[i % 4]}.jpg" for i in range(100_000)]
    start = time.perf_counter()
    assert products_of(files(names)).nunique() == 25_000
    assert time.perf_counter() - start < 20


@pytest.fixture
def renamed(samples, tmp_path):
    "A table of 30 sample photos, no two of them alike, under other names."
    def rename(name_of, n=30, **columns):
        read = read_table(samples.csv, samples.images)
        names = [name for name in read.rows.filename if name.startswith("shirt")][:n]
        rows = read.rows.set_index("filename").loc[names].reset_index()
        for i, name in enumerate(names): (tmp_path / name_of(i)).write_bytes((samples.images / name).read_bytes())
        rows = rows.assign(filename=[name_of(i) for i in range(n)], **columns)
        return replace(read, rows=rows, img_dir=tmp_path)
    return rename


def test_columns_come_before_names_and_titles_after_them(renamed):
    table = renamed(lambda i: f"{i // 2:05}_{i % 2}.jpg", sku=[f"S{i // 3}" for i in range(30)], title=[f"Tee {i // 5}" for i in range(30)])
    assert find_products(replace(table, kinds=dict(sku="identifier"))).of_row.nunique() == 10
    assert find_products(replace(table, kinds=dict(title="title"))).of_row.nunique() == 15
    unnamed = replace(table, rows=table.rows.assign(filename=[f"{1000 + 7 * i}.jpg" for i in range(30)]))
    assert find_products(replace(unnamed, kinds=dict(title="title"))).of_row.nunique() == 6


@pytest.mark.parametrize("values", [["same"] * 30, [f"S{i}" for i in range(30)], [f"S{i // 2}" if i < 10 else "" for i in range(30)]])
def test_columns_that_do_not_repeat_plausibly_are_left_alone(renamed, values):
    table = renamed(lambda i: f"{i // 2:05}_{i % 2}.jpg", sku=values)
    found = find_products(replace(table, kinds=dict(sku="identifier")))
    assert found.of_row.nunique() == 15 and "file names" in found.method


def test_near_duplicates_are_one_product_where_nothing_else_is_known(renamed):
    table = renamed(lambda i: f"{1000 + 7 * i}.jpg")
    first, second = table.rows.filename[:2]
    (table.img_dir / second).write_bytes((table.img_dir / first).read_bytes())
    found = find_products(table)
    assert found.of_row[0] == found.of_row[1] and "--group_column" in found.note
    assert found.of_row.nunique() < 30


def test_photos_without_products_are_reported(renamed):
    with pytest.warns(UserWarning, match="--group_column or --group_pattern"): split_table(renamed(lambda i: f"{1000 + 7 * i}.jpg"))
    known = renamed(lambda i: f"{i // 2:05}_{i % 2}.jpg")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        split_table(known)


@pytest.mark.parametrize("settings, says", [
    (dict(group_column="distinct"), "different for every photo"),
    (dict(group_column="same"), "30 of the photos"),
    (dict(group_column="empty"), "the column is empty"),
    (dict(group_column="few"), "only 4 of the photos"),
    (dict(group_pattern="^(x+)-"), "'00000_0.jpg'"),
    (dict(group_pattern=r"(\.jpg)"), "30 of the photos"),
])
def test_implausible_settings_are_reported(settings, says):
    columns = dict(distinct=range(30), same="a", empty="", few=["a", "a", "b", "b"] + [""] * 26)
    rows = files([f"{i // 2:05}_{i % 2}.jpg" for i in range(30)]).assign(**columns)
    assert says in find_products(Table(rows, [], None), **settings).doubt


def test_plausible_settings_raise_no_doubt():
    rows = files([f"{i // 2:05}_{i % 2}.jpg" for i in range(30)]).assign(style=[i // 3 for i in range(30)])
    assert find_products(Table(rows, [], None), "style").doubt is None
    assert find_products(Table(rows, [], None), group_pattern=r"^(\d+)_").doubt is None


def test_training_reports_how_products_were_recognised(command, samples, tmp_path):
    words = "--csv_path", samples.csv, "--img_dir", samples.images, "--runs_dir", tmp_path / "runs", *QUICK
    result = command("train", "--run_name", "a", *words)
    assert result.status == 0
    assert [line for line in result.lines if "products, recognised by file names, such as shirt-" in line]
