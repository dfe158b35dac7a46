"Runs: what they leave, what they refuse, how they go on."
import json

import pandas as pd
import pytest
import torch
from conftest import QUICK

from deep_fashion.core import read_json
from deep_fashion.predict.tagger import load_tagger


@pytest.fixture
def train(samples, tmp_path):
    def words(name, *more):
        return (
            "train",
            "--run_name",
            name,
            "--csv_path",
            samples.csv,
            "--img_dir",
            samples.images,
            "--runs_dir",
            tmp_path / "runs",
            *QUICK,
            *more,
        )

    return words


def test_a_run_leaves_what_it_promises(trained):
    assert {path.name for path in trained.iterdir()} == {
        "bundle",
        "learn.pkl",
        "metrics.json",
        "report.html",
        "batches.csv",
        "history.csv",
        "loss.png",
        "config.json",
        "config.toml",
        "split.csv",
        "dropped.csv",
        "checkpoint.pth",
        "predictions.csv",
    }
    metrics, config = read_json(trained / "metrics.json"), read_json(trained / "config.json")
    assert set(metrics["attributes"]) == {"neck", "sleeve_length", "pattern"}
    assert {
        "photos",
        "accuracy",
        "macro_f1",
        "majority_accuracy",
        "majority_macro_f1",
        "macro_f1_low",
        "macro_f1_high",
        "balanced_accuracy",
        "calibration_error",
        "coverage_at_95",
        "coverage_at_95_low",
        "accuracy_low",
        "accuracy_high",
        "products",
    } == set(metrics["mean"])
    assert config["settings"]["random_seed"] == 42 and config["versions"]["fastai"]


def test_no_product_is_on_both_sides(trained):
    split = pd.read_csv(trained / "split.csv")
    product = split.filename.str.extract(r"(\d+)-\d+\.jpg$")[0]
    assert not set(product[split.is_valid]) & set(product[~split.is_valid])
    assert 0.1 < split.is_valid.mean() < 0.35


def test_checkpoint_holds_the_exported_weights(trained):
    state = torch.load(trained / "checkpoint.pth", weights_only=True)
    exported = load_tagger(trained / "learn.pkl").model.state_dict()
    assert all(torch.equal(exported[k], v) for k, v in state.items())


def test_a_name_is_used_once(refused, command, train, tmp_path):
    assert command(*train("one")).status == 0
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs/one").iterdir()}
    refused(*train("one"), says=["a run of that name exists", "is kept"])
    refused(*train("one", "--resume"), says=["finished"])
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "runs/one").iterdir()}


@pytest.mark.parametrize("name", ["../out", "a/b", "", ".."])
def test_names_that_leave_the_folder(refused, train, name): refused(*train(name), says=["run_name"])


@pytest.mark.parametrize("epochs_before_stop", [1, 2])
def test_a_stopped_run_ends_as_an_unbroken_one(monkeypatch, command, train, tmp_path, epochs_before_stop):
    "Two phases: stopped between them, and within the second."
    from deep_fashion.model.body import create_backbone
    from deep_fashion.train.checkpoint import RunCheckpoint
    torch.manual_seed(0)
    torch.save(create_backbone("resnet18", False).state_dict(), tmp_path / "resnet18.pth")
    words = ["--weights", tmp_path / "resnet18.pth", "-ep", "3", "--no-report"]
    assert command(*train("unbroken", *words)).status == 0
    finish_epoch = RunCheckpoint.after_epoch
    def stop(self):
        finish_epoch(self)
        if len(self.history.rows) == epochs_before_stop: raise KeyboardInterrupt
    with monkeypatch.context() as patch:
        patch.setattr(RunCheckpoint, "after_epoch", stop)
        stopped = command(*train("stopped", *words))
    assert stopped.status == 130 and "--resume" in stopped.lines[-1] and not (tmp_path / "runs/stopped/learn.pkl").exists()
    assert command(*train("stopped", *words, "--resume")).status == 0
    assert read_json(tmp_path / "runs/stopped/metrics.json") == read_json(tmp_path / "runs/unbroken/metrics.json")
    losses = [pd.read_csv(tmp_path / "runs" / name / "history.csv").valid_loss.tolist() for name in ("unbroken", "stopped")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_nothing_to_resume(refused, train): refused(*train("none", "--resume"), says=["no run of that name"])


@pytest.mark.parametrize(
    "option, value",
    [
        ("--epochs", "-1"),
        ("--epochs", "0"),
        ("--batch_size", "1"),
        ("--size", "3"),
        ("--valid_pct", "1.5"),
        ("-lr", "0"),
        ("--arch", "resnet1"),
        ("--weights", "none.pth"),
        ("--group_pattern", "("),
        ("--names", "none.json"),
    ],
)
def test_options_out_of_range(refused, train, option, value, tmp_path):
    refused(*train("wrong", option, value), says=[value] if option != "--epochs" else ["epochs"])
    assert not (tmp_path / "runs/wrong").exists()


def test_unknown_option(command, train): assert command(*train("x", "--sise", "3")).status == 2


def test_plain_training(command, train, tmp_path):
    from fastai.data.core import TfmdDL
    assert command(*train("plain", "--plain")).status == 0
    tagger = load_tagger(tmp_path / "runs/plain/learn.pkl")
    assert type(tagger.dls.train) is TfmdDL and not {"FeatureCache", "BFloat16"} & {type(cb).__name__ for cb in tagger.cbs}
    assert read_json(tmp_path / "runs/plain/config.json")["settings"]["plain"] is True


def test_missing_as_a_class_widens_every_head(command, train, tmp_path):
    assert command(*train("wide", "--missing", "class")).status == 0
    assert load_tagger(tmp_path / "runs/wide/learn.pkl").model.sizes == [7, 5, 7]


def test_paths_for_checkpoint_and_loss_graph(command, refused, train, tmp_path):
    (tmp_path / "graphs").mkdir()
    assert command(*train("paths", "--checkpoint_path", tmp_path / "best.pth", "--lossgraph_path", tmp_path / "graphs")).status == 0
    assert (tmp_path / "best.pth").exists() and (tmp_path / "graphs/loss.png").exists()
    refused(*train("more", "--checkpoint_path", tmp_path / "best.pth"), says=["best.pth", "is kept"])


def test_runs_dir_that_cannot_be_written(refused, train, tmp_path):
    (tmp_path / "file").write_text("a file, not a folder")
    refused(*train("x", "--runs_dir", tmp_path / "file" / "runs"), says=["cannot be made"])


def test_weights_of_an_earlier_backbone(command, train, tmp_path):
    from deep_fashion.model.body import create_backbone
    torch.save(create_backbone("resnet18", False).state_dict(), tmp_path / "resnet18.pth")
    assert command(*train("warm", "--weights", tmp_path / "resnet18.pth")).status == 0
    assert pd.read_csv(tmp_path / "runs/warm/history.csv").phase.tolist() == ["frozen body", "all layers"]


def test_weights_without_a_network(monkeypatch, command, refused, samples, tmp_path):
    "Fetching fails in one line that names the ways out."
    import torchvision
    def unreachable(*_, **__): raise OSError("Name or service not known")
    monkeypatch.setattr(torchvision.models, "get_model", unreachable)
    words = "train", "--csv_path", samples.csv, "--img_dir", samples.images, "--runs_dir", tmp_path, "-nw", "0", "--size", "64"
    refused(*words, "--run_name", "named", "--arch", "resnet18", says=["--no-pretrained", "--weights", "tf_efficientnet_lite0"])
    unnamed = command(*words, "--run_name", "unnamed", "--views", "whole")
    assert unnamed.status == 0 and "tf_efficientnet_lite0 is used" in unnamed.err
    assert read_json(tmp_path / "unnamed/config.json")["plan"]["arch"] == "tf_efficientnet_lite0"


def test_offline_weights(command, samples, tmp_path):
    "The installed weights arrive tensor by tensor, and pixels are normalised as they want it."
    from deep_fashion.model.arch import offline_file
    from deep_fashion.model.body import create_backbone, read_weights
    released, loaded = read_weights(offline_file("tf_efficientnet_lite0")), create_backbone("tf_efficientnet_lite0").state_dict()
    assert len(released) == len(loaded) and all(torch.equal(a, b) for a, b in zip(released.values(), loaded.values(), strict=True))
    words = [
        "train",
        "--run_name",
        "lite",
        "--csv_path",
        samples.csv,
        "--img_dir",
        samples.images,
        "--runs_dir",
        tmp_path,
        "--arch",
        "tf_efficientnet_lite0",
        "--size",
        "64",
        "-ep",
        "0",
        "-nw",
        "0",
    ]
    assert command(*words).status == 0
    assert load_tagger(tmp_path / "lite/learn.pkl").model.mean.flatten().tolist() == pytest.approx([0.498] * 3)


def test_learning_rate_is_found_and_kept(command, samples, tmp_path):
    words = [w for w in QUICK if w not in ("-lr", "0.003")]
    assert (
        command(
            "train", "--run_name", "found", "--csv_path", samples.csv, "--img_dir", samples.images, "--runs_dir", tmp_path, *words
        ).status
        == 0
    )
    assert {path.name for path in tmp_path.iterdir()} == {"found"}
    assert 1e-6 < json.loads((tmp_path / "found/config.json").read_text())["found_learning_rate"] < 1


def test_a_column_called_fold_is_the_users_own(command, samples, tmp_path):
    "In the table, `fold` means nothing to a single split; as an attribute it is refused."
    rows = pd.read_csv(samples.csv, dtype=str)
    rows.assign(fold=[str(i % 3) for i in range(len(rows))]).to_csv(tmp_path / "fold.csv", index=False)
    words = ["train", "--csv_path", tmp_path / "fold.csv", "--img_dir", samples.images, "--no-report", *QUICK]
    assert command(*words, "--run_name", "a", "--attributes", "neck,pattern").status == 0
    assert read_json(tmp_path / "runs/a/config.json")["plan"]["folds"] == 1 and "is_valid" in pd.read_csv(tmp_path / "runs/a/split.csv")
    refused = command(*words, "--run_name", "b", "--attributes", "neck,fold")
    assert refused.status == 2 and "'fold' cannot be an attribute" in refused.err


def test_outputs_never_replace_each_other(refused, train, tmp_path, trained, samples):
    runs = tmp_path / "runs"
    refused(*train("a", "--lossgraph_path", runs / "a/metrics.json"), says=["metrics.json", "another file of the run"])
    refused(*train("a", "--checkpoint_path", runs / "a/learn.pkl"), says=["learn.pkl", "another file of the run"])
    refused(*train("a", "--checkpoint_path", tmp_path / "x", "--lossgraph_path", tmp_path / "x"), says=["another file of the run"])
    refused(
        "evaluate",
        "--model",
        trained,
        "--csv_path",
        samples.csv,
        "--img_dir",
        samples.images,
        "--out",
        tmp_path / "f.html",
        says=["f.html"],
    )
    refused(
        "test", "--model", trained, "-i", samples.images / "shirt-00001-1.jpg", "--out_image", "o", "--out_csv", "o", says=["two files"]
    )


def test_a_damaged_run_is_explained(refused, command, train, tmp_path):
    run = tmp_path / "runs/a"
    assert command(*train("a")).status == 0
    (run / "report.html").unlink()
    config = (run / "config.json").read_text()
    (run / "config.json").write_text("{}")
    refused(*train("a", "--resume"), says=["config.json", "damaged"])
    (run / "config.json").write_text(config.replace('"crops"', '"views"'))
    refused(*train("a", "--resume"), says=["config.json", "another version"])
    (run / "config.json").write_text(config)
    refused(*train("a", "--resume", "-ep", "2"), says=["was started with epochs 1"])
    (run / "learn.pkl").unlink()
    (run / "checkpoint.pth").write_bytes(b"PK")
    refused(*train("a", "--resume"), says=["checkpoint.pth", "remove it"])
    (run / "checkpoint.pth").unlink()
    assert command(*train("a", "--resume")).status == 0 and (run / "learn.pkl").exists()
