"""What the documentation is made of: tutorials, the notebooks of every room, and a page of functions per module.

A room is a subpackage; order and names follow the file names, so that a new notebook finds its place by itself."""
import ast
import json
import re
import tempfile
from pathlib import Path

from mkdocs.structure.files import File

def tutorials(): return sorted((ROOT / "nbs").glob("tutorial.*.ipynb"), key=lambda path: (path.stem != "tutorial.walkthrough", path.stem))


def room_page(room, paths):
    "A table of the modules of a room: name, purpose, functions."
    lines = [f"# {room or 'foundations'}", "", ROOMS[room], "", "| module | purpose | |", "|---|---|---|"]
    return (
        "\n".join(
            lines
            + [f"| [{module_of(path)}](../{path.name}) | {heading(path)[1]} | [functions](../api/{module_of(path)}.md) |" for path in paths]
        )
        + "\n"
    )


def on_config(config):
    "The navigation."
    sections = [
        {room or "foundations": [f"rooms/{room or 'foundations'}.md", *({heading(path)[0]: path.name} for path in paths)]}
        for room, paths in rooms().items()
    ]
    functions = [{module_of(path): f"api/{module_of(path)}.md"} for path in notebooks()]
    config.nav = [
        {"Home": "index.ipynb"},
        {"Tutorials": [{heading(path)[0]: path.name} for path in tutorials()]},
        *sections,
        {"Functions": functions},
    ]
    return config


def is_test(statement):
    "Whether a statement only checks something: an assert, a test function of fastcore, a loop or block of such."
    if isinstance(statement, ast.Assert): return True
    if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Call):
        return re.match(r"test_\w+$", ast.unparse(statement.value.func)) is not None
    if isinstance(statement, ast.With) and "ExceptionExpected" in ast.unparse(statement.items[0]): return True
    return isinstance(statement, (ast.For, ast.With, ast.If)) and all(map(is_test, statement.body))


def without_tests(source):
    "The code of an example without its tests; empty if nothing else is left."
    try: tree = ast.parse(source)
    except SyntaxError: return source # a magic command
    lines = source.splitlines()
    for statement in tree.body:
        if is_test(statement): lines[statement.lineno - 1:statement.end_lineno] = [None] * (statement.end_lineno - statement.lineno + 1)
    kept = [line for line in lines if line is not None]
    return "\n".join(kept).strip("\n") if any(line.strip() and not line.startswith("#") for line in kept) else ""


def for_readers(notebook):
    "A notebook without directives, hidden cells and tests."
    kept = []
    for cell in notebook["cells"]:
        lines = "".join(cell["source"]).splitlines()
        directives = [line for line in lines if re.match(r"#\s*\|", line)]
        if any(re.search(r"\|\s*(hide|default_exp)\b", line) for line in directives): continue
        source = "\n".join(line for line in lines if line not in directives)
        if cell["cell_type"] == "code" and not directives:
            source = without_tests(source)
            if not source: continue
        kept.append({**cell, "source": source})
    return {**notebook, "cells": kept}


def on_files(files, config):
    "Notebooks for readers, a page per room and a page per module."
    folder = Path(tempfile.mkdtemp())
    for file in files:
        if not file.src_uri.endswith(".ipynb"): continue
        path = folder / file.src_uri
        path.write_text(json.dumps(for_readers(json.loads(Path(file.abs_src_path).read_text(encoding="utf-8")))), encoding="utf-8")
        # The path was computed when it was read above and would be kept, so it is replaced here and in the file mkdocs-jupyter wraps.
        for wrapped in (file, getattr(file, "file", file)): wrapped.abs_src_path = str(path)
    for room, paths in rooms().items():
        files.append(File.generated(config, f"rooms/{room or 'foundations'}.md", content=room_page(room, paths)))
    for path in notebooks():
        name = module_of(path)
        files.append(File.generated(config, f"api/{name}.md", content=f"# {name}\n\n{heading(path)[1]}\n\n::: deep_fashion.{name}\n"))
    return files


def on_page_content(html, **_):
    "Links between notebooks lead to their pages."
    return re.sub(r'(href="[\w./-]+)\.ipynb(["#])', r"\1.html\2", html)
