"""Are modules and README what the notebooks make, and are the notebooks clean? With --write: make them so.

The check works on a copy, so it changes nothing and sees files that git does not know yet."""
import difflib
import json
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from rooms import table_of_modules

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent
MADE = ["nbs", "deep_fashion", "README.md"]


def make(root):
    "List all modules, clean the notebooks below `root`, export the modules, write the README."
    list_modules(root)
    # Clean first: exported cells carry ids that cleaning settles.
    for command in ("nbdev_clean", "nbdev_export"): subprocess.run([BIN / command], cwd=root, check=True)
    (root / "README.md").write_text(readme(root / "nbs" / "index.ipynb"), encoding="utf-8")


def list_modules(root):
    "Write the last cell of the guide to the rooms: every notebook with its purpose."
    path = root / "nbs" / "guide.rooms.ipynb"
    guide = json.loads(path.read_text(encoding="utf-8"))
    guide["cells"][-1]["source"] = table_of_modules(root).splitlines(keepends=True)
    path.write_text(json.dumps(guide, indent=1, ensure_ascii=False, sort_keys=True) + "\n", encoding="utf-8")


def readme(notebook):
    "The index notebook as Markdown, its pictures and notebooks linked from the top level."
    import nbformat
    from nbconvert import MarkdownExporter
    from traitlets.config import Config

    config = Config()
    config.MarkdownExporter.preprocessors = ["nbconvert.preprocessors.RegexRemovePreprocessor"]
    config.RegexRemovePreprocessor.patterns = [r"\s*#\|\s*hide"]
    notebook = nbformat.read(notebook, as_version=4)
    notebook.metadata.language_info = {"name": "python"}
    text, _ = MarkdownExporter(config=config).from_notebook_node(notebook)
    text = re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"
    return re.sub(r"(\]\(|src=\")(images/|[\w.]+\.ipynb)", r"\1nbs/\2", text)


def files(root):
    "What is made below `root`, by name."
    paths = [path for name in MADE for path in ([root / name] if (root / name).is_file() else sorted((root / name).rglob("*")))]
    return {
        str(path.relative_to(root)): path.read_text(encoding="utf-8")
        for path in paths
        if path.suffix in (".py", ".ipynb", ".md") and ".ipynb_checkpoints" not in path.parts
    }


def main():
    if "--write" in sys.argv: return make(ROOT)
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / ROOT.name
        shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(".venv*", "demo", "runs", "__pycache__", "*.egg-info", "data"))
        make(copy)
        ours, made = files(ROOT), files(copy)
    differing = sorted(name for name in {*ours, *made} if ours.get(name) != made.get(name))
    for name in differing:
        print(f"{name} is not what the notebooks make; run: make sync")
        sys.stdout.writelines(
            list(difflib.unified_diff(ours.get(name, "").splitlines(True), made.get(name, "").splitlines(True), "here", "made", n=0))[:20]
        )
    print(f"in sync: {len(made) - len(differing)} of {len(made)} files")
    return bool(differing)


if __name__ == "__main__": sys.exit(main())
