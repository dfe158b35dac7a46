"The photos of reports: by class and confusion, enlarged, sorted and filtered, all in one file that opens from disk."
import json
import re

import numpy as np
import pandas as pd
import pytest
import torch

from deep_fashion.data.samples import make_samples
from deep_fashion.data.table import Table
from deep_fashion.data.vocab import AttributeVocab
from deep_fashion.evaluate.audit import Findings
from deep_fashion.metrics.scores import detailed_scores
from deep_fashion.report.audit_page import audit_page
from deep_fashion.report.run_page import RunReport, ScoredPhotos, write_run_page

ODD = ["<script>alert(1)</script>", 'with "quotes" & more', "圆领 \u202e", "", "x" * 300]


class Tagger:
    "As much of a tagger as a report needs that draws no maps."
    def __init__(self, vocab, majority): self.vocab, self.majority = vocab, majority


def errors_of(paths, vocab, targets, probabilities):
    "All wrong predictions of the first attribute as labels in question."
    attribute, size = vocab.attributes[0], vocab.sizes[0]
    confidence, predicted = probabilities[:, :size].max(1)
    rows = [dict(filename=path.name, attribute=attribute, label=vocab.classes[attribute][t], predicted=vocab.classes[attribute][p],
                 confidence=float(c), quality=1 - float(c)) for path, t, p, c in zip(paths, targets[:, 0], predicted, confidence) if t != p]
    return pd.DataFrame(rows)


def report_of(paths, classes, names=None, seed=0):
    "A report on random predictions that are right more often than not."
    vocab, rng = AttributeVocab(classes, names=names or {}), torch.Generator().manual_seed(seed)
    targets = torch.stack([torch.randint(0, size, (len(paths),), generator=rng) for size in vocab.sizes], 1)
    logits, starts = torch.randn(len(paths), sum(vocab.sizes), generator=rng), np.cumsum([0, *vocab.sizes])
    for i, start in enumerate(starts[:-1]): logits[torch.arange(len(paths)), int(start) + targets[:, i]] += 1.5
    probabilities = torch.cat([part.softmax(1) for part in logits.split(vocab.sizes, 1)], 1)
    learn = Tagger(vocab, [0] * len(vocab.sizes))
    labels = {a: [classes[a][t] for t in of_attribute.tolist()] for a, of_attribute in zip(vocab.attributes, targets.T)}
    rows = pd.DataFrame(dict(filename=[path.name for path in paths], **labels))
    table = Table(rows, vocab.attributes, paths[0].parent, names=names or {}, dropped=pd.DataFrame(columns=["line", "filename", "reason"]))
    findings = Findings({}, None, None, errors_of(paths, vocab, targets, probabilities))
    scored = ScoredPhotos(paths, probabilities, targets, detailed_scores(probabilities, targets, vocab, learn.majority))
    return RunReport("Run", "method", learn, scored, table, findings, map_seconds=0)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = make_samples(tmp_path_factory.mktemp("photos") / "samples", n=80)
    return sorted((folder / "images").iterdir())


NECKS = {"neck": ["0", "1", "2"], "sleeve length": ["long", "short"]}
NAMES = {"neck": {"0": "round", "1": ODD[0], "2": "v-neck"}}


@pytest.fixture(scope="module")
def page(photos, tmp_path_factory):
    path = tmp_path_factory.mktemp("report") / "report.html"
    write_run_page(path, report_of(photos, NECKS, NAMES))
    return path


def data_of(page): return json.loads(re.search(r'id="photo-data">(.*?)</script>', page.read_text(), re.S)[1])


def opened(tab, page):
    tab.goto(f"file://{page}")
    assert tab.errors == [] and all(request.startswith(("file:", "data:")) for request in tab.requests)
    return tab


def test_every_photo_is_stored_once(page, photos):
    text = page.read_text()
    stored = re.findall(r"^\.p\d+\{background-image:url\((data:.*?)\)\}$", text, re.M)
    assert len(stored) == len(photos) and text.count("data:image") == len(photos)
    assert not re.search(r'(src|href)="(?!data:|#)', text)
    references = data_of(page)["references"]
    assert len(references) == 2 * len(photos)


def test_classes_have_their_scores_and_photos(page):
    text, data = page.read_text(), data_of(page)
    of_round = [ref for ref in data["references"] if ref[1] == 0 and ref[2] == 0]
    right = sum(ref[3] == 0 for ref in of_round)
    row = re.search(r'<tr><th scope="row" title="round">round</th>(.*?)</tr>', text, re.S)[1]
    photos, recall, predicted, precision, _ = re.findall("<td>(.*?)</td>", row)
    n_predicted = sum(ref[1] == 0 and ref[3] == 0 for ref in data["references"])
    assert (photos, recall) == (str(len(of_round)), f"{100 * right / len(of_round):.0f} %")
    assert (predicted, precision) == (str(n_predicted), f"{100 * right / n_predicted:.0f} %")
    card = re.search(r'id="a0-c0">(.*?)class="card"', text, re.S)[1]
    assert f"right: {right}" in card and "predicted as v-neck" in card and 'class="t  p' in card


def test_without_scripts_all_findings_are_there(chromium, page):
    tab = chromium.new_page(java_script_enabled=False, viewport={"width": 1200, "height": 900})
    try:
        tab.goto(f"file://{page}")
        assert not tab.locator("#explore").is_visible() and tab.locator(".card .t").first.is_visible()
        tab.locator('.confusion a[data-cell="0 0 2"]').click()
        assert tab.url.endswith("#a0-c0")
    finally: tab.close()


def test_a_cell_shows_its_photos_by_keyboard_alone(browser, page):
    tab = opened(browser(1200), page)
    cell = tab.locator('.confusion a[data-cell="0 0 2"]')
    n = int(cell.text_content())
    cell.focus()
    tab.keyboard.press("Enter")
    assert tab.locator("#found-title").text_content() == f"neck: label round, predicted v-neck ({n} photos)"
    assert tab.locator("#found .t").count() == n > 1
    # Close, then the photos: the second one is enlarged, and arrows lead on.
    for key in ("Tab", "Tab", "Enter"): tab.keyboard.press(key)
    if not tab.locator("#zoom").is_visible():
        tab.keyboard.press("Tab")
        tab.keyboard.press("Enter")
    first = tab.locator("#zoom .place").text_content()
    tab.keyboard.press("ArrowRight")
    position, total = map(int, re.findall(r"\d+", first))
    assert total == n and tab.locator("#zoom .place").text_content() == f"{min(position + 1, n)} of {n}"
    assert tab.evaluate("document.querySelector('#zoom img').naturalWidth") > 100
    assert "✗ v-neck" in tab.locator("#zoom table").text_content() and "sleeve length" in tab.locator("#zoom table").text_content()
    tab.keyboard.press("Escape")
    assert tab.locator("#found").is_visible() and not tab.locator("#zoom").is_visible()
    tab.keyboard.press("Escape")
    assert not tab.locator("#found").is_visible() and tab.evaluate("document.activeElement.dataset.cell") == "0 0 2"


def confidences(tab): return [int(text) for text in re.findall(r"\((\d+) %\)", tab.locator("#explore .found").text_content())]


def test_photos_are_sorted_and_filtered(browser, page):
    tab, references = opened(browser(1200), page), data_of(page)["references"]
    def count(): return int(tab.locator("#explore output").text_content().split()[0])
    assert count() == sum(ref[2] != ref[3] for ref in references)
    shown = confidences(tab)
    assert shown == sorted(shown, reverse=True) and len(shown) > 5
    tab.select_option("[name=sort]", "low")
    assert confidences(tab) == sorted(confidences(tab)) != shown
    tab.select_option("[name=attribute]", label="neck")
    tab.select_option("[name=kind]", "all")
    tab.select_option("[name=truth]", label="v-neck")
    assert count() == sum(ref[1] == 0 and ref[2] == 2 for ref in references)
    tab.fill("[name=low]", "50")
    tab.fill("[name=high]", "80")
    assert count() == sum(ref[1] == 0 and ref[2] == 2 and 50 <= ref[4] <= 80 for ref in references)
    assert all(50 <= value <= 80 for value in confidences(tab))
    tab.select_option("[name=attribute]", label="all")
    tab.fill("[name=low]", "0")
    tab.fill("[name=high]", "100")
    assert count() == len(references) and tab.locator("#explore .t").count() == 60
    tab.locator("#explore .more").click()
    assert tab.locator("#explore .t").count() == 120


def test_all_labels_that_look_wrong_can_be_filtered(browser, page):
    tab, references = opened(browser(1200), page), data_of(page)["references"]
    wrong = sum(ref[1] == 0 and ref[2] != ref[3] for ref in references)
    assert sum(ref[5] for ref in references) == wrong > 12
    assert page.read_text().split('id="findings"')[1].split('id="explore"')[0].count("<figure") == wrong
    tab.locator("[data-suspicious]").click()
    assert tab.locator("#explore output").text_content() == f"{wrong} found"


@pytest.mark.parametrize("dark", [False, True])
def test_nothing_is_cut_off_on_a_phone(browser, page, dark):
    tab = opened(browser(390, dark), page)
    assert tab.evaluate("document.documentElement.scrollWidth") <= 390
    assert tab.evaluate("[...document.querySelectorAll('svg')].every(svg => svg.getBoundingClientRect().right <= 390)")
    tab.locator(".card .t").first.click()
    box = tab.locator("#zoom").bounding_box()
    assert box["x"] >= 0 and box["x"] + box["width"] <= 390 and box["height"] <= 900


def test_names_with_markup_stay_text(browser, photos, tmp_path):
    names = {ODD[0]: {str(i): name for i, name in enumerate(ODD)}}
    write_run_page(tmp_path / "odd.html", report_of(photos[:40], {ODD[0]: [str(i) for i in range(5)]}, names))
    tab = opened(browser(1200), tmp_path / "odd.html")
    assert "<script>alert" not in (tmp_path / "odd.html").read_text()
    tab.locator(".confusion a").first.click()
    assert ODD[0] in tab.locator("#found-title").text_content()
    assert tab.evaluate("document.documentElement.scrollWidth") <= 1200


def test_photos_that_are_gone_are_grey(browser, photos, tmp_path):
    gone = [tmp_path / "moved" / path.name for path in photos]
    write_run_page(tmp_path / "gone.html", report_of(gone, NECKS))
    tab = opened(browser(1200), tmp_path / "gone.html")
    assert tab.locator(".card .t.missing").count() == tab.locator(".card .t").count() > 5
    assert tab.locator('.confusion a[data-cell="0 0 2"]').is_visible() and not tab.locator("#explore").is_visible()


def test_a_page_of_many_attributes_and_classes_stays_small(photos, tmp_path):
    classes = {f"attribute {i}": [f"class {j}" for j in range(100)] for i in range(2)}
    write_run_page(tmp_path / "large.html", report_of(photos, classes))
    text = (tmp_path / "large.html").read_text()
    # Where a matrix could not be read, the frequent mistakes are listed; other classes than the first are folded.
    assert len(text) < 2_000_000 and "<table class=\"confusion\">" not in text
    assert text.count('<ol class="confusion">') == 2 and "further classes" in text


def test_the_audit_has_all_labels_that_look_wrong(browser, photos, tmp_path):
    report = report_of(photos, NECKS, NAMES)
    duplicates = pd.DataFrame(dict(group=[], filename=[], leaks=[], conflicts=[]))
    findings = report.findings._replace(duplicates=duplicates, unusable=pd.DataFrame(dict(filename=[], reason=[])))
    (tmp_path / "audit.html").write_text(audit_page(report.table, findings, "<b>"), encoding="utf-8")
    tab, n = opened(browser(390, dark=True), tmp_path / "audit.html"), len(findings.errors)
    assert tab.locator("#explore output").text_content() == f"{n} found" and n > 12
    assert tab.evaluate("document.documentElement.scrollWidth") <= 390
    assert tab.locator(".card h4").first.text_content().split()[2] == str(report.table.rows.neck.value_counts().iloc[0])
    tab.select_option("[name=truth]", label="v-neck")
    assert tab.locator("#explore output").text_content() == f"{(findings.errors.label == '2').sum()} found"
    tab.locator("#explore .t").first.click()
    assert "v-neck" in tab.locator("#zoom table").text_content()
