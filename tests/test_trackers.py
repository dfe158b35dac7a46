"Experiment trackers: what they keep is what the run keeps, however the run ends; read back with each library's own reader."
import configparser
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from fastai.basics import defaults
from fastai.callback.core import Callback
from PIL import Image

from deep_fashion.cli import main
from deep_fashion.experiment.training import train_tagger
from deep_fashion.run import Run
from deep_fashion.settings import Settings
from deep_fashion.train.trackers import TRACKERS, TensorBoard

INSTALLED = [name for name in TRACKERS if importlib.util.find_spec(name)]
ROOT = Path(__file__).resolve().parents[1]


def needs(name): return pytest.mark.skipif(name not in INSTALLED, reason=f"{name} is not installed")


@pytest.fixture(scope="module")
def given(samples, tmp_path_factory):
    "Arguments of tiny runs, in an environment where no tracker leaves the folder of the tests."
    folder = tmp_path_factory.mktemp("tracked")
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith(("WANDB_", "MLFLOW_", "TRACKIO_"))]: patch.delenv(name)
        patch.setenv("WANDB_MODE", "offline")
        patch.setenv("TRACKIO_DIR", str(folder / "trackio"))
        tiny = dict(csv_path=samples.csv, img_dir=samples.images, size=48, batch_size=16, num_workers=0, runs_dir=folder / "runs")
        yield dict(tiny, attributes=["neck", "pattern"], pretrained=False, epochs=2, learning_rate=3e-3, report=False)


@pytest.fixture(scope="module")
def in_epochs(given): return train_tagger("in-epochs", **given, tracker=INSTALLED)


@pytest.fixture(scope="module")
def probed(given, in_epochs):
    probing = dict(epochs=None, crops="whole", weights=in_epochs.path, report=True)
    return train_tagger("probed", **{**given, **probing}, tracker=INSTALLED)


@pytest.fixture(params=["in_epochs", "probed"])
def run(request): return request.getfixturevalue(request.param)


def curves_of(run):
    "Name of a curve -> (step, value), from the files of a run."
    history, found = run.history, {}
    kind = "folds" if "fold" in history else "epochs"
    for i, row in enumerate(history.drop(columns=["phase", "epoch", "best", "fold"], errors="ignore").to_dict("records")):
        for name, value in row.items(): found.setdefault(f"{kind}/{name}", []).append((i + (kind == "epochs"), value))
    batches = run.batches
    if batches is None: return found
    per_epoch = (batches.epoch < 1).sum()
    for name in ("learning_rate", "train_loss"):
        found[f"batches/{name}"] = [(round(epoch * per_epoch), value) for epoch, value in zip(batches.epoch, batches[name])]
    return found


def scores_of(run):
    metrics = run.metrics
    found = {f"scores/{name}": value for name, value in metrics["mean"].items()}
    return found | {f"scores/{a}/{name}": value for a, scores in metrics["attributes"].items() for name, value in scores.items()}


def check(kept, run, curve_of, score_of):
    "Compare what a tracker keeps with the files of the run."
    curves, scores = curves_of(run), scores_of(run)
    assert len(curves) > 5 and len(scores) > 20
    for name, points in curves.items():
        assert [step for step, _ in curve_of(kept, name)] == [step for step, _ in points], name
        assert [value for _, value in curve_of(kept, name)] == pytest.approx([value for _, value in points], rel=1e-5), name
    for name, value in scores.items():
        if value is not None: assert score_of(kept, name) == pytest.approx(value, rel=1e-5), name


def events_of(run):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    return EventAccumulator(str(run.path / "tensorboard")).Reload()


@needs("tensorboard")
def test_tensorboard(run):
    kept = events_of(run)
    check(kept, run, lambda kept, name: [(o.step, o.value) for o in kept.Scalars(name)], lambda kept, name: kept.Scalars(name)[0].value)
    assert {"report/scores", "neck/confusions", "neck/reliability", "neck/coverage"} <= set(kept.Tags()["images"])
    texts = {tag: kept.Tensors(tag)[0].tensor_proto.string_val[0].decode() for tag in kept.Tags()["tensors"]}
    assert texts["model_card/text_summary"].startswith("# Tagger of")
    assert f"| plan/arch | {run.config['plan']['arch']} |" in texts["settings/text_summary"]
    assert texts["status/text_summary"] == "finished"


def store(run):
    from mlflow import MlflowClient

    return MlflowClient(f"sqlite:///{run.path.parent / 'mlflow.db'}")


@needs("mlflow")
def test_mlflow(run, tmp_path):
    client, run_id = store(run), run.config["trackers"]["mlflow"]
    def curve_of(client, name): return sorted((o.step, o.value) for o in client.get_metric_history(run_id, name))
    kept = client.get_run(run_id)
    check(client, run, curve_of, lambda _, name: kept.data.metrics[name])
    assert (kept.info.status, kept.info.run_name) == ("FINISHED", run.name)
    assert kept.data.params["plan/arch"] == run.config["plan"]["arch"] and kept.data.params["batch_size"] == "16"
    assert kept.data.params["versions/torch"] == run.config["versions"]["torch"]
    assert kept.data.tags["mlflow.note.content"].startswith("# Tagger of")
    files = {o.path for o in client.list_artifacts(run_id)}
    assert {"metrics.json", "history.csv", "config.toml", "model_card.md", "pictures"} <= files
    assert ("report.html" in files) == run.file("report").exists()
    Image.open(client.download_artifacts(run_id, "pictures/neck/confusions.png", str(tmp_path))).verify()


@needs("trackio")
def test_trackio(run):
    from trackio.sqlite_storage import SQLiteStorage

    run_id = run.config["trackers"]["trackio"]
    kept = SQLiteStorage.get_logs("deep_fashion", run.name, run_id=run_id)
    def curve_of(kept, name): return sorted((row["step"], row[name]) for row in kept if name in row)
    check(kept, run, curve_of, lambda kept, name: curve_of(kept, name)[0][1])
    values = {name: value for row in kept for name, value in row.items()}
    assert values["neck/confusions"]["_type"] == "trackio.image" and values["model_card"]["_value"].startswith("# Tagger of")
    config = SQLiteStorage.get_run_config("deep_fashion", run.name, run_id=run_id)
    assert config["plan/arch"] == run.config["plan"]["arch"] and config["batch_size"] == 16


def inspected(folder):
    "The records of a W&B run that was kept in files."
    [file] = folder.glob("*.wandb")
    program = "import sys; from wandb.cli.cli import cli; cli(sys.argv[1:])"
    read = subprocess.run([sys.executable, "-c", program, "leet", "inspect", "--json", file], capture_output=True, text=True, check=True)
    return [json.loads(line) for line in read.stdout.splitlines() if line.startswith("{")]


@needs("wandb")
def test_wandb(run):
    [folder] = (run.path.parent / "wandb").glob(f"offline-run-*-{run.config['trackers']['wandb']}")
    kept = inspected(folder)
    items = [record["history"]["item"] for record in kept if record["type"] == "history"]
    axes = {record["metric"]["name"]: record["metric"].get("step_metric") for record in kept if record["type"] == "metric"}
    summary, config = {}, {}
    for record in kept:
        summary |= record.get("summary", {}).get("update", {})
        config |= record.get("config", {}).get("update", {})
    check(items, run, lambda items, name: [(item[axes[name]], item[name]) for item in items if name in item], lambda _, name: summary[name])
    assert config["plan/arch"] == run.config["plan"]["arch"] and config["batch_size"] == 16
    kinds = {name.removesuffix("._type"): value for record in items for name, value in record.items() if name.endswith("._type")}
    assert kinds["neck/confusions"] == "image-file" and kinds["model_card"] == "html-file"
    [artifact] = [record["artifact"] for record in kept if record["type"] == "artifact"]
    assert "metrics.json" in json.dumps(artifact)
    # Neither the program nor its machine is described.
    assert not [path for path in (folder / "files").rglob("*") if path.name in ("wandb-metadata.json", "requirements.txt")]


@needs("tensorboard")
def test_folds_in_epochs_have_curves_of_their_own(given):
    run = train_tagger("folds", **{**given, "epochs": 1}, folds=2, tracker="tensorboard")
    kept = events_of(run)
    for fold in (0, 1):
        [row] = pd.read_csv(run.fold_history(fold)).to_dict("records")
        [point] = kept.Scalars(f"fold_{fold}/epochs/valid_loss")
        assert (point.step, point.value) == (1, pytest.approx(row["valid_loss"], rel=1e-5))
        [point] = [o for o in kept.Scalars("folds/macro_f1") if o.step == fold]
        assert point.value == pytest.approx(run.history.macro_f1[fold], rel=1e-5)


class StopAfter(Callback):
    "Stop as Ctrl-C does, after the first epoch was logged."
    order = 70
    def after_epoch(self): raise KeyboardInterrupt


@needs("mlflow")
def test_a_resumed_run_goes_on_in_the_tracker(given, in_epochs):
    defaults.callbacks.append(StopAfter)
    try:
        with pytest.raises(KeyboardInterrupt): train_tagger("stopped", **given, tracker="mlflow")
    finally: defaults.callbacks.remove(StopAfter)
    client, stopped = store(in_epochs), Run(given["runs_dir"] / "stopped").config["trackers"]["mlflow"]
    assert client.get_run(stopped).info.status == "KILLED"
    run = train_tagger("stopped", **given, resume=True, tracker="mlflow")
    assert run.config["trackers"]["mlflow"] == stopped and client.get_run(stopped).info.status == "FINISHED"
    points = [(o.step, o.value) for o in client.get_metric_history(stopped, "epochs/valid_loss")]
    assert points == [(1, pytest.approx(run.history.valid_loss[0])), (2, pytest.approx(run.history.valid_loss[1]))]


@needs("mlflow")
def test_what_cannot_be_trained_failed_in_the_tracker(given, in_epochs, refused):
    options = ["--csv_path", given["csv_path"], "--img_dir", given["img_dir"], "--runs_dir", given["runs_dir"], "--tracker", "mlflow"]
    refused("train", "--run_name", "wrong", *options, "--group_column", "product", says=["no column"])
    client = store(in_epochs)
    [experiment] = [o for o in client.search_experiments() if o.name == "deep_fashion"]
    [failed] = [o for o in client.search_runs([experiment.experiment_id]) if o.info.run_name == "wrong"]
    assert failed.info.status == "FAILED"
    assert not (given["runs_dir"] / "wrong").exists()


@needs("tensorboard")
def test_a_tracker_that_fails_loses_nothing(given, command, monkeypatch):
    def full(self, points, axis): raise OSError(28, "No space left on device")
    monkeypatch.setattr(TensorBoard, "curves", full)
    options = ["--csv_path", given["csv_path"], "--img_dir", given["img_dir"], "--runs_dir", given["runs_dir"], "--no-report"]
    tiny = ["--no-pretrained", "--size", 48, "-ep", 1, "-lr", 0.003, "--attributes", "neck"]
    result = command("train", "--run_name", "full", *options, *tiny, "--tracker", "tensorboard")
    assert result.status == 0, result.err
    assert [note for note in result.notes if "failed" in note] == [
        "tracker tensorboard: failed (OSError: [Errno 28] No space left on device); the training goes on without it"
    ]
    assert Run(given["runs_dir"] / "full").metrics["mean"]["accuracy"] >= 0


def test_what_is_wrong_is_found_before_anything_starts(given, refused, monkeypatch):
    options = ["--run_name", "wrong", "--csv_path", given["csv_path"], "--img_dir", given["img_dir"], "--runs_dir", given["runs_dir"]]
    refused("train", *options, "--tracker", "mlflow,tensorbord", says=["tracker 'tensorbord'", "did you mean 'tensorboard'?"])
    monkeypatch.setitem(sys.modules, "trackio", None)
    refused("train", *options, "--tracker", "trackio", says=["trackio is not installed", "pip install 'deep_fashion[trackio]'"])
    assert not (given["runs_dir"] / "wrong").exists()


@needs("wandb")
def test_wandb_without_a_login_is_explained(given, tmp_path, refused, monkeypatch):
    import wandb

    for name, value in dict(WANDB_MODE="online", NETRC=tmp_path / "none", HOME=tmp_path).items(): monkeypatch.setenv(name, str(value))
    # What it read from the environment before is forgotten.
    wandb.teardown()
    options = ["--run_name", "wrong", "--csv_path", given["csv_path"], "--img_dir", given["img_dir"]]
    try: refused("train", *options, "--tracker", "wandb", says=["run wandb login once, or set WANDB_MODE=offline"])
    finally: wandb.teardown()
    assert not Path("runs/wrong").exists()


def test_nothing_is_imported_before_it_is_needed():
    program = ("import sys; from deep_fashion.cli import main; main(['train', '--help']); "
               "print([name for name in ('tensorboard', 'mlflow', 'trackio', 'wandb') if name in sys.modules])")
    asked = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert asked.stdout.splitlines()[-1] == "[]"


def test_every_tracker_has_an_extra_and_is_in_the_help():
    parser = configparser.ConfigParser(delimiters=["="], interpolation=None)
    parser.read(ROOT / "settings.ini", encoding="utf-8")
    for name in TRACKERS:
        assert f"{name}_requirements" in parser["DEFAULT"], name
        assert name in Settings.model_fields["tracker"].description, name


def test_a_configuration_file_names_trackers(command):
    result = command("train", "--tracker", "mlflow,trackio", "--show_config")
    assert 'tracker = [\n    "mlflow",\n    "trackio",\n]' in result.out and main(["train", "--help"]) == 0
