"The project as a whole: installed wheel, help, demo, the walkthrough on real data."
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def test_help_is_complete(command):
    for name in ("analyze", "train", "evaluate", "test", "predict", "tag", "app", "serve", "convert", "demo"):
        result = command(name, "--help")
        assert result.status == 0 and "--" in result.out
        assert name in command("--help").out


@pytest.mark.parametrize("code", ["from deep_fashion.cli import main; main(['train', '--help'])", "import deep_fashion.settings"])
def test_help_and_settings_import_nothing_heavy(code):
    code = f"import sys; {code}; print([m for m in ('torch', 'fastai', 'pandas', 'numpy', 'matplotlib') if m in sys.modules])"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout
    assert printed.strip().splitlines()[-1] == "[]"


def test_lists_and_comparisons_of_runs_import_no_networks():
    code = "import deep_fashion.experiment.comparison, deep_fashion.experiment.runs, sys; "
    code += "print([m for m in ('torch', 'fastai', 'timm') if m in sys.modules])"
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert ran.stdout.strip() == "[]", ran.stdout + ran.stderr


def test_wheel_holds_every_module(tmp_path):
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", tmp_path, ROOT], check=True, capture_output=True
    )
    [wheel] = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    for module in (ROOT / "deep_fashion").rglob("*.py"): assert module.relative_to(ROOT).as_posix() in names
    metadata = zipfile.ZipFile(wheel).read(next(n for n in names if n.endswith("METADATA"))).decode()
    assert "Requires-Dist: fastai" in metadata and "Provides-Extra: dev" in metadata


def test_readme_links_lead_somewhere():
    import re
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    links = re.findall(r"\]\(([^)#]+)\)", text)
    assert len(links) > 10
    for link in links: assert link.startswith("http") or (ROOT / link).exists(), link


def test_walkthrough_runs_on_real_data(real_data):
    nbdev_test = Path(sys.executable).parent / "nbdev_test"
    if not nbdev_test.exists(): pytest.skip("the extra 'dev' is not installed")
    environment = {**os.environ, "DEEP_FASHION_DATA": str(real_data / "flixstock"), "DEEP_FASHION_EPOCHS": "1"}
    ran = subprocess.run(
        [nbdev_test, "--path", "nbs/tutorial.walkthrough.ipynb"], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr


def test_notebooks_show_no_paths_of_a_machine():
    for path in sorted((ROOT / "nbs").glob("*.ipynb")): assert "site-packages" not in path.read_text(encoding="utf-8"), path.name
