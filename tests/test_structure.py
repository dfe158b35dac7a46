"The house: rooms in the order data flows, modules that keep to themselves, functions that fit on a screen."
import ast
import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "nbs").glob("[0-9]*.ipynb"))
MODULES = [path.stem.partition("_")[2] for path in NOTEBOOKS]


def file_of(module): return ROOT / "deep_fashion" / f"{module.replace('.', '/')}.py"
def tree_of(module): return ast.parse(file_of(module).read_text(encoding="utf-8"))


def imports_of(module):
    "Modules of this project that are imported anywhere in `module`, with the names."
    package = ["deep_fashion", *module.split(".")[:-1]]
    for node in ast.walk(tree_of(module)):
        if not isinstance(node, ast.ImportFrom): continue
        base = package[:len(package) - node.level + 1] if node.level else []
        name = ".".join([*base, *(node.module or "").split(".")]).strip(".")
        if name.startswith("deep_fashion."): yield name.removeprefix("deep_fashion."), [alias.name for alias in node.names]


def functions_of(module):
    for node in ast.walk(tree_of(module)):
        if isinstance(node, ast.FunctionDef): yield node


def test_every_module_has_a_notebook():
    files = [path for path in (ROOT / "deep_fashion").rglob("*.py") if path.stem not in ("__init__", "_modidx")]
    made = {".".join(path.relative_to(ROOT / "deep_fashion").with_suffix("").parts) for path in files}
    assert made == set(MODULES)


@pytest.mark.parametrize("module", MODULES)
def test_no_module_imports_a_later_one(module):
    for imported, _ in imports_of(module): assert MODULES.index(imported) < MODULES.index(module), imported


@pytest.mark.parametrize("module", MODULES)
def test_private_names_stay_at_home(module):
    assert [name for _, names in imports_of(module) for name in names if name.startswith("_") and name != "__version__"] == []


@pytest.mark.parametrize("module", MODULES)
def test_functions_are_small(module):
    for function in functions_of(module):
        arguments = [
            a.arg for a in [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs] if a.arg not in ("self", "cls")
        ]
        assert len(arguments) <= 7, function.name
        assert function.end_lineno - function.lineno < 28, function.name


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_are_small_and_introduced(notebook):
    content = json.loads(notebook.read_text(encoding="utf-8"))
    first = "".join(content["cells"][0]["source"])
    assert re.match(r"# \w+\n\n> .{30,140}(\n|$)", first), first
    assert sum(len("".join(cell["source"])) for cell in content["cells"]) < 25_000


def test_guides_name_every_module_and_file_of_a_run():
    from deep_fashion.run import RUN_FILES
    rooms, files = ((ROOT / "nbs" / f"guide.{name}.ipynb").read_text(encoding="utf-8") for name in ("rooms", "files"))
    for path in NOTEBOOKS: assert f"({path.name})" in rooms, path.name
    for file, _ in RUN_FILES.values(): assert f"`{file}`" in files, file


def test_guides_and_tutorials_are_introduced():
    for path in [*(ROOT / "nbs").glob("guide.*.ipynb"), *(ROOT / "nbs").glob("tutorial.*.ipynb")]:
        first = "".join(json.loads(path.read_text(encoding="utf-8"))["cells"][0]["source"])
        assert re.match(r"# .+\n\n> .{30,140}(\n|$)", first), path.name


def test_all_brings_every_module_but_the_faces():
    assert {imported for imported, _ in imports_of("all")} == {
        module for module in MODULES if not module.startswith(("app.", "cli")) and module not in ("options", "__main__", "all")
    }


def test_the_commands_of_the_guides_exist():
    from deep_fashion.cli import command_line
    program, named = command_line(), set()
    for path in (ROOT / "nbs").glob("guide.*.ipynb"):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        for line in re.findall(r"^deep_fashion +([a-z].*)", "\n".join("".join(cell["source"]) for cell in cells), re.M):
            command, words = program, re.sub(r" #.*| > .*", "", line).split()
            while words and hasattr(command, "commands") and words[0] in command.commands:
                command = command.commands[words.pop(0)]
            options = {name for option in command.params for name in (*option.opts, *option.secondary_opts)}
            assert {word for word in words if word.startswith("--")} <= options, (path.name, line)
            if path.stem == "guide.command_line": named.add(command.name)
    assert named >= set(program.commands)
