"Choosing photos to label, and labels to and from other labelling tools."
import json
import shlex
import xml.etree.ElementTree as ET

import pandas as pd
import pytest

from deep_fashion.app.review_tasks import read_review
from deep_fashion.commands import ReviewSettings


def read(path): return pd.read_csv(path, dtype=str, keep_default_na=False)


def test_a_random_choice_can_be_filled_in_and_goes_on(command, samples, tmp_path):
    given = ["--img_dir", samples.images, "--strategy", "random", "--n", 5]
    first = command("select", *given, "--attributes", "neck,kind of sleeve", "--out", "a.csv")
    assert first.status == 0 and "deep_fashion review a.csv" in first.out, first.err
    chosen = read("a.csv")
    assert [*chosen] == ["filename", "neck", "kind of sleeve"] and len(chosen) == 5 and (chosen.neck == "").all()
    chosen.assign(neck=["1", "2", "1", "2", ""]).to_csv("b.csv", index=False)
    assert command("select", *given, "--labels", "b.csv", "--attributes", "neck", "--out", "c.csv").status == 0
    second = read("c.csv")
    assert (second.neck[:5] == "").all() and not set(second.filename[:5]) & set(chosen.filename[:4])
    assert sorted(second.neck[5:]) in (["1", "1", "2", "2"], ["", "1", "1", "2", "2"])
    assert command("select", *given, "--attributes", "neck", "--out", "a.csv").status == 2


def test_the_review_of_a_second_round_keeps_the_labels_of_the_first(command, samples):
    given = ["--img_dir", samples.images, "--strategy", "random", "--n", 2]
    command("select", *given, "--attributes", "neck,pattern", "--out", "a.csv")
    # As a review writes it.
    first = read("a.csv").assign(neck=["1", "2"], pattern="0", sha256=["0" * 64, "1" * 64])
    first.to_csv("a_labels.csv", index=False)
    printed = command("select", *given, "--labels", "a_labels.csv", "--out", "my b.csv").out
    [words] = [shlex.split(line) for line in printed.splitlines() if line.startswith("  deep_fashion review")]
    options = dict(zip(words[3::2], words[4::2]))
    assert words[2] == "my b.csv" and options["--attributes"] == "neck;pattern" and options["--out"] == "my b_labels.csv"
    assert f"--csv_path 'my b_labels.csv' --img_dir {samples.images}" in printed
    tasks = read_review(ReviewSettings(csv_path=words[2], img_dir=options["--img_dir"], attributes=options["--attributes"]))
    assert len(tasks.tasks) == 4 and tasks.is_new
    assert {(tasks.photos[i], a, label) for i, a, label in tasks.filled} == {
        (name, a, label) for a in ("neck", "pattern") for name, label in zip(first.filename, first[a])
    }


def test_a_tagger_chooses_what_it_is_unsure_of(command, samples, trained):
    result = command("select", "--img_dir", samples.images, "--labels", samples.csv, "--model", trained, "--n", 3, "--out", "a.csv")
    rows = read("a.csv")
    assert result.status == 0, result.err
    assert {"neck", "neck_suggested", "neck_confidence"} <= set(rows)
    assert (rows.neck_suggested[:1] != "").all() and rows.filename.is_unique


def test_what_cannot_be_chosen_is_refused(refused, samples):
    refused("select", "--img_dir", samples.images, "--out", "a.csv", says=["attributes"])
    refused("select", "--img_dir", samples.images, "--out", "a.csv", "--attributes", "neck", "--strategy", "uncertainty", says=["model"])
    for name in ("filename", "sha256", "neck_suggested", "neck_confidence"):
        refused("select", "--img_dir", samples.images, "--out", "a.csv", "--attributes", f"neck,{name}", says=["attributes", name])
    refused("select", "--img_dir", "nowhere", "--out", "a.csv", "--attributes", "neck", says=["nowhere"])


@pytest.mark.parametrize("tool", ["label_studio", "fiftyone"])
def test_labels_survive_another_tool(command, samples, table, tool):
    names = read(samples.csv).filename.unique()[:3]
    header = "filename;neck type/ä;\"<b> & \"\"c\"\"\";photo"
    source = table("\n".join([header, f"{names[0]};round, wide;a & b;1", f"{names[1]};\"<v>\";x;2"]))
    given = ["--csv_path", source, "--img_dir", samples.images]
    assert command("export-labels", *given, "--out", "out", "--format", tool).status == 0
    result = command("import-labels", "out" if tool == "fiftyone" else "out/tasks.json", "--out", "back.csv")
    assert result.status == 0, result.err
    assert read("back.csv").iloc[:, 1:].values.tolist() == [["round, wide", "a & b", "1"], ["<v>", "x", "2"]]


def test_a_review_list_becomes_suggestions(command, samples, table, tmp_path):
    name = read(samples.csv).filename[0]
    source = table(f"filename,neck,neck_suggested,neck_confidence\n{name},,6,0.4\n")
    names = tmp_path / "names.json"
    names.write_text('{"neck": {"0": "polo", "6": "polo"}}', encoding="utf-8")
    given = ["--csv_path", source, "--img_dir", samples.images, "--names", names]
    assert command("export-labels", *given, "--out", "studio").status == 0
    [task] = json.loads((tmp_path / "studio/tasks.json").read_text())
    assert "annotations" not in task and task["predictions"][0]["result"][0]["value"] == {"choices": ["6"]}
    choices = ET.parse(tmp_path / "studio/config.xml").iter("Choice")
    assert [(o.get("value"), o.get("alias")) for o in choices] == [("polo (0)", "0"), ("polo (6)", "6")]
    refused = command("import-labels", "studio/tasks.json", "--out", "none.csv")
    assert refused.status == 2 and "no label" in refused.lines[-1]


def test_every_attribute_of_the_table_is_exported(command, samples, table, tmp_path):
    names = read(samples.csv).filename.unique()[:2]
    source = table(f"filename,neck,style,date\n{names[0]},5,casual,2020-01-01\n{names[1]},6,formal,2020-01-02\n")
    (tmp_path / "names.json").write_text('{"neck": {"0": "polo"}, "hem": {"0": "wide"}}', encoding="utf-8")
    given = ["--csv_path", source, "--img_dir", samples.images, "--names", tmp_path / "names.json"]
    result = command("export-labels", *given, "--out", "studio")
    task = json.loads((tmp_path / "studio/tasks.json").read_text())[0]
    assert [o["from_name"] for o in task["annotations"][0]["result"]] == ["neck", "style"], result.err
    assert any("hem" in note for note in result.notes) and any("date (dates)" in note for note in result.notes)


# What Label Studio 1.23 exported, shortened: done, skipped, and done by two people.
EXPORTED = [
    {"id": 1, "data": {"image": "/data/local-files/?d=images/a%20b.jpg"}, "annotations": [{"was_cancelled": False, "result": [
        {"from_name": "neck", "to_name": "photo", "type": "choices", "origin": "manual", "value": {"choices": ["5"]}}]}]},
    {"id": 2, "data": {"image": "x", "filename": "c.jpg"}, "annotations": [{"was_cancelled": True, "result": []}]},
    {"id": 3, "data": {"image": "x", "filename": "d.jpg"}, "annotations": [{"was_cancelled": False, "result": [
        {"from_name": "neck", "to_name": "photo", "type": "choices", "value": {"choices": [label]}}]} for label in "12"]}]


def test_people_who_disagree_decide_nothing(command, tmp_path):
    (tmp_path / "project.json").write_text(json.dumps(EXPORTED), encoding="utf-8")
    result = command("import-labels", "project.json", "--out", "labels.csv")
    assert result.status == 0 and any("disagree" in note and "d.jpg" in note for note in result.notes)
    assert read("labels.csv").values.tolist() == [["images/a b.jpg", "5"], ["d.jpg", ""]]


def test_label_studio_accepts_the_interface(command, samples):
    interface = pytest.importorskip("label_studio_sdk.label_interface", reason="label-studio-sdk is not installed")
    given = ["--csv_path", samples.csv, "--img_dir", samples.images, "--names", samples.names, "--out", "studio"]
    assert command("export-labels", *given).status == 0
    found = interface.LabelInterface(open("studio/config.xml", encoding="utf-8").read())
    assert "neck" in found._controls
