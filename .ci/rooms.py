"""The rooms of the project and the notebooks in them: for the documentation and for the table of all modules.

A room is a subpackage; order and names follow the file names, so that a new notebook finds its place by itself."""
import json
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# One line per room: what it takes and what it gives.
ROOMS = {
    "": "Settings, files, terminal, the command line, and one import for everything",
    "data": "From a CSV and a folder of photos to fastai's `DataLoaders`",
    "model": "From the name of an architecture to a network with one head per attribute",
    "metrics": "From predictions and labels to scores",
    "train": "From `DataLoaders` to a trained Learner",
    "evaluate": "What a Learner looks at and gets wrong, and what is wrong with the data",
    "report": "From scores and findings to plots and pages",
    "predict": "From a tagger and photos to tags",
    "experiment": "From settings to the folder of a run",
    "app": "From a tagger to the page in the browser, and to an interface for other programs",
}


def notebooks(root=ROOT): return sorted((root / "nbs").glob("[0-9]*.ipynb"))
def module_of(path): return path.stem.partition("_")[2]
def room_of(path): return module_of(path).rpartition(".")[0]
def room_title(room): return room or "foundations"


def heading(path):
    "Title and one-line purpose of a notebook."
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    found = re.match(r"#\s+(.+?)\s*(?:\n+>\s*(.+))?(?:\n|$)", "".join(cells[0]["source"]))
    return found[1], found[2] or ""


def rooms(root=ROOT):
    "Room -> its notebooks, in the order in which data flows."
    found = {room: [path for path in notebooks(root) if room_of(path) == room] for room in ROOMS}
    unknown = {room_of(path) for path in notebooks(root)} - set(ROOMS)
    assert not unknown, f"describe the room in ROOMS: {unknown}"
    return found


def table_of_modules(root=ROOT):
    "All notebooks, a section per room and a line each, as Markdown."
    sections = []
    for room, paths in rooms(root).items():
        rows = "\n".join(f"| [{heading(path)[0]}]({path.name}) | {heading(path)[1]} |" for path in paths)
        sections.append(f"## {room_title(room).capitalize()}\n\n{ROOMS[room]}.\n\n| module | purpose |\n|---|---|\n{rows}")
    return "\n\n".join(sections)
