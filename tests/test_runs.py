"Runs side by side: the list of all of them, one in detail, and whether one is better than another."
import re
import shutil

import numpy as np
import pandas as pd
import pytest

from deep_fashion.core import MISSING, InputError, write_csv, write_json
from deep_fashion.experiment.comparison import compare
from deep_fashion.experiment.runs import runs
from deep_fashion.run import Run, note_in_config


@pytest.fixture
def copied(trained, tmp_path):
    "Make a run as a copy of the trained one, with other settings."
    def make(name, **settings):
        run = Run(shutil.copytree(trained, tmp_path / "runs" / name))
        note_in_config(run, settings={**run.config["settings"], **settings})
        return run
    return make


@pytest.fixture
def made(trained, tmp_path):
    "Make a run from labels and predictions per attribute, two photos of each product."
    def make(name, folder="photos", plan=(), **attributes):
        run, config, n = Run(tmp_path / "runs" / name), Run(trained).config, len(next(iter(attributes.values()))[0])
        run.path.mkdir(parents=True)
        files, rows = [f"{i // 2:04}-{i % 2}.jpg" for i in range(n)], {}
        for attribute, (labels, predicted) in attributes.items():
            rows |= {attribute: labels, f"{attribute}_predicted": predicted, f"{attribute}_confidence": .5}
            rows |= {f"{attribute}={label}": .5 for label in sorted({*predicted} | {*labels} - {MISSING})}
        write_csv(run.file("predictions"), pd.DataFrame({"filename": files, **rows}))
        write_csv(run.file("split"), pd.DataFrame(dict(filename=files, fold=0, product=[file[:4] for file in files])))
        write_json(run.file("metrics"), dict(attributes=dict.fromkeys(attributes, {}), mean=dict(photos=n, macro_f1=.5)))
        plan = {**config["plan"], "folds": 5, **dict(plan)}
        write_json(run.file("config"), {**config, "plan": plan, "settings": {**config["settings"], "img_dir": str(tmp_path / folder)}})
        return run
    return make


def random_labels(n, classes, seed=0): return list(np.random.default_rng(seed).choice(classes, n))


def wrong_in(labels, share, seed=1):
    "`labels`, a share of which is replaced by the next one."
    classes, rng = sorted({*labels} - {MISSING}), np.random.default_rng(seed)
    return [classes[(classes.index(o) + 1) % len(classes)] if o != MISSING and rng.random() < share else o.replace(MISSING, classes[0])
            for o in labels]


def test_a_run_records_when_how_long_and_which_products(trained, copied, command):
    config, split = Run(trained).config, pd.read_csv(trained / "split.csv", dtype=str)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[+-]\d\d:\d\d", config["started"]) and 0 < config["minutes"] < 10
    assert (split["product"] == split.filename.str.extract(r"(\d+)-\d+\.jpg$")[0]).all()
    run = copied("stopped")
    note_in_config(run, settings={**config["settings"], "run_name": "stopped", "runs_dir": str(run.path.parent)}, minutes=7)
    run.file("report").unlink()
    assert command("train", "--resume", "--run_name", "stopped", "--runs_dir", run.path.parent).status == 0
    assert 7 < run.config["minutes"] < 12 and run.config["started"] == config["started"]


def test_runs_are_listed_and_other_folders_named(copied, command, tmp_path):
    copied("first"), copied("second", random_seed=7)
    copied("stopped").file("metrics").unlink()
    copied("broken").file("config").write_text("{")
    (tmp_path / "runs/notes").mkdir()
    result = command("runs", "--sort_by", "random_seed")
    assert result.status == 0 and re.findall(r"^(\w+) .*random_seed=(\d+)$", result.out, re.M) == [("second", "7"), ("first", "42")]
    assert "arch" not in result.out and len(result.notes) == 3
    for word, note in zip(("stopped", "notes", "broken"), result.notes): assert word in note
    table = runs()
    assert list(table.columns[-1:]) == ["random_seed"] and table.macro_f1["first"] == Run("runs/first").metrics["mean"]["macro_f1"]


def test_a_page_of_runs_replaces_itself_alone(copied, command, tmp_path):
    copied("first")
    page = tmp_path / "runs/index.html"
    assert command("runs").status == 0 and "first/report.html" in page.read_text()
    copied("second")
    assert command("runs", "--filter", "first").status == 0 and "second/report.html" in page.read_text()
    page.write_text("mine")
    result = command("runs")
    assert result.status == 0 and "is kept" in result.notes[0] and page.read_text() == "mine"


@pytest.mark.parametrize("words, says", [
    (["--filter", "arc=x"], ["arc", "did you mean 'arch'"]),
    (["--filter", "arch>3"], ["holds texts", "arch=resnet*"]),
    (["--filter", "macro_f1>high"], ["'high' is no number"]),
    (["--filter", ">3"], ["expected a name or pattern", "COLUMN=VALUE"]),
    (["--sort_by", "makro_f1"], ["did you mean 'macro_f1'"]),
    (["--runs_dir", "none"], ["none", "no such folder"]),
    (["--runs_dir", "runs/first"], ["no finished run"]),
    (["show", "frist"], ["did you mean 'first'"]),
    (["--runs_dir", "runs", "show", "first"], ["runs show", "options after show"]),
])
def test_what_cannot_be_listed_is_refused(copied, refused, words, says):
    copied("first")
    refused("runs", *words, says=says)


def test_filters_select(copied, tmp_path):
    copied("neck-1"), copied("neck-2", learning_rate=.01), copied("other")
    def found(*conditions): return sorted(runs(tmp_path / "runs", filter=list(conditions)).index)
    assert found("neck*") == found("name=NECK*") == ["neck-1", "neck-2"] and found("learning_rate>0.005") == ["neck-2"]
    assert found("neck*", "learning_rate!=0.01") == ["neck-1"] and found("photos>100000") == [] and len(found("arch=resnet18")) == 3


def test_runs_are_sorted_and_filtered_by_an_attribute(copied, command, tmp_path):
    for name, score in (("a", .4), ("b", .6)):
        metrics = copied(name).metrics
        metrics["attributes"]["neck"]["macro_f1"] = score
        write_json(Run(tmp_path / "runs" / name).file("metrics"), metrics)
    result = command("runs", "--sort_by", "neck")
    assert result.status == 0 and "neck" in result.out and result.out.index("\nb ") < result.out.index("\na ")
    assert "macro-F1 of neck" in (tmp_path / "runs/index.html").read_text()
    assert [*runs(filter="neck>0.5").index] == ["b"] and "neck" not in runs() and [*runs(sort_by="neck").neck] == [.6, .4]
    assert "majority accuracy" in (tmp_path / "runs/index.html").read_text()
    assert {"accuracy", "majority_accuracy"} <= {*runs()} and runs().accuracy["a"] == Run("runs/a").metrics["mean"]["accuracy"]


def test_one_run_is_described(copied, command):
    run = copied("first")
    text = command("runs", "show", "first").out
    for words in ("minutes", "size           48", "resolved to", "sleeve_length", "epoch 1 of 1 kept", "predictions.csv"):
        assert words in text
    assert "random_seed" not in text
    run.file("metrics").unlink()
    assert "not finished" in command("runs", "show", run.path).out


def test_runs_of_older_versions_are_listed_and_compared(copied, command):
    copied("new")
    old = copied("old")
    config = old.config
    for name in ("started", "minutes"): config.pop(name)
    config["settings"].pop("plain")
    write_json(old.file("config"), config)
    write_csv(old.file("split"), pd.read_csv(old.file("split")).drop(columns="product"))
    table = runs()
    assert pd.isna(table.date["old"]) and table.index[-1] == "old" and re.search(r"^old .* – +–", command("runs").out, re.M)
    assert [*runs(filter="date>2020").index] == ["new"] and "started –" in command("runs", "show", "old").out
    assert np.isnan(table.minutes["old"]) and "plain" not in table
    result = command("compare", "old", "new")
    assert result.status == 0 and "unknown" not in result.out
    found = compare(Run("runs/old"), shutil.copytree("runs/old", "runs/copy"))
    assert 0 < found.table.products.iloc[-1] < len(old.predictions) and (found.table.macro_f1_difference == 0).all()


def test_a_run_equals_its_copy(copied, tmp_path):
    found = compare([copied("first"), copied("second")])
    assert set(found.table.verdict) <= {"no difference", "too few labels"} and (found.table.macro_f1_difference == 0).all()
    assert len(found.disagreements) == 0 and "None: they predict the same" in found.save(tmp_path / "page.html").read_text()


def test_better_worse_and_cannot_tell(made, command, tmp_path):
    odd, labels = "neck, <b>", random_labels(400, ["a, b", "<i>c</i>", "=1"])
    labels[:20] = [MISSING] * 20
    few = [MISSING] * 400
    few[:12] = ["x"] * 12
    def run(name, share, seed): return made(name, **{odd: (labels, wrong_in(labels, share, seed)), "few": (few, ["x"] * 400)})
    first, better, similar = run("first", .4, 1), run("better", .2, 2), run("similar", .4, 3)
    found = compare(first, better, similar)
    verdicts = found.table.set_index(["run", "attribute"]).verdict
    assert verdicts["better", odd] == verdicts["better", "mean"] == "better" and verdicts["similar", "mean"] == "cannot tell"
    assert verdicts["better", "few"] == "too few labels" and compare(better, first).table.verdict.iloc[-1] == "worse"
    assert found.table.labels.iloc[0] == 380 and found.table.products.iloc[0] == 190
    assert re.search(r"(about [\d,]+|more than 100,000) more labels", found.verdicts[1])
    rows = found.disagreements.query("run == 'better'")
    hits = [sum(a == b for a, b in zip(labels, wrong_in(labels, *of)) if a != MISSING) for of in ((.4, 1), (.2, 2))]
    assert (rows.right == "better").sum() - (rows.right == "first").sum() == hits[1] - hits[0]
    result = command("compare", "first", "better")
    assert result.status == 0 and "better is better than first" in result.out
    page = (tmp_path / "runs/compare-first-better.html").read_text()
    assert "neck, &lt;b&gt;" in page and "&lt;i&gt;c&lt;/i&gt;" in page and "<i>c" not in page and "no photo" in page


def test_a_comparison_replaces_its_own_page_alone(made, command, refused, tmp_path):
    labels = random_labels(60, ["0", "1"])
    for name in ("a", "b", "c"): made(name, neck=(labels, wrong_in(labels, .3)))
    for _ in range(2): assert command("compare", "a", "b").status == 0
    assert [path.name for path in (tmp_path / "runs").glob("*.html")] == ["compare-a-b.html"]
    assert command("compare", "a", "b", "--out", "page.html").status == command("compare", "a", "b", "--out", "page.html").status == 0
    refused("compare", "a", "c", "--out", "page.html", says=["page.html", "is kept"])
    (tmp_path / "runs/compare-a-b.html").write_text("mine")
    assert command("compare", "a", "b").status == 0 and (tmp_path / "runs/compare-a-b-2.html").exists()
    assert (tmp_path / "runs/compare-a-b.html").read_text() == "mine"


def test_only_common_photos_and_labels_count(made):
    labels = random_labels(100, ["0", "1", "2"])
    other = [MISSING] * 10 + [str((int(o) + 1) % 3) for o in labels[10:15]] + ["6"] * 3 + labels[18:90]
    first = made("first", neck=(labels, wrong_in(labels, .3)), sleeve=(labels, labels))
    second = made("second", neck=(other, wrong_in(other, .3)), pattern=(other, other), plan=dict(folds=1, linear_probe=False))
    found = compare(first, second)
    assert found.table.labels.to_list() == [72, 72]
    notes = "\n".join(found.notes)
    for words in ("80 photos with a label were scored by all runs", "first 20", "neck: 10 labels left out that not all runs have",
                  "neck: 8 labels left out that differ", "not all runs have the class 6 of second", "sleeve of first", "pattern of second",
                  "the epoch of second was chosen", "those of first are not"): assert words in notes, words


def test_what_cannot_be_compared_is_refused(made, refused, tmp_path):
    labels = random_labels(40, ["0", "1"])
    made("a", neck=(labels, labels))
    made("b", sleeve=(labels, labels))
    made("c", folder="elsewhere", neck=(labels, labels))
    note_in_config(Run(tmp_path / "runs/c"), sha256=dict(csv_path="0"))
    made("d", neck=(labels, labels)).file("predictions").write_text("filename,neck\na.jpg,1\n")
    made("e", neck=([MISSING] * 40, labels))
    (tmp_path / "scores.json").write_text("{}")
    for other, says in (("b", ["no attribute in common"]), ("c", ["different folders"]), ("d", ["predictions.csv", "damaged"]),
                        ("e", ["agree on no label"]), ("f", ["no such run"]), ("scores.json", ["is a file"])):
        refused("compare", "a", other, says=says)
    refused("compare", "a", says=["at least two"])
    for again in ("a", "./runs/a", tmp_path / "runs/a"): refused("compare", "a", again, says=["run", "is the same as a"])
    for names in ([["a", 3]], ["a", None], [pd.DataFrame(index=["a", "b"])], [{"a", "d"}]):
        with pytest.raises(InputError, match="expected names or folders of runs"): compare(*names)


def test_damaged_files_are_named(made, refused, tmp_path):
    labels = random_labels(40, ["0", "1"])
    made("a", neck=(labels, labels))
    run = made("b", neck=(labels, labels))
    rows = run.predictions
    for column, value, says in (("neck_predicted", "", "neck_predicted is empty for 0001-1.jpg"), ("neck_confidence", "", "is no number"),
                                ("neck_confidence", "high", "is no number for 0001-1.jpg")):
        damaged = rows.copy()
        damaged.loc[3, column] = value
        write_csv(run.file("predictions"), damaged)
        refused("compare", "a", "b", says=["predictions.csv", "damaged", says])
    write_csv(run.file("predictions"), rows.drop(columns="neck_confidence"))
    refused("compare", "a", "b", says=["there is no column neck_confidence"])
    write_csv(run.file("predictions"), rows)
    write_json(run.file("metrics"), {**run.metrics, "attributes": {"neck": {}, "filename": {}}})
    refused("compare", "a", "b", says=["metrics.json", "attribute filename", "damaged"])


def test_a_verdict_on_a_part_of_the_labels_says_so(made, command):
    labels = random_labels(200, ["0", "1", "6"])
    part = [label.replace("6", MISSING) for label in labels]
    base = made("base", neck=(labels, wrong_in(labels, .4)))
    made("strong", neck=(part, wrong_in(part, .1)))
    note = dict(attributes={"neck": {}}, mean={})
    write_json(base.file("metrics"), {**note, "catch_all": {"neck": None}})
    write_json(Run("runs/strong").file("metrics"), {**note, "catch_all": {"neck": "6"}})
    found = compare("base", "strong")
    n = sum(label != MISSING for label in part)
    start = f"on {n} of 200 labels that both share; base also predicts 6, which is not scored here: strong is better than base"
    assert found.verdicts[0].startswith(start) and start in command("compare", "base", "strong").out
    assert found.settings.loc["catch_all, resolved"].to_dict() == {"base": "none", "strong": "neck=6"}
    made("all", neck=(labels, wrong_in(labels, .1)))
    assert compare("base", "all").verdicts[0].startswith("all is better than base in macro-F1: 0.")


def test_photos_in_two_folders_are_compared_by_content(made, tmp_path):
    labels = random_labels(40, ["0", "1"])
    a, b = (made(name, folder=name, neck=(labels, wrong_in(labels, .3))) for name in "ab")
    for run, folder in ((a, "a"), (b, "b")):
        (tmp_path / folder).mkdir()
        for i, name in enumerate(run.predictions.filename): (tmp_path / folder / name).write_text(f"{i}{folder if i < 6 else ''}")
    found = compare(a, b)
    assert "34 photos with a label were scored by all runs; further photos, which are left out: a 6, b 6" in found.notes[0]


def test_pages_sort_and_filter_in_the_browser(copied, made, browser, command, tmp_path):
    copied("first"), copied("second", random_seed=7)
    note_in_config(Run(tmp_path / "runs/second"), minutes=99)
    labels = random_labels(60, ["0", "1", "2"])
    for name, share in (("a", .2), ("b", .5)):
        made(name, neck=(labels, wrong_in(labels, share)), sleeve=(labels, wrong_in(labels, share, 5)))
    assert command("runs").status == command("compare", "a", "b").status == 0
    tab = browser(1000)
    tab.goto((tmp_path / "runs/index.html").as_uri())
    def names(): return [row.inner_text() for row in tab.locator("tbody tr:visible th").all()]
    tab.get_by_role("button", name="minutes").click()
    assert names()[-1] == "second"
    tab.get_by_role("button", name="minutes").click()
    assert names()[0] == "second" and tab.locator("th[aria-sort]").inner_text().startswith("minutes")
    tab.get_by_role("searchbox").fill("second 7")
    assert names() == ["second"] and tab.locator("output").inner_text() == "1 of 4 runs"
    tab.goto((tmp_path / "runs/compare-a-b.html").as_uri())
    shown = tab.locator("figure:visible")
    everything = shown.count()
    tab.get_by_label("Attribute").select_option("sleeve")
    assert 0 < shown.count() < everything
    tab.get_by_label("Who was right").select_option("b")
    assert {figure.get_attribute("data-right") for figure in shown.all()} <= {"b"}
    assert all(request.startswith(("file:", "data:")) for request in tab.requests) and tab.errors == []
