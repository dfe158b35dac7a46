"Reports: one page per run and evaluation, its scores, and maps of the evidence for each prediction."
import copy
import re

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import spearmanr

from deep_fashion.data.table import read_table
from deep_fashion.evaluate.explanation import grad_cam
from deep_fashion.evaluate.interpretation import EXAMPLE_KINDS
from deep_fashion.metrics.scores import SCORES, Score, detailed_scores
from deep_fashion.predict.tagger import load_tagger, predict_files
from deep_fashion.report.run_page import RunReport, ScoredPhotos, write_run_page
from deep_fashion.report.tables import scores_as_dict, scores_as_text


def self_contained(page): return "<script" not in page and not re.search(r"(src|href)=\"(?!data:|#)", page) and "url(http" not in page


def test_a_run_leaves_a_page(trained):
    page = (trained / "report.html").read_text()
    assert self_contained(page)
    for words in ("Run short", "95 % interval", "majority accuracy", "majority macro-F1", "Learning rate and loss over batches",
                  "reliability diagram", "precision by coverage", "right and sure", "evidence for neck", "round",
                  "conflicting duplicate", "Labels that look wrong", "random_seed", "fastai"): assert words in page, words


def test_an_evaluation_leaves_scores_and_a_page(command, refused, trained, samples, tmp_path):
    words = "evaluate", "--model", trained / "learn.pkl", "--csv_path", samples.csv, "--img_dir", samples.images
    assert command(*words).status == 0 and command(*words).status == 0
    assert {"evaluation.json", "evaluation.html", "evaluation-2.json", "evaluation-2.html"} == {path.name for path in tmp_path.iterdir()}
    page = (tmp_path / "evaluation.html").read_text()
    assert self_contained(page) and "Evaluation" in page and "evidence for pattern" in page
    refused(*words, "--out", "evaluation.json", says=["evaluation.json", "is kept"])
    (tmp_path / "mine.html").write_text("mine")
    refused(*words, "--out", "mine.json", says=["mine.html", "is kept"])
    assert (tmp_path / "mine.html").read_text() == "mine" and not (tmp_path / "mine.json").exists()


@pytest.fixture
def scored(trained, samples):
    "A tagger, and its predictions for all sample photos."
    learn = load_tagger(trained / "learn.pkl")
    table = read_table(samples.csv, samples.images, names=samples.names)
    paths, targets = [table.img_dir / name for name in table.rows.filename], learn.vocab.encode_rows(table.rows)
    probabilities = torch.cat([predicted for _, predicted, _ in predict_files(learn, paths)])
    scores = detailed_scores(probabilities, targets, learn.vocab, learn.majority)
    return learn, ScoredPhotos(paths, probabilities, targets, scores)


@pytest.fixture
def another_score():
    SCORES.append(Score("photos_of_first", "first class", "Photos of the first class.", lambda _, targets: (targets == 0).sum()))
    yield SCORES[-1]
    SCORES.pop()


def test_a_score_is_added_in_one_place(scored, another_score, tmp_path):
    "It is computed, in the terminal, in metrics.json and on the page."
    learn, photos = scored
    photos.scores = detailed_scores(photos.probabilities, photos.targets, learn.vocab, learn.majority)
    assert photos.scores.photos_of_first["neck"] == (photos.targets[:, 0] == 0).sum()
    text = scores_as_text(photos.scores)
    assert text.splitlines()[0].endswith("first") or "first class" in text.splitlines()[1]
    assert f"{photos.scores.photos_of_first['mean']:.3f}" in text.splitlines()[-1]
    assert scores_as_dict(photos.scores)["attributes"]["neck"]["photos_of_first"] == photos.scores.photos_of_first["neck"]
    write_run_page(tmp_path / "page.html", RunReport("Title", "Method", learn, photos, map_seconds=0))
    page = (tmp_path / "page.html").read_text()
    for words in ("first class</th>", "Photos of the first class.", f"{photos.scores.photos_of_first['mean']:.3f}</td>"):
        assert words in page, words


def test_tables_of_scores_are_narrow_and_their_titles_unique(scored, tmp_path):
    learn, photos = scored
    text = scores_as_text(photos.scores.rename({"neck": "n" * 14}))
    assert max(map(len, text.splitlines())) <= 100
    write_run_page(tmp_path / "page.html", RunReport("Title", "Method", learn, photos, map_seconds=0))
    head = re.search(r'<table class="scores"><thead>(.*?)</thead>', (tmp_path / "page.html").read_text(), re.S)[1]
    titles = re.findall(r"<th[^>]*>(.*?)</th>", head)
    assert len(titles) == len(set(titles)) == 10 and {"majority accuracy", "majority macro-F1"} < set(titles)


def test_maps_are_drawn_within_a_budget(scored, tmp_path, monkeypatch):
    learn, photos = scored
    calls = []
    def counted(learn, photo, classes):
        calls.append(list(classes))
        return grad_cam(learn, photo, classes)
    monkeypatch.setattr("deep_fashion.report.run_page.grad_cam", counted)
    pages = {}
    for seconds in (None, 1e-9, 0):
        calls.clear()
        write_run_page(tmp_path / "page.html", RunReport("Title", "Method", learn, photos, map_seconds=seconds))
        page = (tmp_path / "page.html").read_text()
        pages[seconds] = len(calls), sum(map(len, calls)), page.count('alt="evidence for'), "left out to save time" in page
        assert sum(kind in page for kind in EXAMPLE_KINDS) > 1
    # Two photos of two kinds per attribute at most; photos that serve several attributes are explained once.
    photo_calls, maps, shown, left_out = pages[None]
    assert 0 < photo_calls <= maps == shown <= 4 * len(learn.vocab.attributes) and not left_out
    assert pages[1e-9][0] == 1 and pages[1e-9][1] == pages[1e-9][2] and pages[1e-9][3]
    assert pages[0] == (0, 0, 0, True)


@pytest.mark.parametrize("width, dark", [(1200, False), (1200, True), (390, False), (390, True)])
def test_the_page_is_legible(browser, trained, width, dark):
    tab = browser(width, dark)
    tab.goto(f"file://{trained / 'report.html'}")
    assert tab.errors == [] and all(request.startswith(("file:", "data:")) for request in tab.requests)
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    assert tab.evaluate("[...document.images].every(image => image.complete && image.naturalWidth)")
    colours = [tab.evaluate(f"getComputedStyle(document.body).{name}") for name in ("color", "backgroundColor")]
    ink, paper = (sum(map(int, re.findall(r"\d+", colour)[:3])) for colour in colours)
    assert (ink > 600 and paper < 150) if dark else (ink < 150 and paper > 600)
    # The ink of plots is the page's.
    ink_of_plots = tab.evaluate("getComputedStyle(document.querySelector('svg text')).fill")
    assert ink_of_plots == tab.evaluate("getComputedStyle(document.body).color")


def test_the_page_on_paper(browser, trained):
    tab = browser(1200, dark=True)
    tab.goto(f"file://{trained / 'report.html'}")
    tab.emulate_media(media="print")
    assert tab.evaluate("getComputedStyle(document.body).color") == "rgb(0, 0, 0)"
    assert len(tab.pdf(format="A4")) > 50_000


def test_a_labelled_picture_with_maps(command, refused, trained, samples, tmp_path):
    words = "test", "--model", trained / "learn.pkl", "-i", samples.images / "shirt-00001-1.jpg"
    assert command(*words, "--out_image", "plain.png").status == 0 and command(*words, "--out_image", "maps.png", "--explain").status == 0
    plain, maps = (Image.open(tmp_path / name).convert("RGB") for name in ("plain.png", "maps.png"))
    assert maps.width > plain.width
    # The strongest place of a map is yellow or orange, which nothing else in the picture is.
    warm_plain, warm_maps = ([(red > 200) & (red - blue > 60) & (green > 120)] for red, green, blue in
                             (np.moveaxis(np.asarray(picture, dtype=int), 2, 0) for picture in (plain, maps)))
    assert np.sum(warm_maps) > np.sum(warm_plain) + 100
    refused(*words, "--explain", says=["out_image"])


@pytest.mark.parametrize("arch", ["resnet18", "tf_efficientnet_lite0"])
def test_maps_are_of_the_network(trained, samples, command, tmp_path, arch):
    "Random weights in place of the learned ones give other maps (Adebayo et al., 2018)."
    if arch == "resnet18": tagger = load_tagger(trained / "learn.pkl")
    else:
        words = "--csv_path", samples.csv, "--img_dir", samples.images, "--arch", arch, "--size", "96", "--views", "whole", "-nw", "0"
        assert command("train", "--run_name", "lite", *words).status == 0
        tagger = load_tagger(tmp_path / "runs/lite/learn.pkl")
    photo, classes = samples.images / "shirt-00001-1.jpg", dict.fromkeys(tagger.vocab.attributes, 0)
    before, again = grad_cam(tagger, photo, classes), grad_cam(tagger, photo, classes)
    assert all(torch.equal(found, again[attribute]) for attribute, found in before.items())
    tagger.model, correlations = copy.deepcopy(tagger.model), []
    # One network of random weights may look at the same place by accident, not five.
    for seed in range(5):
        torch.manual_seed(seed)
        for part in tagger.model.modules():
            if hasattr(part, "reset_parameters"): part.reset_parameters()
        after = grad_cam(tagger, photo, classes)
        correlations += [np.nan_to_num(spearmanr(before[a].flatten(), after[a].flatten())[0]) for a in before]
    assert np.mean(correlations) < 0.5


def test_a_converted_tagger_has_no_maps_but_a_page(command, refused, trained, samples, tmp_path):
    pytest.importorskip("openvino", reason="the extra 'fast' is not installed")
    words = "--model", trained / "learn.pkl", "--img_dir", samples.images, "--out", "fast.pkl", "--photos", "8"
    assert command("convert", *words, "--precision", "bfloat16").status == 0
    words = "--model", "fast.pkl", "-i", samples.images / "shirt-00001-1.jpg", "--out_image", "picture.png"
    refused("test", *words, "--explain", says=["converted tagger"])
    assert not (tmp_path / "picture.png").exists()
    assert command("evaluate", "--model", "fast.pkl", "--csv_path", samples.csv, "--img_dir", samples.images).status == 0
    assert "evidence for" not in (tmp_path / "evaluation.html").read_text()


def test_eight_bits_are_refused_where_they_would_be_wrong(command, refused, trained, samples, monkeypatch):
    pytest.importorskip("nncf", reason="the extra 'fast' is not installed")
    modules = "deep_fashion.predict.openvino", "deep_fashion.model.openvino_body"
    for module in modules: monkeypatch.setattr(f"{module}.has_fast_int8", lambda: True)
    words = "--model", trained, "--img_dir", samples.images, "--photos", "8", "--out"
    for out in ("fast.pkl", "fast"): assert command("convert", *words, out).status == 0
    for module in modules: monkeypatch.setattr(f"{module}.has_fast_int8", lambda: False)
    for out in ("fast.pkl", "fast"):
        refused("tag", "--model", out, "--img_dir", samples.images, "--out_csv", "tags.csv", says=["convert the original here"])
