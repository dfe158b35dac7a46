"Training in several processes: the results of one, one run folder, one line for whatever goes wrong, and no process that is left over."
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import torch
from fastai.learner import load_learner

from deep_fashion.data.samples import make_samples
from deep_fashion.model.network import AttributeModel

# As `torchrun`, which need not be on the path; at a free port.
TWO = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone"]
EPOCHS = ["--no-pretrained", "--size", "32", "-bs", "16", "-nw", "0", "-lr", "0.003", "-ep", "1", "--no-report"]


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return make_samples(tmp_path_factory.mktemp("several") / "photos", n=41)


@pytest.fixture
def start(tmp_path, photos):
    "Start the command line in two processes, in a folder of its own."
    started = []
    def start(*words):
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "XDG_CACHE_HOME": str(tmp_path / "cache")}
        command = [sys.executable, *TWO, "-m", "deep_fashion", *map(str, words)]
        pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        started.append(subprocess.Popen(command, cwd=tmp_path, env=environment, start_new_session=True, **pipes))
        return started[-1]
    yield start
    for process in started:
        if process.poll() is None: os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def train(photos, name, *options):
    return ["train", "--run_name", name, "--csv_path", photos / "attributes.csv", "--img_dir", photos / "images", *options]


def lines_of(process, timeout=120):
    "Standard output, and our own lines on standard error but for notes."
    out, err = process.communicate(timeout=timeout)
    ours = re.findall("deep_fashion: (?!note: )(.*)", err)
    # torchrun has a traceback of its own.
    assert "deep_fashion/" not in "".join(re.findall(r'File "(.*?)"', err)), err
    return out, ours


def predictions(folder):
    return pd.read_csv(folder / "predictions.csv")


def workers_of(launcher):
    "The processes that `torchrun` started."
    found = [int(path.parent.name) for path in Path("/proc").glob("[0-9]*/stat") if path.exists() and parent_of(path) == launcher.pid]
    return [pid for pid in found if b"deep_fashion" in Path(f"/proc/{pid}/cmdline").read_bytes()]


def parent_of(path):
    try: return int(path.read_text().rpartition(")")[2].split()[1])
    except OSError: return None


def is_running(pid):
    "Whether a process has not ended; one whose parent was killed may wait to be collected."
    try: return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError: return False


def rank_of(pid): return int(re.search(rb"(?:^|\0)RANK=(\d+)", Path(f"/proc/{pid}/environ").read_bytes())[1])


def wait_for(condition, seconds=90):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.05)


def test_two_processes_train_in_epochs_as_one_does(start, photos, tmp_path):
    # The rate is found, and heads are trained on features of the frozen body before.
    options = ["--arch", "tf_efficientnet_lite0", "--crops", "whole", "--size", "32", "-bs", "8", "-nw", "0", "-ep", "1", "--no-report"]
    out, errors = lines_of(start(*train(photos, "two", *options)))
    assert errors == [] and out.count("written to runs/two") == 1
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["two"]
    found = predictions(tmp_path / "runs" / "two")
    split = pd.read_csv(tmp_path / "runs" / "two" / "split.csv")
    # Every validation photo counts once.
    assert sorted(found.filename) == sorted(split.filename[split.is_valid])
    metrics = json.loads((tmp_path / "runs" / "two" / "metrics.json").read_text())
    assert metrics["mean"]["photos"] == metrics["validation_photos"] == len(found)
    history = pd.read_csv(tmp_path / "runs" / "two" / "history.csv")
    # What was measured while training is what the kept weights give.
    assert history.accuracy[history.best].iloc[-1] == pytest.approx(metrics["mean"]["accuracy"], abs=1 / len(found))
    # The exported tagger is an ordinary one.
    learn = load_learner(tmp_path / "runs" / "two" / "learn.pkl")
    assert type(learn.model) is AttributeModel and not {"data_parallel", "own_seeds"} & {cb.name for cb in learn.cbs}
    assert list(learn.predict(sorted((photos / "images").iterdir())[0])[0]) == learn.vocab.attributes


def test_a_linear_probe_is_the_same_to_the_last_digit(start, command, photos, tmp_path, monkeypatch):
    options = ["--arch", "tf_efficientnet_lite0", "--size", "64", "--crops", "whole", "-bs", "8", "--no-report"]
    out, errors = lines_of(start(*train(photos, "two", *options)))
    assert errors == [], errors
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "another"))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try: assert command(*train(photos, "one", *options)).status == 0
    finally: torch.set_num_threads(threads)
    one, two = (predictions(tmp_path / "runs" / name) for name in ("one", "two"))
    pd.testing.assert_frame_equal(one, two, check_exact=True)
    # The same features were kept, each once.
    kept = [{path.name for path in (tmp_path / name).rglob("features/*")} for name in ("another", "cache")]
    assert kept[0] == kept[1] and len(kept[0]) == len(one)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes in /proc")
@pytest.mark.parametrize("killed", [0, 1, "torchrun"])
def test_a_killed_process_ends_the_others_with_one_line(killed, start, photos, tmp_path):
    launcher = start(*train(photos, "killed", *EPOCHS, "-ep", "500"))
    history = tmp_path / "runs" / "killed" / "history.csv"
    wait_for(history.exists)
    workers = {rank_of(pid): pid for pid in workers_of(launcher)}
    os.kill(workers.get(killed, launcher.pid), signal.SIGKILL)
    out, errors = lines_of(launcher, timeout=60)
    what = "torchrun" if killed == "torchrun" else f"rank {killed},"
    assert len(errors) == 1 and f"{what} ended unexpectedly" in errors[0] and "--resume" in errors[0], errors
    wait_for(lambda: not any(map(is_running, workers.values())), seconds=10)
    assert launcher.returncode != 0 and history.exists()


@pytest.mark.skipif(os.name == "nt", reason="signals as on Unix")
def test_ctrl_c_stops_and_one_process_goes_on(start, command, photos, tmp_path):
    options = train(photos, "stopped", *EPOCHS, "-ep", "6")
    launcher = start(*options)
    history = tmp_path / "runs" / "stopped" / "history.csv"
    wait_for(history.exists)
    launcher.send_signal(signal.SIGINT)
    out, errors = lines_of(launcher)
    assert errors == ["stopped; finished epochs are kept, the same command with --resume continues"]
    done = len(pd.read_csv(history))
    resumed = command(*options, "--resume")
    assert resumed.status == 0 and "written to runs/stopped" in resumed.out and 0 < done < 6
    assert len(pd.read_csv(history)) == 6


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["train", "--run_name", "a", "--csv_path", "none.csv", "--img_dir", "."], "none.csv"),
        (["tag", "--model", "runs/first", "--img_dir", "."], "tag runs in one process, and 2 were started"),
    ],
)
def test_what_is_wrong_is_one_line(words, reason, start, tmp_path):
    out, errors = lines_of(start(*words))
    assert len(errors) == 1 and reason in errors[0] and out == ""
    assert not (tmp_path / "runs" / "a").exists()


def test_what_needs_one_process_is_refused(refused, photos, monkeypatch):
    monkeypatch.setattr("deep_fashion.experiment.training.n_processes", lambda: 2)
    refused(*train(photos, "best", "--arch", "tf_efficientnet_lite0", "--effort", "best"), says=["effort best", "without torchrun"])


def test_a_batch_too_small_for_the_processes_leaves_no_run(refused, photos, monkeypatch, tmp_path):
    monkeypatch.setattr("deep_fashion.train.data_parallel.n_processes", lambda: 2)
    refused(*train(photos, "small", *EPOCHS, "-bs", "3"), says=["a batch has 3 photos", "at least 4"])
    assert not (tmp_path / "runs" / "small").exists()


def test_a_process_that_never_comes_is_named_in_time():
    place = dict(RANK="0", WORLD_SIZE="3", MASTER_ADDR="localhost", MASTER_PORT="0", OMP_NUM_THREADS="1")
    code = "from deep_fashion import processes; processes.join_group.__defaults__ = (1,)\n"
    code += "from deep_fashion.cli import main; import sys; sys.exit(main(['train']))"
    ended = subprocess.run([sys.executable, "-c", code], env={**os.environ, **place}, capture_output=True, text=True, timeout=100)
    assert ended.returncode == 2 and "the 3 processes did not meet" in ended.stderr and ended.stderr.count("\n") == 1, ended.stderr


def test_accelerate_on_processors_is_noticed(command, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    notes = command("train", "--run_name", "a", "--csv_path", "none.csv", "--img_dir", ".").notes
    assert len(notes) == 1 and "accelerate has started one process" in notes[0] and "torchrun" in notes[0]
