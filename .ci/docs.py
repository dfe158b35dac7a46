"""What the documentation is made of: tutorials, the notebooks of the modules, and a page per module for its functions.

The order follows the file names, so that a new notebook finds its place by itself."""
import json
import re
import tempfile
from pathlib import Path

from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parent.parent
TUTORIALS_FROM = 27


def notebooks(): return sorted(path for path in (ROOT / "nbs").glob("[0-9]*.ipynb"))
def modules(): return sorted(path.stem for path in (ROOT / "deep_fashion").glob("*.py") if not path.stem.startswith("_"))
def is_tutorial(path): return int(path.stem[:2]) >= TUTORIALS_FROM


def title_of(notebook):
    "The heading of the notebook's first cell."
    first = "".join(json.loads(notebook.read_text(encoding="utf-8"))["cells"][0]["source"])
    return re.match(r"#\s+(.+)", first)[1]


def on_config(config):
    "The navigation."
    of_modules = [{title_of(path): path.name} for path in notebooks() if not is_tutorial(path)]
    tutorials = [{title_of(path): path.name} for path in notebooks() if is_tutorial(path)]
    config.nav = [{"Home": "index.ipynb"}, {"Tutorials": tutorials}, {"How it works": of_modules}, {"Functions": [{name: f"api/{name}.md"} for name in modules()]}]
    return config


def for_readers(notebook):
    "A notebook without directives and the cells that are hidden."
    kept = []
    for cell in notebook["cells"]:
        lines = "".join(cell["source"]).splitlines()
        if any(re.match(r"#\|\s*(hide|default_exp)", line) for line in lines): continue
        kept.append({**cell, "source": "\n".join(line for line in lines if not line.startswith("#|"))})
    return {**notebook, "cells": kept}


def on_files(files, config):
    "Notebooks for readers, and a page for every module."
    folder = Path(tempfile.mkdtemp())
    for file in files:
        if not file.src_uri.endswith(".ipynb"): continue
        (folder / file.src_uri).write_text(json.dumps(for_readers(json.loads(Path(file.abs_src_path).read_text(encoding="utf-8")))), encoding="utf-8")
        file.src_dir = str(folder)
    for name in modules(): files.append(File.generated(config, f"api/{name}.md", content=f"# {name}\n\n::: deep_fashion.{name}\n"))
    return files


def on_page_content(html, **_):
    "Links between notebooks lead to their pages."
    return re.sub(r'(href="[\w./-]+)\.ipynb(["#])', r"\1.html\2", html)
