"Tables too large for careful work on every photo: Parquet, checks by header, near-duplicates by an index, features in a file."
import json
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from deep_fashion.core import InputError
from deep_fashion.data.hash_pairs import differing_bits, near_hashes
from deep_fashion.data.photo import header_fault, photo_fault
from deep_fashion.data.near_duplicates import duplicate_groups, similar_pairs
from deep_fashion.data.table import read_table
from deep_fashion.data.titles import indicative_words


@pytest.fixture
def parquet(samples, rows, tmp_path):
    "The sample table as Parquet, typed as a program would write it."
    pytest.importorskip("pyarrow")
    path = tmp_path / "table.parquet"
    shops = pd.Categorical([("a", None)[i % 2] for i in range(len(rows))])
    rows.replace("", None).assign(neck=pd.to_numeric(rows.neck, errors="coerce"), shop=shops).to_parquet(path)
    return path


def quietly(*arguments, **named):
    "The table and its notes."
    with pytest.warns(UserWarning): return read_table(*arguments, **named)


def test_parquet_gives_the_table_that_csv_gives(samples, rows, parquet):
    of_parquet = quietly(parquet, samples.images, names=samples.names)
    of_csv = quietly(samples.csv, samples.images, names=samples.names)
    assert of_parquet.attributes == of_csv.attributes
    assert of_parquet.rows[of_csv.rows.columns].equals(of_csv.rows)
    # Line 1 of a CSV file is its header.
    assert (of_parquet.dropped.line + 1).tolist() == of_csv.dropped.line.tolist()
    assert of_parquet.dropped.filename.tolist() == of_csv.dropped.filename.tolist()


@pytest.mark.parametrize(
    ("content", "name", "says"),
    [
        (lambda data: data[:-30], "cut.parquet", ["damaged", "cut.parquet"]),
        (lambda data: b"", "empty.parquet", ["empty"]),
        (lambda data: bytes(500), "zeros.parquet", ["no Parquet file"]),
        (lambda data: data[:4] + bytes(100), "start.parquet", ["damaged"]),
    ],
)
def test_damaged_parquet_is_refused_in_one_line(refused, samples, parquet, content, name, says):
    path = parquet.with_name(name)
    path.write_bytes(content(parquet.read_bytes()))
    refused("train", "--run_name", "x", "--csv_path", path, "--img_dir", samples.images, says=says)


def test_settings_of_csv_files_contradict_parquet(refused, samples, parquet):
    for option, value in (("--delimiter", ";"), ("--encoding", "cp1252")):
        refused("train", "--run_name", "x", "--csv_path", parquet, "--img_dir", samples.images, option, value, says=["Parquet", option[2:]])


def test_nested_columns_are_refused(refused, samples, rows, parquet):
    rows.assign(sizes=[["S", "M"]] * len(rows)).to_parquet(parquet)
    refused("train", "--run_name", "x", "--csv_path", parquet, "--img_dir", samples.images, says=["'sizes'", "list"])


def test_content_decides_what_a_file_is(samples, parquet):
    lying = parquet.with_suffix(".csv")
    lying.write_bytes(parquet.read_bytes())
    text = parquet.with_name("text.parquet")
    text.write_bytes(samples.csv.read_bytes())
    first, second = quietly(lying, samples.images), quietly(text, samples.images)
    assert len(first.rows) == len(second.rows)
    assert "is a Parquet file" in first.notes[0] and "read as CSV" in second.notes[0]


def damaged_inside(path):
    "Write over the middle of a photo: first and last bytes show nothing."
    Image.open(path).save(path, "PNG")
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2] + bytes(200) + data[len(data) // 2 + 200 :])
    assert header_fault(path) is None and photo_fault(path)


@pytest.fixture
def catalogue(tmp_path):
    "A folder of sample photos of which one is damaged inside, and its name."
    from deep_fashion.data.samples import make_samples
    folder = make_samples(tmp_path / "photos", n=40)
    name = pd.read_csv(folder / "attributes.csv").filename[5]
    damaged_inside(folder / "images" / name)
    return folder, name


@pytest.fixture
def few():
    "As if tables with more than ten photos were large."
    with patch("deep_fashion.data.table.MAX_PHOTOS_DECODED", 10): yield


def train(command, folder, *options):
    where = ["--csv_path", folder / "attributes.csv", "--img_dir", folder / "images"]
    return command("train", "--run_name", "first", *where, "--no-report", *options)


def test_a_photo_damaged_inside_is_left_out_when_its_features_are_computed(command, catalogue, few):
    folder, name = catalogue
    result = train(command, folder, "--arch", "tf_efficientnet_lite0", "--effort", "quick", "--size", "64", "--no-photo_cache")
    assert result.status == 0, result.err
    assert any("first and last bytes" in note for note in result.notes)
    assert any(name in note and "left out" in note for note in result.notes)
    dropped, split, predictions = (pd.read_csv(f"runs/first/{file}.csv") for file in ("dropped", "split", "predictions"))
    assert dropped.filename.tolist() == [name] and dropped.line.tolist() == [7]
    assert name not in set(split.filename) | set(predictions.filename)
    assert len(split) == len(predictions) == 39


def test_training_in_epochs_decodes_every_photo_before(command, catalogue, few):
    folder, name = catalogue
    result = train(command, folder, "--no-pretrained", "--size", "48", "-bs", "16", "-lr", "0.003", "-ep", "1", "-nw", "0")
    assert result.status == 0, result.err
    assert pd.read_csv("runs/first/dropped.csv").filename.tolist() == [name]


def test_other_commands_decode_every_photo_before(command, catalogue, few):
    folder, name = catalogue
    result = command("analyze", "--csv_path", folder / "attributes.csv", "--img_dir", folder / "images", "--out", "found")
    assert result.status == 0, result.err
    assert pd.read_csv("found/dropped.csv").filename.tolist() == [name]


def test_analyze_of_more_photos_than_are_compared(command, samples, parquet):
    with patch("deep_fashion.experiment.analysis.MAX_PHOTOS_AUDITED", 10):
        result = command("analyze", "--csv_path", parquet, "--img_dir", samples.images, "--out", "found")
    assert result.status == 0, result.err
    assert "not searched for" in result.out and "not searched for" in Path("found/audit.html").read_text().lower()
    assert json.loads(Path("found/summary.json").read_text())["near_duplicates"] is None


def test_features_in_a_file_lead_to_the_same_run(command, catalogue):
    folder, _ = catalogue
    options = ("--arch", "tf_efficientnet_lite0", "--effort", "quick", "--size", "64", "--penalty", "0.03")
    found = []
    for share in (1, 0):
        with patch("deep_fashion.train.large_features._SHARE", share), patch("deep_fashion.train.linear_head._MAX_DIMENSIONS", 12):
            assert train(command, folder, *options, "--runs_dir", f"runs{share}").status == 0
        found.append(pd.read_csv(f"runs{share}/first/predictions.csv"))
    first, second = found
    numbers = first.select_dtypes("number").columns
    assert first.drop(columns=numbers).equals(second.drop(columns=numbers))
    assert np.allclose(first[numbers], second[numbers], atol=2e-3)


def facts_of(hashes, shades):
    "As `photo_facts` returns them; a shade is the brightness of a thumbnail."
    thumbnails = np.repeat(np.array(shades, np.float32), 768).reshape(-1, 16, 16, 3)
    return pd.DataFrame({"hash": list(np.array(hashes, np.uint64)[:, None].view(np.uint8)), "thumbnail": list(thumbnails)})


def pairs_by_hand(facts):
    "All pairs of near-duplicates, by comparing all with all."
    found = []
    for i in range(len(facts)):
        for j in range(i + 1, len(facts)):
            bits = np.unpackbits(facts.hash[i] ^ facts.hash[j]).sum()
            if bits <= 8 and np.abs(facts.thumbnail[i] - facts.thumbnail[j]).mean() < 6: found.append([i, j])
    return found


def groups_by_hand(n, pairs):
    groups = list(range(n))
    for i, j in pairs: groups = [groups[i] if o == groups[j] else o for o in groups]
    return pd.factorize(np.array(groups))[0].tolist()


photo = st.tuples(st.sampled_from([0, 2**63, 2**64 - 1, 0xFF00FF]), st.integers(0, 2**64 - 1), st.integers(0, 12), st.integers(0, 255))


@settings(max_examples=25, deadline=None)
@given(photos=st.lists(photo, max_size=15), many=st.sampled_from([1, 3, 200]))
def test_the_index_finds_the_pairs_that_comparing_all_with_all_finds(photos, many):
    few_bits = [base ^ sum(1 << (noise >> 6 * k) % 64 for k in range(turned % 11)) % 2**64 for base, noise, turned, _ in photos]
    facts = facts_of(few_bits, [shade for *_, shade in photos])
    expected = pairs_by_hand(facts)
    with patch("deep_fashion.data.hash_pairs._FEW", 3), patch("deep_fashion.data.near_duplicates._MANY", many):
        assert similar_pairs(facts).tolist() == expected
        assert duplicate_groups(facts).tolist() == groups_by_hand(len(facts), expected)


def test_many_photos_on_white_share_most_of_their_hash():
    random = np.random.default_rng(0)
    turned = (random.random((5000, 64)) < 0.06) @ (np.uint64(1) << np.arange(64, dtype=np.uint64))
    hashes = np.unique(np.uint64(0xF0F0F0F0F0F0F0F0) ^ turned)
    expected = sum(int((differing_bits(hashes[i], hashes[i + 1 :]) <= 8).sum()) for i in range(len(hashes)))
    assert len(hashes) > 4096 and sum(len(first) for first, _ in near_hashes(hashes)) == expected


def test_thousands_of_copies_are_one_group():
    facts = facts_of([5] * 20_000 + [2**63 + 2**40 - 1] * 3, [7] * 20_000 + [100, 101, 200])
    assert np.bincount(duplicate_groups(facts)).tolist() == [20_000, 2, 1]


def test_folds_of_products_are_those_of_scikit_learn():
    from sklearn.model_selection import GroupKFold

    from deep_fashion.data.training_set import assign_folds
    products = pd.Series([f"shirt {i % 37}" for i in range(200)])
    split = GroupKFold(5, shuffle=True, random_state=3).split(products, groups=products.to_numpy())
    expected = np.empty(200, int)
    for fold, (_, test) in enumerate(split): expected[test] = fold
    assert assign_folds(products, 5, 3).tolist() == expected.tolist()


def test_words_of_titles_indicate_the_label_they_stand_beside():
    titles = ["polo shirt", "polo shirt", "polo tee", "henley shirt", "henley tee", "henley tee"]
    words = indicative_words(titles, ["p", "p", "p", "h", "h", None], 0.3, 2)
    assert words[["word", "label", "photos"]].to_numpy().tolist() == [["henley", "h", 2], ["polo", "p", 3]]


def test_a_disk_without_room_for_features_is_reported_in_one_line():
    from deep_fashion.train.large_features import feature_file
    with pytest.raises(InputError, match="GiB of the disk"): feature_file(10**9, 10**5)
