"""What the documentation is made of: guides, tutorials, a page per command, the notebooks of every room, a page of functions per module.

Order and names follow the file names, so that a new notebook finds its place by itself; commands come from the program's own help."""
import ast
import json
import re
import tempfile
from pathlib import Path

from mkdocs.structure.files import File

from rooms import ROOMS, ROOT, heading, module_of, notebooks, room_title, rooms


def guides(): return sorted((ROOT / "nbs").glob("guide.*.ipynb"))
def tutorials(): return sorted((ROOT / "nbs").glob("tutorial.*.ipynb"), key=lambda path: (path.stem != "tutorial.walkthrough", path.stem))


def room_page(room, paths):
    "A table of the modules of a room: name, purpose, functions."
    lines = [f"# {room_title(room).capitalize()}", "", f"{ROOMS[room]}.", "", "| module | purpose | |", "|---|---|---|"]
    for path in paths:
        name = module_of(path)
        lines.append(f"| [{heading(path)[0]}](../{path.name}) | {heading(path)[1]} | [functions](../api/{name}.md) |")
    return "\n".join(lines) + "\n"


def all_commands():
    "Every command and every part of one: its name and its description by click."
    from deep_fashion.cli import command_line
    for name, command in command_line().commands.items():
        yield name, command
        for part, described in getattr(command, "commands", {}).items(): yield f"{name} {part}", described


def command_page(name, command):
    "What `deep_fashion NAME --help` prints."
    import cloup
    # The width of a terminal would be that of whoever builds the pages.
    settings = cloup.Context.settings(help_option_names=["-h", "--help"], terminal_width=90)
    text = command.get_help(cloup.Context(command, info_name=f"deep_fashion {name}", **settings))
    summary = command.short_help or command.help.split(".")[0]
    return f"---\ntitle: {name}\n---\n\n# {name}\n\n{summary[0].upper()}{summary[1:]}.\n\n```text\n{text}\n```\n"


def command_file(name): return f"commands/{name.replace(' ', '_')}.md"


def commands_page():
    "A table of all commands."
    rows = [f"| [{name}]({Path(command_file(name)).name}) | {command.short_help} |" for name, command in all_commands()]
    return "# Commands\n\nWhat `--help` prints, command by command.\n\n| command | purpose |\n|---|---|\n" + "\n".join(rows) + "\n"


def on_config(config):
    "The navigation."
    sections = [
        {room_title(room).capitalize(): [f"rooms/{room_title(room)}.md", *({heading(path)[0]: path.name} for path in paths)]}
        for room, paths in rooms().items()
    ]
    config.nav = [
        {"Home": "index.ipynb"},
        {"Tutorials": [{heading(path)[0]: path.name} for path in tutorials()]},
        {"Guides": [{heading(path)[0]: path.name} for path in guides()]},
        {"Commands": ["commands/index.md", *({name: command_file(name)} for name, _ in all_commands())]},
        {"Rooms": sections},
        {"Functions": [{module_of(path): f"api/{module_of(path)}.md"} for path in notebooks()]},
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


def generated_pages():
    "Pages that no notebook has: address -> Markdown, or the text of another file."
    yield "assets/site.css", (ROOT / ".ci" / "docs.css").read_text(encoding="utf-8")
    yield "assets/iframe-worker.js", (ROOT / ".ci" / "docs_search.js").read_text(encoding="utf-8")
    yield "commands/index.md", commands_page()
    for name, command in all_commands(): yield command_file(name), command_page(name, command)
    for room, paths in rooms().items(): yield f"rooms/{room_title(room)}.md", room_page(room, paths)
    for path in notebooks():
        name = module_of(path)
        yield f"api/{name}.md", f"# {name}\n\n::: deep_fashion.{name}\n"


def on_files(files, config):
    "Notebooks for readers, and the pages that are made here."
    folder = Path(tempfile.mkdtemp())
    for file in files:
        if not file.src_uri.endswith(".ipynb"): continue
        path = folder / file.src_uri
        path.write_text(json.dumps(for_readers(json.loads(Path(file.abs_src_path).read_text(encoding="utf-8")))), encoding="utf-8")
        # The path was computed when it was read above and would be kept, so it is replaced here and in the file mkdocs-jupyter wraps.
        for wrapped in (file, getattr(file, "file", file)): wrapped.abs_src_path = str(path)
    for address, text in generated_pages(): files.append(File.generated(config, address, content=text))
    return files


def search_weight(address):
    "How much more than others a page counts in searches: prose comes before the source, the source before lists of functions."
    if address.startswith(("index", "guide.", "tutorial.")): return 8
    if address.startswith(("commands/", "rooms/")): return 4
    return .2 if address.startswith("api/") else 1


def on_page_markdown(markdown, page, **_):
    "Titles and weights that notebooks cannot hold."
    page.meta["search"] = {"boost": search_weight(page.file.src_uri)}
    if page.is_homepage: page.meta["title"] = "Home"
    return markdown


def on_page_content(html, page, **_):
    "Links between notebooks lead to their pages; a notebook's own first heading would be the name in the navigation."
    if page.is_homepage: page.title = "Home"
    return re.sub(r'(href="[\w./-]+)\.ipynb(["#])', r"\1.html\2", html)


def on_page_context(context, page, config, **_):
    "The title of the home page, in the browser's tab."
    if page.is_homepage: page.meta["title"] = config.site_description
    return context
