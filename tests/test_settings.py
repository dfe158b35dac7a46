"Settings: the same in keywords, options, files and records of a run; the command line as people meet it."
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from conftest import QUICK

from deep_fashion.cli import COMMANDS
from deep_fashion.core import read_json
from deep_fashion.run import Run
from deep_fashion.settings import Settings

NAMES = [command.name for command in COMMANDS]


def test_without_a_command_help_is_printed(command):
    result = command()
    assert result.status == 0 and result.out == command("--help").out
    assert re.findall(r"^  ([\w-]+)", result.out.split("Commands:")[1], re.M) == NAMES


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("columns", [80, 120])
def test_help_is_grouped_fits_the_window_and_ends_with_two_examples(command, monkeypatch, name, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    text = command(name, "--help").out
    groups = re.findall(r"^([A-Z]\w+):$", text, re.M)
    first = [group for group in groups if group not in ("Usage", "Arguments")][0]
    assert first in ("Input", "Output", "Options") and groups[-1] == "Examples" and "%%" not in text
    assert len(re.findall(r"^  deep_fashion ", text, re.M)) == 2
    options, examples = text.split("Examples:")
    assert max(map(len, options.splitlines())) <= columns
    for group in re.split(r"^\w[\w ]+:$", options, flags=re.M)[1:]: assert len(re.findall(r"^  (?:-\w+, )?--", group, re.M)) <= 10


def test_every_setting_has_an_option_and_help(command):
    text = " ".join(command("train", "--help").out.split())
    for name, field in Settings.model_fields.items(): assert f"--{name}" in text and len(field.description) > 10
    for short in ("-ep", "-bs", "-lr", "-nw"): assert f"{short}, --" in text


@pytest.mark.parametrize(
    "words, hint", [(["trian"], "train"), (["train", "--epoch", "3"], "--epochs"), (["tag", "--img", "x"], "--img_dir")]
)
def test_misspelt_names_get_a_hint(refused, words, hint): refused(*words, says=["Did you mean", hint])


def test_completion_is_offered():
    program = Path(sys.executable).parent / "deep_fashion"
    for shell in ("bash", "zsh", "fish"):
        done = subprocess.run(
            [program], env={"_DEEP_FASHION_COMPLETE": f"{shell}_source", "PATH": "/usr/bin:/bin"}, capture_output=True, text=True
        )
        assert done.returncode == 0 and "_DEEP_FASHION_COMPLETE" in done.stdout


def test_a_shown_configuration_is_one_that_can_be_used(command, tmp_path):
    shown = command(
        "train", "--show_config", "--run_name", "a", "-ep", "3", "--no-titles", "--size", "480x360", "--attributes", "neck, pattern"
    ).out
    values = tomllib.loads(shown)
    assert values == {"run_name": "a", "epochs": 3, "titles": False, "size": [480, 360], "attributes": ["neck", "pattern"]}
    (tmp_path / "config.toml").write_text(shown)
    assert command("train", "--show_config", "--config", tmp_path / "config.toml").out == shown
    for name, field in Settings.model_fields.items():
        assert name == "resume" or re.search(rf"^(# )?{name} =", shown, re.M) and field.description in shown, name


@pytest.mark.parametrize(
    "text, words",
    [
        ("epoch = 3", ["'epoch'", "did you mean 'epochs'"]),
        ('epochs = "three"', ["epochs", "'three'"]),
        ('batch_size = "32"', ["batch_size", "integer"]),
        ("pretrained = 1", ["pretrained", "bool"]),
        ("learning_rate = 20.0", ["learning_rate", "between 0 and 10"]),
        ('missing = "drop"', ["missing", "'mask' or 'class'"]),
        ("size = 3", ["size", "at least 32"]),
        ("epochs =", ["not TOML"]),
        ("[labels]\nmissing = 1", ["'labels'"]),
        ("epochs = 2026-01-01", ["epochs"]),
    ],
)
def test_mistakes_in_a_file_are_one_line(refused, tmp_path, text, words):
    (tmp_path / "mine.toml").write_text(text)
    refused("train", "--config", tmp_path / "mine.toml", "--run_name", "a", "--csv_path", "b", "--img_dir", "c", says=["mine.toml", *words])


@pytest.mark.parametrize(
    "text, word",
    [
        ("size = 48.5", "expected pixels"),
        ("random_seed = 4294967296", "between 0 and"),
        ('runs_dir = "a\\u0000"', "NUL"),
        ("attributes = " + "[" * 900, "TOML"),
        ('run_name = ""', "run_name"),
        ("csv_path = 1979-05-27", "csv_path"),
        (f'run_name = "{"x" * 300}"', "at most 200"),
    ],
)
def test_odd_values_in_a_file_are_one_line(refused, tmp_path, text, word):
    (tmp_path / "mine.toml").write_text("\ufeff" + text)
    given = [word for name in ("run_name", "csv_path", "img_dir") if name not in text for word in (f"--{name}", "a")]
    refused("train", "--config", tmp_path / "mine.toml", *given, says=[word])


def test_what_cannot_be_trained_is_not_shown(refused):
    refused("train", "--show_config", "--run_name", "a/b", says=["run_name"])
    refused("train", "--show_config", "-ep", "0", "--no-pretrained", says=["nothing would be trained"])


def test_settings_are_given_alone():
    from deep_fashion.core import InputError
    from deep_fashion.experiment.training import train_tagger
    with pytest.raises(InputError, match="give Settings alone"): train_tagger(Settings(run_name="a", csv_path="b", img_dir="c"), epochs=3)


def test_files_that_are_none(refused, tmp_path):
    (tmp_path / "bytes.toml").write_bytes(b"\xff\xfe\x00")
    for name, word in (("absent.toml", "cannot be read"), ("bytes.toml", "not TOML"), ("", "cannot be read")):
        refused("train", "--config", tmp_path / name, says=[word])


def test_a_run_is_repeated_by_its_configuration(command, trained, samples):
    first = Run(trained)
    repeated = command("train", "--config", trained / "config.toml", "--no-report")
    assert repeated.status == 0 and "this run is called short-2" in repeated.err
    assert Run(trained.parent / "short-2").metrics == first.metrics
    assert first.settings == Settings(**Settings.read(trained / "config.toml"))
    other = command("train", "--config", trained / "config.toml", "--run_name", "other", "--no-report", "-ep", "2")
    assert other.status == 0 and Run(trained.parent / "other").config["settings"]["epochs"] == 2
    again = command("train", "--config", trained / "config.toml", "--run_name", "other", "--no-report")
    assert again.status == 2 and "is kept" in again.err


def test_settings_are_recorded_as_given(trained, samples):
    run = Run(trained)
    assert run.config["settings"]["csv_path"] == str(samples.csv) and run.config["settings"]["size"] == 48
    assert set(run.config["settings"]) == set(Settings.model_fields) - {"resume"}


def test_model_is_kept_when_the_report_fails(monkeypatch, command, samples, tmp_path):
    words = ["train", "--run_name", "a", "--csv_path", samples.csv, "--img_dir", samples.images, *QUICK]
    def fail(*_, **__): raise KeyboardInterrupt
    with monkeypatch.context() as patch:
        patch.setattr("deep_fashion.experiment.training.write_run_page", fail)
        assert command(*words).status == 130
    run = Run(tmp_path / "runs/a")
    assert run.file("model").exists() and run.file("metrics").exists() and not run.file("report").exists()
    assert command("tag", "--model", run.path, "--img_dir", samples.images, "--out_csv", "tags.csv").status in (0, 1)
    resumed = command("train", "--run_name", "a", "--resume")
    assert resumed.status == 0 and run.file("report").exists() and "report.html" in resumed.out


def test_a_run_is_given_by_its_folder(command, trained, samples, tmp_path):
    photo = samples.images / "shirt-00001-1.jpg"
    assert command("test", "--model", trained, "-i", photo).out == command("test", "--model", trained / "learn.pkl", "-i", photo).out
    assert (
        command("evaluate", "--model", trained, "--csv_path", samples.csv, "--img_dir", samples.images, "--out", tmp_path / "e.json").status
        == 0
    )
    assert read_json(tmp_path / "e.json")["mean"]["photos"] > 0


def test_a_folder_without_a_model(refused, tmp_path, samples):
    refused("test", "--model", tmp_path, "-i", samples.images / "shirt-00001-1.jpg", says=[str(tmp_path), "learn.pkl"])
