"What the tests share: sample photos, a small trained tagger, the command line in this process, real data where there is some."
import os
import re
import shutil
import signal
from pathlib import Path
from types import SimpleNamespace

import matplotlib

matplotlib.use("Agg")

import pandas as pd
import pytest

from deep_fashion.cli import main
from deep_fashion.data.samples import make_samples

# Programs that are started inherit what is ignored, as under `nohup`.
for number in (signal.SIGINT, signal.SIGHUP):
    if signal.getsignal(number) is signal.SIG_IGN: signal.signal(number, signal.SIG_DFL)

QUICK = ["--no-pretrained", "--size", "48", "-bs", "16", "-nw", "0", "-lr", "0.003", "-ep", "1"]


@pytest.fixture(scope="session")
def samples(tmp_path_factory):
    "A folder of sample photos with the faults of real files."
    folder = make_samples(tmp_path_factory.mktemp("data") / "samples", n=60, faults=True)
    return SimpleNamespace(folder=folder, csv=folder / "attributes.csv", images=folder / "images", names=folder / "names.json")


@pytest.fixture
def command(capsys, tmp_path, monkeypatch):
    "Run the command line in a folder of the test's own; gives status, output, lines of errors, notes."
    monkeypatch.chdir(tmp_path)
    def run(*words):
        capsys.readouterr()
        try: status = main([str(word) for word in words])
        except SystemExit as stop: status = stop.code
        printed = capsys.readouterr()
        return SimpleNamespace(
            status=status,
            out=printed.out,
            err=printed.err,
            lines=[line for line in printed.err.splitlines() if line.startswith("deep_fashion: ")],
            notes=re.findall("^deep_fashion: note: (.*)$", "\n".join(printed.err.splitlines()), re.M),
        )

    return run


@pytest.fixture
def refused(command):
    "Run the command line and expect it to refuse in one line that holds all of `words`."
    def run(*arguments, says):
        result = command(*arguments)
        assert result.status == 2, result.out + result.err
        # Notes on the table may come before the reason.
        reasons = [line for line in result.lines if not line.startswith("deep_fashion: note: ")]
        assert len(reasons) == 1 and "Traceback" not in result.err, result.err
        for word in says: assert word in reasons[0], reasons[0]
    return run


@pytest.fixture(scope="session")
def trained(samples, tmp_path_factory):
    "The folder of a short run on the sample photos."
    runs = tmp_path_factory.mktemp("runs")
    assert (
        main(
            [
                "train",
                "--run_name",
                "short",
                "--csv_path",
                str(samples.csv),
                "--img_dir",
                str(samples.images),
                "--names",
                str(samples.names),
                "--runs_dir",
                str(runs),
                *QUICK,
            ]
        )
        == 0
    )
    return runs / "short"


@pytest.fixture
def table(tmp_path, samples):
    "Write a CSV; gives its path."
    def write(text, name="table.csv"):
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return path
    return write


@pytest.fixture(scope="session")
def rows(samples):
    "The rows of the sample table as text, missing labels empty."
    return pd.read_csv(samples.csv, dtype=str).fillna("")


@pytest.fixture(scope="session")
def real_data():
    "The folder of real data sets, which only developers have."
    folder = Path(os.environ.get("DEEP_FASHION_REAL_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))
    if not (folder / "flixstock").is_dir(): pytest.skip(f"no real data sets in {folder}; DEEP_FASHION_REAL_DATA names their folder")
    return folder


@pytest.fixture(scope="session")
def chromium():
    "A headless browser that asks nobody but the pages it is shown."
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if program is None: pytest.skip("no Chromium is installed")
    quiet = [
        "--no-sandbox",
        "--disable-gpu",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--no-first-run",
    ]
    with playwright.sync_playwright() as started:
        running = started.chromium.launch(executable_path=program, args=quiet)
        yield running
        running.close()


@pytest.fixture
def browser(chromium):
    "Open a tab of a given width, light or dark; it notes what it requests and what goes wrong."
    tabs = []
    def open_tab(width, dark=False):
        tab = chromium.new_page(viewport={"width": width, "height": 900}, color_scheme="dark" if dark else "light")
        tab.set_default_timeout(60_000)
        tab.requests, tab.errors = [], []
        tab.on("request", lambda request: tab.requests.append(request.url))
        tab.on("pageerror", lambda error: tab.errors.append(str(error)))
        tabs.append(tab)
        return tab
    yield open_tab
    for tab in tabs: tab.close()
