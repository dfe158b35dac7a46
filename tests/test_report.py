"Reports: one page per run and evaluation, and what each head looked at."
import copy
import re

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import spearmanr

from deep_fashion.evaluate.explanation import grad_cam
from deep_fashion.predict.tagger import load_tagger


def self_contained(page): return "<script" not in page and not re.search(r"(src|href)=\"(?!data:|#)", page) and "url(http" not in page


def test_a_run_leaves_a_page(trained):
    page = (trained / "report.html").read_text()
    assert self_contained(page)
    for words in ("Run short", "95 % interval", "commonest class", "Learning rate and loss over batches", "reliability diagram", "precision by coverage", "right and sure", "what neck looked at",
                  "round", "conflicting duplicate", "Labels that look wrong", "random_seed", "fastai"): assert words in page, words


def test_an_evaluation_leaves_scores_and_a_page(command, refused, trained, samples, tmp_path):
    words = "evaluate", "--model", trained / "learn.pkl", "--csv_path", samples.csv, "--img_dir", samples.images
    assert command(*words).status == 0 and command(*words).status == 0
    assert {"evaluation.json", "evaluation.html", "evaluation-2.json", "evaluation-2.html"} == {path.name for path in tmp_path.iterdir()}
    page = (tmp_path / "evaluation.html").read_text()
    assert self_contained(page) and "Evaluation" in page and "what pattern looked at" in page
    refused(*words, "--out", "evaluation.json", says=["evaluation.json", "is kept"])
    (tmp_path / "mine.html").write_text("mine")
    refused(*words, "--out", "mine.json", says=["mine.html", "is kept"])
    assert (tmp_path / "mine.html").read_text() == "mine" and not (tmp_path / "mine.json").exists()


@pytest.mark.parametrize("width, dark", [(1200, False), (1200, True), (390, False), (390, True)])
def test_the_page_is_legible(browser, trained, width, dark):
    tab = browser(width, dark)
    tab.goto(f"file://{trained / 'report.html'}")
    assert tab.errors == [] and all(request.startswith(("file:", "data:")) for request in tab.requests)
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    assert all(image["complete"] and image["width"] for image in tab.evaluate("[...document.images].map(o => ({complete: o.complete, width: o.naturalWidth}))"))
    ink, paper = (sum(map(int, re.findall(r"\d+", tab.evaluate(f"getComputedStyle(document.body).{name}"))[:3])) for name in ("color", "backgroundColor"))
    assert (ink > 600 and paper < 150) if dark else (ink < 150 and paper > 600)
    # The ink of plots is the page's.
    assert tab.evaluate("getComputedStyle(document.querySelector('svg text')).fill") == tab.evaluate("getComputedStyle(document.body).color")


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
    warm = [(pixels[..., 0] > 200) & (pixels[..., 0].astype(int) - pixels[..., 2] > 60) & (pixels[..., 1] > 120) for pixels in (np.asarray(plain), np.asarray(maps))]
    assert warm[1].sum() > warm[0].sum() + 100
    refused(*words, "--explain", says=["out_image"])


@pytest.mark.parametrize("arch", ["resnet18", "tf_efficientnet_lite0"])
def test_maps_are_of_the_network(trained, samples, command, tmp_path, arch):
    "Random weights in place of the learned ones give other maps (Adebayo et al., 2018)."
    if arch == "resnet18": tagger = load_tagger(trained / "learn.pkl")
    else:
        assert command("train", "--run_name", "lite", "--csv_path", samples.csv, "--img_dir", samples.images, "--arch", arch, "--size", "96", "--views", "whole", "-nw", "0").status == 0
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
        correlations += [np.nan_to_num(spearmanr(found.flatten(), after[attribute].flatten())[0]) for attribute, found in before.items()]
    assert np.mean(correlations) < 0.5


def test_a_converted_tagger_has_no_maps_but_a_page(command, refused, trained, samples, tmp_path):
    pytest.importorskip("openvino", reason="the extra 'fast' is not installed")
    assert command("convert", "--model", trained / "learn.pkl", "--img_dir", samples.images, "--out", "fast.pkl", "--precision", "bfloat16", "--photos", "8").status == 0
    refused("test", "--model", "fast.pkl", "-i", samples.images / "shirt-00001-1.jpg", "--out_image", "picture.png", "--explain", says=["converted tagger"])
    assert not (tmp_path / "picture.png").exists()
    assert command("evaluate", "--model", "fast.pkl", "--csv_path", samples.csv, "--img_dir", samples.images).status == 0
    assert "looked at" not in (tmp_path / "evaluation.html").read_text()


def test_eight_bits_are_refused_where_they_would_be_wrong(command, refused, trained, samples, monkeypatch):
    pytest.importorskip("nncf", reason="the extra 'fast' is not installed")
    monkeypatch.setattr("deep_fashion.predict.openvino.has_fast_int8", lambda: True)
    assert command("convert", "--model", trained / "learn.pkl", "--img_dir", samples.images, "--out", "fast.pkl", "--photos", "8").status == 0
    monkeypatch.setattr("deep_fashion.predict.openvino.has_fast_int8", lambda: False)
    refused("tag", "--model", "fast.pkl", "--img_dir", samples.images, "--out_csv", "tags.csv", says=["convert the original here"])
