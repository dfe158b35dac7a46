"The documentation builds offline, its links lead somewhere, and it loads nothing from elsewhere."
import html
import json
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


class References(HTMLParser):
    "What a page links to, what it loads, and the places in it that can be linked to."
    def __init__(self, text):
        super().__init__()
        self.links, self.loads, self.places = [], [], set()
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.places |= {found[name] for name in ("id", "name") if found.get(name)}
        if tag == "a" and found.get("href"): self.links.append(found["href"])
        if tag in ("img", "script", "iframe", "source") and found.get("src"): self.loads.append(found["src"])
        if tag == "link" and found.get("rel") in ("stylesheet", "icon", "preload") and found.get("href"): self.loads.append(found["href"])


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    mkdocs = Path(sys.executable).parent / "mkdocs"
    if not mkdocs.exists(): pytest.skip("the extra 'dev' is not installed")
    folder = tmp_path_factory.mktemp("docs") / "site"
    built = subprocess.run(
        [mkdocs, "build", "--strict", "--quiet", "--site-dir", folder],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
    )
    assert built.returncode == 0, built.stdout + built.stderr
    return {path.relative_to(folder): References(path.read_text(encoding="utf-8")) for path in folder.rglob("*.html")}, folder


def test_every_notebook_and_module_has_a_page(site):
    pages, _ = site
    assert {Path(f"{path.stem}.html") for path in (ROOT / "nbs").glob("*.ipynb")} <= set(pages)
    modules = [path.relative_to(ROOT / "deep_fashion").with_suffix("") for path in (ROOT / "deep_fashion").rglob("[a-z]*.py")]
    assert len(modules) > 40 and {Path("api") / f"{'.'.join(module.parts)}.html" for module in modules} <= set(pages)


def test_rooms_are_the_navigation(site):
    "Every module is listed on the page of its room, with its purpose."
    for room in [path.name for path in (ROOT / "deep_fashion").iterdir() if (path / "__init__.py").exists()]:
        text = (site[1] / f"rooms/{room}.html").read_text(encoding="utf-8")
        for notebook in (ROOT / "nbs").glob(f"[0-9]*_{room}.*.ipynb"):
            first = "".join(json.loads(notebook.read_text(encoding="utf-8"))["cells"][0]["source"])
            purpose = re.search(r"^> (.+)$", first, re.M)[1]
            assert len(purpose) > 20 and purpose.split("`")[0] in html.unescape(text), notebook.name


def test_readers_see_no_directives_and_no_tests(site):
    pages = {name: (site[1] / name).read_text(encoding="utf-8") for name in site[0]}
    assert len(pages) > 100
    for name, text in pages.items():
        readable = html.unescape(re.sub(r"<[^>]+>", "", text))
        assert "#|" not in readable and "nbdev_export()" not in readable, name
    table = re.sub(r"<[^>]+>", "", pages[Path("17_data.table.html")])
    assert "read_table(" in table and "test_eq(" not in table and "ExceptionExpected" not in table


def test_links_lead_somewhere(site):
    pages, folder = site
    checked = 0
    for name, page in pages.items():
        for link in page.links + page.loads:
            if re.match(r"(https?|mailto|data|javascript):", link) or name == Path("404.html"): continue
            path, _, place = link.partition("#")
            target = Path(os.path.normpath(name.parent / path)) if path else name
            if target == Path("."): target = Path("index.html")
            assert (folder / target).exists(), f"{name}: {link}"
            if place and target in pages: assert place in pages[target].places, f"{name}: {link}"
            checked += 1
    assert checked > 500


def test_nothing_is_loaded_from_elsewhere(site):
    for name, page in site[0].items(): assert not [load for load in page.loads if load.startswith(("http", "//"))], name


def test_arguments_are_described(site):
    text = (site[1] / "api/experiment.training.html").read_text(encoding="utf-8")
    assert "table with file names and a column per attribute" in text and "processes that open photos" in text


def test_every_command_has_a_page_of_its_help(site):
    from deep_fashion.cli import COMMANDS
    for command in COMMANDS:
        text = html.unescape(re.sub(r"<[^>]+>", "", (site[1] / f"commands/{command.name}.html").read_text(encoding="utf-8")))
        for name in command.settings.model_fields: assert name in command.arguments or f"--{name}" in text, (command.name, name)
        for example in command.examples: assert example in text


def test_search_from_disk_finds_prose_before_functions(site, browser):
    page = browser(1280)
    page.goto((site[1] / "index.html").as_uri())
    page.click(".md-search__input")
    # What is typed before the index is read is not searched for.
    for _ in range(30):
        page.keyboard.press("Control+A")
        page.keyboard.type("catch-all classes")
        page.wait_for_timeout(2000)
        if page.query_selector(".md-search-result__item a"): break
    found = [link.get_attribute("href") for link in page.query_selector_all(".md-search-result__item > a")]
    assert "guide.labels.html" in found[0] and not page.errors
    assert page.title() != "deep_fashion" and all(url.startswith("file://") for url in page.requests)


def test_code_is_not_cut_off(site, browser):
    for width in (390, 1280):
        page = browser(width)
        page.goto((site[1] / "54_train.linear_probe.html").as_uri())
        blocks = page.query_selector_all(".highlight-ipynb pre")
        assert blocks and all(block.evaluate("o => o.scrollWidth <= o.clientWidth + 1") for block in blocks)
