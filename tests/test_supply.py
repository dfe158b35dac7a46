"What the library depends on: bounds with reasons, licences, and promises that a test shows."
import ast
import importlib.util
import re
import subprocess
import sys
from configparser import ConfigParser
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "settings.ini").read_text(encoding="utf-8")


def requirements():
    "Extra, empty for the library itself, and requirement."
    parser = ConfigParser(delimiters=["="], interpolation=None)
    parser.read_string(TEXT)
    for key, value in parser["DEFAULT"].items():
        extra = key.removesuffix("requirements").rstrip("_")
        if key.endswith("requirements"): yield from ((extra, Requirement(text)) for text in value.split())


def plain(name): return re.sub(r"[-_.]+", "-", name.lower())


def test_every_requirement_has_a_lower_bound():
    for _, requirement in requirements():
        assert requirement.name == "deep_fashion" or any(bound.operator == ">=" for bound in requirement.specifier), str(requirement)


def test_every_upper_bound_has_a_reason():
    for _, requirement in requirements():
        for bound in requirement.specifier:
            if bound.operator in ("<", "<=", "==", "~=", "!="):
                assert re.search(rf"^# {re.escape(requirement.name)}{re.escape(str(bound))}: \w.{{20}}", TEXT, re.M), str(requirement)


def test_reasons_are_of_bounds_that_there_are():
    bounds = {f"{o.name}{bound}" for _, o in requirements() for bound in o.specifier}
    assert set(re.findall(r"^# (\S+<\S+):", TEXT, re.M)) <= bounds


def imported():
    "Module -> a file of the library that imports it."
    for path in (ROOT / "deep_fashion").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and not node.level: names = [node.module]
            for name in names: yield name.partition(".")[0], path.name


def test_whatever_is_imported_is_required():
    "Also what another requirement happens to bring today."
    known, of_module = {plain(o.name) for extra, o in requirements() if extra != "dev"}, packages_distributions()
    for module, file in {*imported()}:
        if module in sys.stdlib_module_names or module in ("deep_fashion", "IPython"): continue
        packages = {plain(name) for name in of_module.get(module, [])}
        assert not packages or packages & known, f"{file} imports {module} of {packages}"


def test_extras_in_messages_exist():
    extras = {extra for extra, _ in requirements()}
    for path in (ROOT / "deep_fashion").rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        for names in re.findall(r"requires_extra\('(\w+)'\)|deep_fashion\[([\w,]+)\]'", text):
            assert set("".join(names).split(",")) <= extras, (path.name, names)


def licences():
    spec = importlib.util.spec_from_file_location("licences", ROOT / ".ci" / "licences.py")
    spec.loader.exec_module(module := importlib.util.module_from_spec(spec))
    return module


def test_licences_are_free():
    checked = subprocess.run([sys.executable, ROOT / ".ci" / "licences.py"], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert int(re.search(r"of (\d+) packages", checked.stdout)[1]) > 30


@pytest.mark.parametrize("name, licence, is_allowed", [
    ("a", "MIT", True), ("a", "MPL-2.0 AND (Apache-2.0 OR MIT)", True), ("a", "GNU Affero General Public License v3", False),
    ("a", "BSD-3-Clause AND GPL-2.0-only", False), ("a", "LGPL-2.1-or-later", False), ("a", "unknown", False),
    ("a", "LicenseRef-NVIDIA-Proprietary", False), ("nvidia-cublas", "LicenseRef-NVIDIA-Proprietary", True)])
def test_a_licence_that_binds_is_noticed(name, licence, is_allowed): assert licences().is_allowed(name, licence) is is_allowed


def test_every_requirement_is_on_the_list_of_licences():
    listed = set(re.findall(r"^\| ([a-z0-9-]+) \|", (ROOT / "LICENCES.md").read_text(encoding="utf-8"), re.M))
    assert {plain(o.name) for extra, o in requirements() if extra != "dev"} <= listed


def test_every_promise_names_a_test_that_exists():
    rows = re.findall(r"^\| (.+) \| (.+) \| (.+) \|$", (ROOT / "SECURITY.md").read_text(encoding="utf-8"), re.M)[1:]
    assert len(rows) > 10
    for promise, figure, tests in rows:
        found = re.findall(r"`((?:tests|benchmarks)/\w+\.py)(?:::(\w+))?`", tests)
        assert found and figure, promise
        for file, name in found:
            assert (ROOT / file).is_file(), f"{promise}: {file}"
            assert not name or f"def {name}(" in (ROOT / file).read_text(encoding="utf-8"), f"{promise}: {name}"
