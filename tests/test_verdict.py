"What results mean: a sentence per attribute, the next command to copy, names for codes."
import json
import re
import shlex

import pandas as pd
import pytest
from conftest import QUICK

from deep_fashion.data.samples import make_samples
from deep_fashion.run import Run


def next_words(result):
    "The words of the next command, and what is to be done before."
    found = re.findall(r"^next(?:, (.*))?: deep_fashion (.*)$", result.out, re.M)
    assert len(found) == 1 and result.out.rstrip().endswith(found[0][1]), result.out + result.err
    return shlex.split(found[0][1])


@pytest.fixture
def shop(tmp_path, monkeypatch):
    "A folder whose names need quoting, with photos and a table whose file names are no titles."
    folder = make_samples(tmp_path / "my shop's data", n=24)
    monkeypatch.chdir(folder)
    return folder


def test_the_next_command_works_as_printed(command, shop):
    "From the table to a tagger and what follows, but for options that make the training short."
    audit = command("analyze", "--csv_path", shop / "attributes.csv", "--img_dir", shop / "images", "--out", "my audit")
    assert "Sleeve length: " in audit.out.split("photos can be used")[0]
    words = next_words(audit)
    assert words[:3] == ["train", "--run_name", "first"]
    trained = command(*words, *QUICK, "--no-report", "--runs_dir", shop / "runs")
    assert trained.status == 0, trained.err
    assert "\nNeck: " in trained.out and trained.out.index("\nNeck: ") < trained.out.index("\nattribute ")
    followed = command(*next_words(trained))
    assert followed.status == 0, followed.err


def test_open_tags_lead_to_their_review(command, trained, samples):
    result = command("tag", "--model", trained, "--img_dir", samples.images, "--out_csv", "t.csv", "--min_precision", "0.999")
    words = next_words(result)
    assert words == ["review", "t.review.csv", "--img_dir", str(samples.images), "--model", str(trained)]


def test_report_and_terminal_have_the_same_verdict(trained):
    from deep_fashion.report.verdict import verdicts
    page = (trained / "report.html").read_text()
    found = verdicts(Run(trained).scores)
    assert len(found) == 3 and page.index('class="verdict"') < page.index("Mean macro-F1")
    for verdict in found: assert f"<b>{verdict.name}</b>: {verdict.text}" in page, verdict


def test_many_attributes_with_long_names_fit(trained):
    from deep_fashion.report.tables import scores_as_text
    from deep_fashion.report.verdict import verdict_text, verdicts
    scores = Run(trained).scores
    names = [f"colour of the lining, seam and label, seen from side {i}" for i in range(30)]
    wide = pd.concat([scores.head(1)] * 30 + [scores.tail(1)]).set_axis([*names, "mean"])
    verdict, table = verdict_text(verdicts(wide)), scores_as_text(wide).splitlines()
    assert verdict.startswith("30 attributes: ") and all(f"side {i}:" in " ".join(verdict.split()) for i in range(30))
    assert len(table) == 32 and max(map(len, [*table, *verdict.splitlines()])) < 100
    assert len({line.split("  ")[0] for line in table}) == 32


@pytest.fixture
def coded(tmp_path, monkeypatch):
    "A table of codes, with titles for two of three, and a fourth that was used for whatever nobody looked at."
    monkeypatch.chdir(tmp_path)
    folder = make_samples(tmp_path / "coded", n=90)
    names = sorted(path.name for path in (folder / "images").iterdir())
    titles = ["Soft Polo Collar Tee", "Warm Hood Pullover", "Plain Shirt"]
    rows = [dict(filename=name, title=titles[i % 3], product=name, neck=str(i % 3), fit=["slim", "wide"][i % 2])
            for i, name in enumerate(names)]
    pd.DataFrame(rows).to_csv("table.csv", index=False)
    return folder


def analyzed(command, folder, *words):
    return command("analyze", "--csv_path", "table.csv", "--img_dir", folder / "images", "--title_column", "title", "--group_column",
                   "product", "--out", "audit", *words)


def test_codes_get_the_names_that_titles_use(command, coded, tmp_path):
    result = analyzed(command, coded)
    assert result.status == 0 and "labels that are codes: 3; names proposed from titles for 3 of them" in result.out
    names = json.loads((tmp_path / "audit/names.json").read_text())
    assert set(names) == {"neck"} and "polo collar" in names["neck"]["0"] and "hood" in names["neck"]["1"]
    page = (tmp_path / "audit/audit.html").read_text()
    assert f"neck 0: {names['neck']['0']}" in re.sub(r"\s+", " ", page) and "of 30 products of this code" in page
    assert next_words(result)[-2:] == ["--names", "audit/names.json"] or "--names" in next_words(result)


def test_names_of_the_user_are_kept(command, coded, tmp_path):
    (tmp_path / "mine.json").write_text('{"neck": {"0": "my collar"}}')
    assert analyzed(command, coded, "--names", "mine.json").status == 0
    names = json.loads((tmp_path / "audit/names.json").read_text())
    assert names["neck"]["0"] == "my collar" and "1" in names["neck"]
    assert json.loads((tmp_path / "mine.json").read_text()) == {"neck": {"0": "my collar"}}


@pytest.mark.parametrize("part", ["", "bundle", "learn.pkl"])
def test_a_file_of_names_is_shown_beside_the_labels(command, refused, trained, samples, part):
    vocab = Run(trained).learner().vocab
    labels = vocab.classes["pattern"]
    with open("names.json", "w") as f: json.dump({"pattern": {label: f"P {label}" for label in labels}}, f)
    model, photo = trained / part, next(samples.images.glob("shirt-*.jpg"))
    tested = command("test", "--model", model, "-i", photo, "--names", "names.json", "--out_csv", "row.csv")
    assert re.search(r"pattern +P \w", tested.out), tested.err
    assert pd.read_csv("row.csv", dtype=str).pattern[0] in labels
    words = "tag", "--model", model, "--img_dir", samples.images, "--names", "names.json", "--min_precision", "0.95", "--out_csv", "t.csv"
    assert command(*words).status in (0, 1)
    rows, review = (pd.read_csv(name, dtype=str, keep_default_na=False) for name in ("t.csv", "t.review.csv"))
    assert set(rows.pattern) <= {*labels, "#N/A"} and "neck_name" in rows
    assert all(name == (label if label == "#N/A" else f"P {label}") for label, name in zip(rows.pattern, rows.pattern_name))
    assert all(name == (label and f"P {label}") for label, name in zip(review.pattern_suggested, review.pattern_name))
    with open("wrong.json", "w") as f: f.write('{"colour": {"0": "red"}}')
    refused("test", "--model", model, "-i", photo, "--names", "wrong.json", says=["wrong.json", "'colour'", "pattern"])


def test_an_evaluation_has_names_and_no_verdict_on_photos_of_the_training(command, trained, samples, tmp_path):
    label = Run(trained).learner().vocab.classes["pattern"][0]
    with open("names.json", "w") as f: json.dump({"pattern": {label: "one colour throughout"}}, f)
    words = "evaluate", "--model", trained, "--csv_path", samples.csv, "--img_dir", samples.images, "--names", "names.json"
    result = command(*words)
    page = (tmp_path / "evaluation.html").read_text()
    for text in (" ".join(result.out.split()), page):
        assert text.count("among them photos of the training: no verdict") == 3 and "so the scores are too good" in text
    assert "one colour throughout" in page and next_words(result)[:3] == ["tag", "--model", str(trained)]


def test_codes_of_a_real_catalogue(real_data):
    "Nine of 18 codes get a name, all of them right; what titles do not say stays a code."
    from deep_fashion.data.catch_all import find_catch_all
    from deep_fashion.data.code_names import propose_names
    from deep_fashion.data.products import find_products
    from deep_fashion.data.table import read_table
    folder = real_data / "flixstock"
    table = read_table(folder / "attributes.csv", folder / "images")
    products = find_products(table).of_row
    catch_all = {a: found["label"] for a, found in find_catch_all(table, products).items()}
    found = {(o.attribute, o.label): o.name for o in propose_names(table, products, catch_all) if o.name}
    right = {("neck", "0"): "henley", ("neck", "1"): "hood", ("neck", "2"): "mandarin", ("neck", "3"): "polo", ("neck", "4"): "round",
             ("neck", "5"): "v neck", ("pattern", "1"): "checked", ("pattern", "6"): "solid", ("pattern", "7"): "striped"}
    assert set(found) == set(right) and all(name in found[code] for code, name in right.items())
