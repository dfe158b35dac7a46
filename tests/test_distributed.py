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

from deep_fashion.data.samples import make_samples

# As `torchrun`, which need not be on the path.
TWO = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", "0", "--rdzv_backend", "c10d", "--rdzv_endpoint", "localhost:0"]
EPOCHS = ["--no-pretrained", "--size", "32", "-bs", "16", "-nw", "0", "-lr", "0.003", "-ep", "1", "--no-report"]
OUTSIDE = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "LOCAL_RANK")


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return make_samples(tmp_path_factory.mktemp("several") / "photos", n=41)


@pytest.fixture
def start(tmp_path, photos):
    "Start the command line, by `torchrun` if there are to be two processes, in a folder of its own."
    started = []
    def start(*words, processes=2, **variables):
        environment = {name: value for name, value in os.environ.items() if name not in OUTSIDE}
        environment |= dict(OMP_NUM_THREADS="1", XDG_CACHE_HOME=str(tmp_path / "cache"), **variables)
        command = [sys.executable, *(TWO if processes > 1 else []), "-m", "deep_fashion", *map(str, words)]
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
    assert "Traceback (most recent call last)" not in err, err
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


def rank_of(pid): return int(re.search(rb"(?:^|\0)RANK=(\d+)", Path(f"/proc/{pid}/environ").read_bytes())[1])


def wait_for(condition, seconds=90):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.05)


def test_two_processes_train_in_epochs_as_one_does(start, photos, tmp_path):
    out, errors = lines_of(start(*train(photos, "two", *EPOCHS)))
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
    assert history.accuracy[history.best].iloc[-1] == pytest.approx(metrics["mean"]["accuracy"], abs=1e-3)
    # The exported tagger is an ordinary one.
    photo = sorted((photos / "images").iterdir())[0]
    out, errors = lines_of(start("test", "--model", "runs/two", "--input", photo, processes=1))
    assert errors == [] and "neck" in out


def test_a_linear_probe_is_the_same_to_the_last_digit(start, photos, tmp_path):
    options = ["--arch", "tf_efficientnet_lite0", "--size", "64", "--crops", "whole", "-bs", "8", "--no-report"]
    for name, processes in (("one", 1), ("two", 2)):
        cache = dict(XDG_CACHE_HOME=str(tmp_path / name))
        out, errors = lines_of(start(*train(photos, name, *options), processes=processes))
        assert errors == [], errors
        (tmp_path / "cache").rename(tmp_path / cache["XDG_CACHE_HOME"])
    one, two = (predictions(tmp_path / "runs" / name) for name in ("one", "two"))
    pd.testing.assert_frame_equal(one, two, check_exact=True)
    # The same features were kept, each once.
    kept = [{path.name for path in (tmp_path / name).rglob("features/*")} for name in ("one", "two")]
    assert kept[0] == kept[1] and len(kept[0]) == len(one)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes in /proc")
@pytest.mark.parametrize("killed", [0, 1])
def test_a_killed_process_ends_the_others_with_one_line(killed, start, photos, tmp_path):
    launcher = start(*train(photos, "killed", *EPOCHS, "-ep", "500"))
    history = tmp_path / "runs" / "killed" / "history.csv"
    wait_for(history.exists)
    workers = {rank_of(pid): pid for pid in workers_of(launcher)}
    os.kill(workers[killed], signal.SIGKILL)
    out, errors = lines_of(launcher, timeout=60)
    assert len(errors) == 1 and f"rank {killed}, ended unexpectedly" in errors[0] and "--resume" in errors[0], errors
    assert [pid for pid in workers.values() if Path(f"/proc/{pid}").exists()] == []
    assert launcher.returncode != 0 and history.exists()


@pytest.mark.skipif(os.name == "nt", reason="signals as on Unix")
def test_ctrl_c_stops_and_one_process_goes_on(start, photos, tmp_path):
    options = train(photos, "stopped", *EPOCHS, "-ep", "6")
    launcher = start(*options)
    history = tmp_path / "runs" / "stopped" / "history.csv"
    wait_for(history.exists)
    launcher.send_signal(signal.SIGINT)
    out, errors = lines_of(launcher)
    assert errors == ["stopped; finished epochs are kept, the same command with --resume continues"]
    done = len(pd.read_csv(history))
    out, errors = lines_of(start(*options, "--resume", processes=1))
    assert errors == [] and "written to runs/stopped" in out and 0 < done < 6
    assert len(pd.read_csv(history)) == 6


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["train", "--run_name", "a", "--csv_path", "none.csv", "--img_dir", "."], "none.csv"),
        (["train", "--run_nam", "a"], "--run_nam"),
        (["tag", "--model", "runs/first", "--img_dir", "."], "tag runs in one process, and 2 were started"),
    ],
)
def test_what_is_wrong_is_one_line(words, reason, start, tmp_path):
    out, errors = lines_of(start(*words))
    assert len(errors) == 1 and reason in errors[0] and out == ""
    assert not (tmp_path / "runs" / "a").exists()


def test_what_needs_one_process_is_refused(start, photos, tmp_path):
    best = ["--arch", "tf_efficientnet_lite0", "--effort", "best"]
    for name, options, reason in (("best", best, "effort best"), ("small", [*EPOCHS, "-bs", "3"], "at least 4")):
        out, errors = lines_of(start(*train(photos, name, *options)))
        assert len(errors) == 1 and reason in errors[0], errors


def test_a_process_that_never_comes_is_named_in_time(start, photos):
    place = dict(RANK="0", WORLD_SIZE="3", MASTER_ADDR="localhost", MASTER_PORT="0")
    code = "import sys; from deep_fashion import processes as p; p._WAIT = 2; p.join_group.__defaults__ = (2,)\n"
    code += "from deep_fashion.cli import main; sys.exit(main(['train']))"
    environment = {**os.environ, **place, "OMP_NUM_THREADS": "1"}
    ended = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=100)
    assert ended.returncode == 2 and "missing: 1, 2" in ended.stderr and ended.stderr.count("\n") == 1, ended.stderr


def test_accelerate_on_processors_is_noticed(start, photos):
    launched = start("train", "--run_name", "a", "--csv_path", "none.csv", "--img_dir", ".", processes=1, ACCELERATE_USE_CPU="true")
    out, err = launched.communicate(timeout=100)
    notes = re.findall("deep_fashion: note: (.*)", err)
    assert len(notes) == 1 and "accelerate has started one process" in notes[0] and "torchrun" in notes[0]
