"A sweep: what may be searched, the same trials whatever stops it, the best settings scored on products that no trial saw."
import shlex

import pandas as pd
import pytest

import deep_fashion.experiment.sweep as module
from deep_fashion.core import InputError, read_json
from deep_fashion.experiment.search_result import Sweep
from deep_fashion.experiment.sweep import sweep

pytest.importorskip("optuna", reason="optuna comes with the extra sweep")

FIXED = dict(pretrained=False, size=32, batch_size=32, num_workers=0, epochs=1, learning_rate=0.003)


@pytest.fixture
def config(samples, tmp_path):
    "Write the file of a sweep."
    def write(search, **fixed):
        fixed = dict(csv_path=str(samples.csv), img_dir=str(samples.images)) | FIXED | fixed
        lines = [f"{name} = {str(value).lower() if isinstance(value, bool) else repr(value)}" for name, value in fixed.items()]
        (tmp_path / "sweep.toml").write_text("\n".join([*lines, search]))
        return tmp_path / "sweep.toml"
    return write


@pytest.mark.parametrize(
    "search, words",
    [
        ("", ["no table [search]"]),
        ("[serch]\ntitles = [true]", ["serch", "search"]),
        ("[search]\nlearning_rat = [0.1]", ["learning_rat", "did you mean 'learning_rate'"]),
        ("[search]\nvalid_csv = ['a.csv', 'b.csv']", ["valid_csv", "could not be compared"]),
        ("[search]\ncatch_all = ['auto', 'class']", ["catch_all", "could not be compared"]),
        ("[search]\nrandom_seed = [1, 2]", ["random_seed", "luckiest"]),
        ("[search]\nrun_name = ['a', 'b']", ["run_name", "does not change the scores"]),
        ("[search]\nnum_workers = [0, 1]", ["num_workers", "not the scores"]),
        ("[search]\narch = 'resnet18'", ["arch", "list of choices"]),
        ("[search]\nsize = ['huge']", ["size", "pixels"]),
        ("[search]\nepochs = [true]", ["epochs", "integer"]),
        ("[search]\nepochs = {low = 3, high = 1}", ["epochs", "below high"]),
        ("[search]\nepochs = {low = 1, high = 9, step = 0.5}", ["epochs", "step", "whole"]),
        ("[search]\nlearning_rate = {low = 0.1, hihg = 1}", ["hihg", "did you mean 'high'"]),
        ("[search]\ntitles = [true]\n[sweep]\nmethod = 'bayes'", ["method", "bayes", "grid"]),
        ("[search]\ntitles = [true]\n[sweep]\ntrails = 3", ["trails", "trials"]),
        ("[search]\npretrained = [true, false]\n", ["same photos", "folds"]),
        ("[search", ["not TOML"]),
    ],
)
def test_a_wrong_file_is_refused_before_anything_starts(refused, config, tmp_path, search, words):
    file = config(search)
    if "pretrained" in search: file.write_text(file.read_text().replace("epochs = 1\n", ""))
    refused("sweep", "--config", file, says=["sweep.toml", *words])
    assert not (tmp_path / "sweeps").exists()


def test_a_sweep_from_the_file_to_the_best_settings(command, config, tmp_path):
    words = "sweep", "--config", config("[search]\nepochs = [0, 1]\ntitles = [true, false]"), "--name", "first"
    result = command(*words)
    assert result.status == 0, result.err
    found = Sweep(tmp_path / "sweeps/first")
    assert found.trials.state.value_counts().to_dict() == dict(complete=2, failed=2)
    assert set(found.trials.reason[found.trials.state == "failed"]) == {"epochs is 0: nothing would be trained"}
    assert found.best["epochs"] == 1 and found.search_scores.loc["mean", "macro_f1"] == found.trials.macro_f1.max()
    # What was set aside is whole products, all of them unseen.
    split = pd.read_csv(found.file("split"))
    assert split.groupby("product").used.nunique().max() == 1 and 0.1 < (split.used == "set aside").mean() < 0.35
    honest = f"macro-F1 of {found.test_scores.loc['mean', 'macro_f1']:.3f}"
    for text in (honest, "no trial saw", "best of 4 trials (2 failed)", found.command): assert text in result.out
    page = found.file("page").read_text()
    assert "no trial saw" in page and "http" not in page.replace("http://www.w3.org", "")
    # The command line and the file mean the same settings.
    ways = ["--config", found.file("best")], shlex.split(found.command)[2:]
    shown = [command("train", *options, "--show_config").out for options in ways]
    assert shown[0] == shown[1] and f"titles = {str(found.best['titles']).lower()}" in shown[0]
    again = command(*words)
    assert (again.status, again.out) == (0, result.out) and "is finished, with 4 trials; all combinations" in again.err
    assert found.result == Sweep(found.path).result  # nothing was scored again
    assert "was started with test_pct 0.2" in command(*words, "--test_pct", "0.4").err


def test_the_best_settings_repeat_the_catch_all_classes_of_the_search(command, config, tmp_path, monkeypatch):
    monkeypatch.setattr("deep_fashion.data.training_set.resolve_catch_all", lambda table, *_: dict(neck=table.rows.neck.mode()[0]))
    found = sweep(config("[search]\ntitles = [false]"), "auto", sweeps_dir=tmp_path / "sweeps")
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    expected = dict(part.split("=") for part in found.result["settings"]["catch_all"].split(","))
    assert expected["neck"] != "class" and expected["pattern"] == expected["sleeve_length"] == "class"
    for i, options in enumerate((["--config", found.file("best")], shlex.split(found.command)[2:])):
        assert command("train", *options, "--run_name", i, "--no-report").status == 0
        assert read_json(tmp_path / f"runs/{i}/metrics.json")["catch_all"] == dict(neck=expected["neck"])


def test_photos_of_products_set_aside_are_left_out_of_both_tables(samples, config, tmp_path):
    rows = pd.read_csv(samples.csv, dtype=str).drop_duplicates("filename", ignore_index=True)
    for name, part in dict(train=rows[rows.index % 3 > 0], valid=rows[rows.index % 3 == 0]).items():
        part.to_csv(tmp_path / f"{name}.csv", index=False)
    file = config("[search]\ntitles = [false]", csv_path=str(tmp_path / "train.csv"), valid_csv=str(tmp_path / "valid.csv"))
    split = pd.read_csv(sweep(file, "two", sweeps_dir=tmp_path / "sweeps").file("split"))
    assert split.groupby("product")["used"].nunique().max() == 1
    of_valid = split.filename.isin(rows.filename[::3])
    assert (split.used[of_valid] == "set aside").any() and (split.used[of_valid] == "search").any()


def test_weights_that_saw_what_is_set_aside_are_named(command, config, samples, trained, tmp_path):
    file = config("[search]\nepochs = [1]", weights=str(trained / "checkpoint.pth"), names=str(samples.names))
    # The default seed would set aside what the run did not train on either.
    found = command("sweep", "--config", file, "--name", "seen", "--random_seed", 7)
    assert found.status == 0, found.err
    assert sum("trained on photos that are set aside now" in note for note in found.notes) == 1, found.notes
    assert "trained on photos that are set aside now" in found.out and "With the default settings" not in found.out


def test_a_stopped_sweep_ends_as_one_that_was_not(command, config, tmp_path, monkeypatch):
    file = config("[search]\nlearning_rate = {low = 1e-4, high = 1e-2, log = true}\n[sweep]\nmethod = 'random'\ntrials = 3")
    train, calls = module.run_trial, []
    def stopped(*arguments):
        calls.append(1)
        if len(calls) == 2: raise KeyboardInterrupt
        return train(*arguments)
    def stopped_at_once(*_): raise KeyboardInterrupt
    monkeypatch.setattr(module, "run_trial", stopped)
    result = command("sweep", "--config", file, "--name", "stopped")
    assert result.status == 130 and not (tmp_path / "sweeps/stopped/result.json").exists()
    assert "stopped; 1 finished trial is kept, the same command continues" in result.err
    with monkeypatch.context() as during:
        during.setattr(module, "set_products_aside", stopped_at_once)
        for name, line in dict(stopped="1 finished trial is kept", new="deep_fashion: stopped\n").items():
            assert line in command("sweep", "--config", file, "--name", name).err
    assert not (tmp_path / "sweeps/new").exists()
    assert command("sweep", "--config", file, "--name", "stopped").status == 0
    changed = file.read_text().replace("1e-4", "1e-3")
    file.with_name("changed.toml").write_text(changed)
    words = "was started with learning_rate 0.0001 to 0.01, logarithmic in [search];"
    assert words in command("sweep", "--config", file.with_name("changed.toml"), "--name", "stopped").err
    assert len(calls) == 4  # the one that was stopped is repeated, the one before it is not
    monkeypatch.undo()
    one = Sweep(tmp_path / "sweeps/stopped").trials
    other = sweep(file, "jobs", jobs=2, sweeps_dir=tmp_path / "sweeps").trials
    assert sorted(one.learning_rate) == sorted(other.learning_rate) and set(other.state) == {"complete"}
    more = sweep(file, "stopped", trials=4, sweeps_dir=tmp_path / "sweeps")
    assert len(more.trials) == 4 and more.result["looks"] == 2 and more.trials.learning_rate[:3].tolist() == one.learning_rate.tolist()


def test_what_belongs_to_others_is_kept(refused, config, tmp_path):
    file = config("[search]\ntitles = [true, false]")
    (tmp_path / "sweeps/mine").mkdir(parents=True)
    (tmp_path / "sweeps/mine/notes.txt").write_text("mine")
    refused("sweep", "--config", file, "--name", "mine", says=["mine", "is kept"])
    assert [path.name for path in (tmp_path / "sweeps/mine").iterdir()] == ["notes.txt"]
    refused("sweep", "--config", file, "--name", "../up", says=["name '../up'"])
    refused("sweep", "--config", config("[search]\ntitles = [true]", csv_path="nowhere.csv"), says=["nowhere.csv"])
    assert not (tmp_path / "sweeps/sweep").exists()


def test_if_all_trials_fail_the_first_reason_is_given(refused, config, tmp_path):
    file = config("[search]\narch = ['no_such_net']\ntitles = [true, false]")
    refused("sweep", "--config", file, says=["none of the 2 trials", "no_such_net"])
    assert (tmp_path / "sweeps/sweep/trials.csv").exists() and not (tmp_path / "sweeps/sweep/result.json").exists()


def test_a_damaged_sweep_is_named(refused, config, tmp_path):
    file = config("[search]\narch = ['no_such_net']")
    refused("sweep", "--config", file, says=["none of the 1 trials"])
    (tmp_path / "sweeps/sweep/study.db").write_text("no database")
    refused("sweep", "--config", file, says=["study.db", "cannot be used"])
    (tmp_path / "sweeps/sweep/sweep.json").write_text("{")
    refused("sweep", "--config", file, says=["sweep.json", "not JSON"])
    with pytest.raises(InputError, match="no finished sweep"): Sweep(tmp_path / "sweeps/sweep")
