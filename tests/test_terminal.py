"What a terminal gets to see: one line per note or mistake, an exit status a script can rely on, never a traceback."
import errno
import logging
import os
import re
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

import deep_fashion.experiment.analysis

PROGRAM = [sys.executable, "-c", "import sys; from deep_fashion.cli import main; sys.exit(main())"]
WORDS = ["analyze", "--csv_path", "labels.csv", "--img_dir", "images"]
SUMMARY = dict(photos=1, dropped={}, attributes={}, catch_all={}, near_duplicates=1, leaking=0, unusable={})


@pytest.fixture
def ending(command, monkeypatch):
    "Run a command whose work is `work`."
    def run(work):
        monkeypatch.setattr(deep_fashion.experiment.analysis, "analyze", work)
        return command(*WORDS)
    return run


def raising(error):
    def work(_): raise error
    return work


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (KeyboardInterrupt(), 130, "stopped"),
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), 2, "No space left on device; free some space"),
        (PermissionError(errno.EACCES, os.strerror(errno.EACCES), "out/a.csv"), 2, "out/a.csv: Permission denied"),
        (MemoryError(), 2, "out of memory; close other programs, or lower batch_size"),
        (RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB.\nMore lines"), 2, "out of memory; close other"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), 2, "out of memory; close other"),
        (RuntimeError("[enforce fail at inline_container.cc] PytorchStreamWriter failed writing file"), 2, "is the disk full?"),
    ],
)
def test_what_a_user_can_act_on_is_one_line(ending, error, status, line):
    result = ending(raising(error))
    assert result.status == status and result.err.count("\n") == 1 and line in result.err
    assert "Traceback" not in result.err


@pytest.mark.parametrize("error", [KeyError("x"), RuntimeError("two\nlines"), AssertionError(), RecursionError("too deep")])
def test_a_bug_is_one_line_and_a_log(ending, error):
    result = ending(raising(error))
    assert result.status == 70 and result.err.count("\n") == 1
    assert f"unexpected error ({type(error).__name__}" in result.err and "please report" in result.err
    log = Path(re.search(r"the details are in (\S+\.log)", result.err)[1])
    text = log.read_text(encoding="utf-8")
    log.unlink()
    assert "Traceback" in text and type(error).__name__ in text and re.search(r"^fastai \d", text, re.M)


def test_a_bug_is_reported_where_no_log_can_be_written(ending, monkeypatch, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "gone"))
    result = ending(raising(KeyError("x")))
    assert result.status == 70 and "KeyError: 'x'" in result.err and result.err.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "module", "function"),
    [
        (["train", "--run_name", "a", "--csv_path", "a", "--img_dir", "b"], "experiment.training", "train_tagger"),
        (["evaluate", "--model", "a", "--csv_path", "a", "--img_dir", "b"], "experiment.evaluation", "evaluate"),
        (["test", "--model", "a", "-i", "a"], "predict.tags", "tag_photo"),
        (["tag", "--model", "a", "--img_dir", "b", "--out_csv", "c"], "predict.tags", "tag"),
        (["convert", "--model", "a", "--img_dir", "b", "--out", "c"], "predict.openvino", "convert_tagger"),
        (["app", "--model", "a"], "app.server", "serve_app"),
        (["serve", "--model", "a"], "app.api", "serve_api"),
        (["demo"], "experiment.demo", "demo"),
    ],
)
def test_ctrl_c_stops_every_command_with_130(command, monkeypatch, words, module, function):
    def stopped(*_, **__): raise KeyboardInterrupt
    monkeypatch.setattr(f"deep_fashion.{module}.{function}", stopped)
    result = command(*words)
    assert result.status == 130 and result.lines == ["deep_fashion: stopped"]


def warn_as(module, message, category=UserWarning):
    "Warn as code of `module` would."
    exec("import warnings\nwarnings.warn(message, category, stacklevel=2)", dict(__name__=module, message=message, category=category))


def test_notes_are_ours_in_one_line_and_once(ending):
    def work(_):
        for _ in range(3): warn_as("deep_fashion.data.table", "3 rows\nleft out")
        for library in ("pandas.core", "fastai.learner", "sklearn.utils", "PIL.Image", "matplotlib.text", "torch.nn", "deep_fashionable"):
            warn_as(library, f"noise of {library}")
        warn_as("deep_fashion.data.table", "noise of a dependency", FutureWarning)
        warn_as("deep_fashion.data.table", "noise (Triggered internally at tensor.cpp:1.)")
        logging.getLogger("matplotlib.font_manager").warning("noise of a log")
        return SUMMARY
    result = ending(work)
    assert result.status == 0 and result.err == "deep_fashion: note: 3 rows left out\n"
    assert "1 photo can be used" in result.out and "near-duplicates: 1 group," in result.out


def test_a_note_is_printed_by_every_command_that_gives_it(ending):
    def work(_):
        warn_as("deep_fashion.data.table", "3 rows left out")
        return SUMMARY
    assert ending(work).err == ending(work).err == "deep_fashion: note: 3 rows left out\n"


def test_warnings_of_python_are_as_before_after_a_command(ending):
    before = warnings.showwarning, list(warnings.filters), list(logging.getLogger().handlers)
    ending(lambda _: SUMMARY)
    assert (warnings.showwarning, list(warnings.filters), list(logging.getLogger().handlers)) == before


def shell(line, **environment):
    "Run a line of bash, in which $PROGRAM is the command line."
    script = 'PROGRAM() { "$PYTHON" -c "$CODE" "$@"; }; ' + line
    given = {**os.environ, "PYTHON": PROGRAM[0], "CODE": PROGRAM[2], **environment}
    return subprocess.run(["bash", "-c", script], capture_output=True, env=given, timeout=120)


def test_a_closed_pipe_is_quiet():
    ended = shell("PROGRAM train --help | true; echo ${PIPESTATUS[0]} >&2")
    assert ended.stderr == b"141\n"
    read = shell("PROGRAM train --help | head -1; echo ${PIPESTATUS[1]}")
    assert read.stderr == b"" and read.stdout.startswith(b"Usage:")


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-"])
def test_closed_streams_are_no_mistake(closed):
    ended = shell(f"PROGRAM train --help {closed}")
    assert ended.returncode == 0 and b"Traceback" not in ended.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_an_output_that_is_full_is_one_line():
    ended = shell("PROGRAM train --help >/dev/full")
    assert ended.returncode == 2 and ended.stderr == b"deep_fashion: No space left on device; free some space\n"


@pytest.mark.parametrize("environment", [dict(PYTHONIOENCODING="ascii"), dict(LC_ALL="C")])
def test_characters_that_a_terminal_lacks_are_replaced(environment):
    words = "train --show_config --run_name 领型 --csv_path a.csv --img_dir images"
    ended = shell(f"PROGRAM {words}", **environment)
    assert ended.returncode == 0 and b"run_name" in ended.stdout and not ended.stderr
    refused = shell("PROGRAM test --model 领型.pkl -i 领型.jpg", **environment)
    assert refused.returncode == 2 and refused.stderr.count(b"\n") == 1 and b"Traceback" not in refused.stderr


def test_completion_works():
    ended = shell("PROGRAM", _DEEP_FASHION_COMPLETE="bash_source")
    assert ended.returncode == 0 and b"complete" in ended.stdout
    ended = shell("PROGRAM", _DEEP_FASHION_COMPLETE="bash_complete", COMP_WORDS="deep_fashion ana", COMP_CWORD="1")
    assert b"analyze" in ended.stdout
