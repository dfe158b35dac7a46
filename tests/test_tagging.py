"Tagging and scoring: schema, vocabulary, order, agreement, refusals."
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import QUICK

from deep_fashion.core import read_json
from deep_fashion.predict.tagger import load_tagger

ATTRIBUTES = ["neck", "sleeve_length", "pattern"]


@pytest.fixture(scope="module")
def model(trained): return trained / "learn.pkl"


def read(path): return pd.read_csv(path, dtype=str, keep_default_na=False)


def test_one_photo_in_the_training_schema(command, model, samples, tmp_path):
    photo = samples.images / "shirt-00001-1.jpg"
    result = command("test", "-i", photo, "--model", model, "--out_image", tmp_path / "a.png", "--out_csv", tmp_path / "a.csv")
    assert result.status == 0 and result.out.splitlines()[0].startswith("neck ")
    row = read(tmp_path / "a.csv")
    assert list(row.columns) == ["filename", *ATTRIBUTES] and row.filename[0] == photo.name
    assert all(row[a][0].isdigit() for a in ATTRIBUTES)
    assert (tmp_path / "a.png").stat().st_size > 5_000


def test_predict_is_the_same_command(command, model, samples):
    words = ["-i", samples.images / "shirt-00001-1.jpg", "--model", model]
    assert command("predict", *words).out == command("test", *words).out


def test_a_folder_and_one_photo_agree(command, model, samples, tmp_path):
    assert command("tag", "--model", model, "--img_dir", samples.images, "--out_csv", tmp_path / "tags.csv", "-bs", "7").status == 1
    tags = read(tmp_path / "tags.csv").set_index("filename")
    assert list(tags.columns) == [*ATTRIBUTES, *(f"{a}_confidence" for a in ATTRIBUTES)] and len(tags) == 60
    tagger = load_tagger(model)
    for filename in tags.index[:5]:
        _, indices, probabilities = tagger.predict(samples.images / filename)
        assert tags.loc[filename, ATTRIBUTES].tolist() == tagger.vocab.decode(indices)
        confidences = tags.loc[filename, "neck_confidence":].astype(float)
        np.testing.assert_allclose(confidences, [float(p.max()) for p in probabilities.values()], atol=1e-3)


def test_workers_give_the_same_tags(command, model, samples, tmp_path):
    for n in ("0", "2"): command("tag", "--model", model, "--img_dir", samples.images, "--out_csv", tmp_path / f"{n}.csv", "-nw", n)
    assert (tmp_path / "0.csv").read_text() == (tmp_path / "2.csv").read_text()


def test_a_list_keeps_its_order_and_refuses_other_folders(command, model, samples, table, tmp_path):
    csv = table("filename,title\nshirt-00002-1.jpg,b\n../samples/images/shirt-00001-1.jpg,x\nshirt-00001-1.jpg,a\nabsent.jpg,c\n")
    assert command("tag", "--model", model, "--csv_path", csv, "--img_dir", samples.images, "--out_csv", tmp_path / "tags.csv").status == 1
    assert read(tmp_path / "tags.csv").filename.tolist() == ["shirt-00002-1.jpg", "shirt-00001-1.jpg"]
    errors = read(tmp_path / "tags.errors.csv").set_index("filename").reason
    assert "leads out" in errors["../samples/images/shirt-00001-1.jpg"] and "no such image" in errors["absent.jpg"]


def test_a_list_in_a_parquet_file(command, refused, model, samples, tmp_path):
    pytest.importorskip("pyarrow", reason="the extra parquet is not installed")
    names = ["shirt-00002-1.jpg", "shirt-00001-1.jpg"]
    pd.DataFrame(dict(image=names, price=[1, 2])).to_parquet(tmp_path / "list.parquet")
    words = ["tag", "--model", model, "--img_dir", samples.images, "--out_csv", tmp_path / "tags.csv"]
    refused(*words, "--csv_path", tmp_path, says=["is a directory; csv_path takes one table"])
    assert command(*words, "--csv_path", tmp_path / "list.parquet").status == 0
    assert read(tmp_path / "tags.csv").filename.tolist() == names


def test_odd_names_survive(command, model, samples, tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    names = sorted(["a, b.jpg", 'say "hi".jpg', "größe 纱.JPG"])
    for name in names: (folder / name).write_bytes((samples.images / "shirt-00001-1.jpg").read_bytes())
    assert command("tag", "--model", model, "--img_dir", folder, "--out_csv", tmp_path / "tags.csv").status == 0
    assert read(tmp_path / "tags.csv").filename.tolist() == names
    assert not (tmp_path / "tags.errors.csv").exists()


def test_missing_as_a_class_is_written_as_a_gap(samples, tmp_path, command):
    "With --missing class the last class of a head means that the label is missing; here the head always predicts it."
    words = ["--csv_path", samples.csv, "--img_dir", samples.images, "--missing", "class", "--runs_dir", tmp_path]
    assert command("train", "--run_name", "gaps", *words, *QUICK).status == 0
    tagger = load_tagger(tmp_path / "gaps/learn.pkl")
    with torch.no_grad(): tagger.model.heads[0][-1].bias[-1] = 1e4
    tagger.export(tmp_path / "always_missing.pkl")
    always_missing = ["--model", tmp_path / "always_missing.pkl"]
    command("tag", *always_missing, "--img_dir", samples.images, "--out_csv", tmp_path / "tags.csv")
    tags = read(tmp_path / "tags.csv")
    assert set(tags.neck) == {"#N/A"} and set(tags.neck_confidence) == {"1.0000"}
    outputs = ["--out_csv", tmp_path / "row.csv", "--out_image", tmp_path / "row.png"]
    command("test", *always_missing, "-i", samples.images / "shirt-00001-1.jpg", *outputs)
    assert read(tmp_path / "row.csv").neck[0] == "#N/A"


def test_scores_as_table_and_json(command, model, samples, tmp_path):
    labelled = ["--csv_path", samples.csv, "--img_dir", samples.images]
    result = command("evaluate", "--model", model, *labelled, "--out", tmp_path / "scores.json")
    # The verdict comes before the table, its legend and the next command after it.
    table = result.out[result.out.index("attribute ", result.out.index("\n\n")):].split("\n\n")[0].splitlines()
    assert result.status == 0 and [line.split()[0] for line in table] == ["attribute", *ATTRIBUTES, "mean"]
    scores = read_json(tmp_path / "scores.json")
    truth = read(samples.csv).drop_duplicates("filename", keep=False).set_index("filename")
    command("tag", "--model", model, "--img_dir", samples.images, "--out_csv", tmp_path / "tags.csv")
    tags = read(tmp_path / "tags.csv").set_index("filename")
    both = truth.join(tags, rsuffix="_predicted", how="inner").query("pattern != '#N/A'")
    assert abs((both.pattern == both.pattern_predicted).mean() - scores["attributes"]["pattern"]["accuracy"]) < 0.05


def test_labels_the_model_does_not_know(refused, model, samples, table):
    csv = table("filename,neck,sleeve_length,pattern\nshirt-00001-1.jpg,99,88,77\n")
    refused("evaluate", "--model", model, "--csv_path", csv, "--img_dir", samples.images,
            says=["shirt-00001-1.jpg", "line 2", "neck '99'", "pattern '77'", "known are 0, 1"])


def test_a_table_without_the_attributes(refused, model, samples, table):
    csv = table("filename,colour\nshirt-00001-1.jpg,1\n")
    refused("evaluate", "--model", model, "--csv_path", csv, "--img_dir", samples.images, says=["no column 'neck'"])


@pytest.mark.parametrize("content", [b"", b"no model", b"\x80\x04N."])
def test_files_that_are_no_model(refused, samples, tmp_path, content):
    (tmp_path / "model.pkl").write_bytes(content)
    for words in (["test", "-i", samples.images / "shirt-00001-1.jpg"],
                  ["tag", "--img_dir", samples.images, "--out_csv", tmp_path / "tags.csv"],
                  ["evaluate", "--csv_path", samples.csv, "--img_dir", samples.images]):
        refused(*words, "--model", tmp_path / "model.pkl", says=["model.pkl", "learn.pkl"])
    assert not (tmp_path / "tags.csv").exists()


def test_models_of_another_program(refused, model, samples, tmp_path):
    from fastai.learner import Learner
    photo = samples.images / "shirt-00001-1.jpg"
    torch.save(torch.nn.Linear(2, 2), tmp_path / "other.pkl")
    refused("test", "--model", tmp_path / "other.pkl", "-i", photo, says=["other.pkl", "is no tagger"])
    tagger = load_tagger(model)
    Learner(tagger.dls, tagger.model, loss_func=tagger.loss_func, path=tmp_path).export("plain.pkl")
    refused("test", "--model", tmp_path / "plain.pkl", "-i", photo, says=["holds a Learner", "AttributeLearner"])


def test_outputs_that_exist_or_cannot_be_written(refused, model, samples, tmp_path):
    mine, photo = tmp_path / "mine.csv", samples.images / "shirt-00001-1.jpg"
    mine.write_text("mine")
    for option in ("--out_csv", "--out_image"): refused("test", "--model", model, "-i", photo, option, mine, says=["mine.csv", "is kept"])
    tag = ["tag", "--model", model, "--img_dir", samples.images]
    refused(*tag, "--out_csv", mine, says=["is kept"])
    refused(*tag, "--out_csv", mine / "tags.csv", says=["cannot be written"])
    refused("evaluate", "--model", model, "--csv_path", samples.csv, "--img_dir", samples.images, "--out", mine, says=["is kept"])
    assert mine.read_text() == "mine"


def test_a_folder_without_images(refused, model, tmp_path):
    (tmp_path / "empty").mkdir()
    refused("tag", "--model", model, "--img_dir", tmp_path / "empty", "--out_csv", tmp_path / "tags.csv", says=["holds no photo"])
    refused("tag", "--model", model, "--img_dir", tmp_path / "absent", "--out_csv", tmp_path / "tags.csv", says=["no such folder"])


def test_load_learner_in_a_fresh_process(model, samples, tmp_path):
    "A program that imports only fastai can load the tagger and predict."
    photo = samples.images / "shirt-00001-1.jpg"
    code = ["from fastai.vision.all import load_learner",
            f"names, indices, probabilities = load_learner({str(model)!r}).predict({str(photo)!r})",
            "print(dict(names), indices.tolist(), [len(o) for o in probabilities.values()])"]
    printed = subprocess.run([sys.executable, "-W", "ignore", "-c", "\n".join(code)], capture_output=True, text=True, cwd=tmp_path)
    assert printed.returncode == 0, printed.stderr
    assert "'neck': " in printed.stdout and printed.stdout.strip().endswith("[6, 4, 6]")
