"Names of attributes and labels as tables have them, in every plot: currency, formulas, other scripts, whole descriptions."
import warnings
from types import SimpleNamespace

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.text import Text
from PIL import Image

from deep_fashion import text
from deep_fashion.data.table import Table
from deep_fashion.data.vocab import Attributes, AttributeVocab
from deep_fashion.report.html import inline_svg
from deep_fashion.report.photos import plot_examples, plot_labelled, plot_shares
from deep_fashion.report.plots import plot_coverage, plot_history, plot_lr_find, plot_reliability, plot_schedule, plot_scores, save_figure

ODD = ["$0-$20", "$$", "Ca$$h_x^2", r"\frac{", "{}", "#N/A?", "领型", "بدون أكمام", "ไทย", "👕", "50% & <b>"]


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


@pytest.fixture
def odd_table(samples):
    names = sorted(path.name for path in samples.images.glob("*-1.jpg"))[: 2 * len(ODD)]
    rows = pd.DataFrame({"filename": names, "$price_band$": [ODD[i % len(ODD)] for i in range(len(names))]})
    return Table(rows, ["$price_band$"], samples.images)


def written(fig): return {found.get_text() for found in fig.findobj(Text) if found.get_text()}


def figures(table):
    "Every plot that shows names, of odd ones."
    vocab = AttributeVocab({"$price_band$": ODD})
    scores = pd.DataFrame(dict(macro_f1=np.linspace(0, 1, len(ODD))), index=ODD)
    yield plot_shares(table)
    yield plot_examples(table, "$price_band$", n=1)
    yield plot_labelled(Image.new("RGB", (30, 40)), {"$price_band$": torch.linspace(0, 1, len(ODD))}, vocab, alternatives=len(ODD))
    yield plot_scores(scores)


def test_names_are_drawn_as_they_are(odd_table, tmp_path):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for i, fig in enumerate(figures(odd_table)):
            assert set(ODD) <= written(fig)
            assert not any(found.get_parse_math() for found in fig.findobj(Text) if found.get_text() in ODD)
            save_figure(fig, tmp_path / f"{i}.png")
    assert [str(warning.message) for warning in caught] == []


def test_settings_of_matplotlib_stay(odd_table):
    with mpl.rc_context({"text.parse_math": True, "font.family": ["serif"], "axes.formatter.use_mathtext": True}):
        before = dict(mpl.rcParams)
        for fig in figures(odd_table): assert fig
        assert dict(mpl.rcParams) == before
        assert plt.figure().text(0, 0, "$a$").get_parse_math()


def test_numbers_on_axes_are_no_formulas(tmp_path):
    history = pd.DataFrame(dict(train_loss=[1e-7, 2e-7], valid_loss=[1e-7, 2e-7], accuracy=[0.1, 0.2], macro_f1=[0.1, 0.2], best=[0, 1]))
    batches = pd.DataFrame(dict(epoch=[0.0, 1], learning_rate=[1e-7, 2e-7], train_loss=[1e9, 2e9]))
    found = pd.DataFrame(dict(learning_rate=np.geomspace(1e-7, 1e-6, 20), loss=np.linspace(2, 1, 20)))
    correct = np.arange(50) % 4 > 0
    with mpl.rc_context({"axes.formatter.use_mathtext": True}):
        for fig in (plot_history(history), plot_schedule(batches), plot_lr_find(found, 3e-7),
                    plot_reliability(np.linspace(0, 1, 50), correct), plot_coverage(np.linspace(0, 1, 50), correct)):
            fig.canvas.draw()
            assert not any("$" in found or "mathdefault" in found for found in written(fig)), written(fig)


def test_plots_of_a_page_keep_text(odd_table):
    svg = inline_svg("shares", plot_shares, odd_table)
    for name in ("$0-$20", "Ca$$h_x^2", "领型", "بدون أكمام", "50% &amp; &lt;b&gt;"): assert f">{name}</text>" in svg, name


def test_fastai_titles():
    fig, ax = plt.subplots()
    Attributes({"$a$": "$$", "b": None, "long": "x" * 100_000}).show(ax)
    title = ax.get_title("left")
    assert title.startswith("$a$: $$\nb: #N/A\nlong: xxx") and len(title) < 100
    fig.canvas.draw()


def test_long_and_many_names(samples, tmp_path):
    "Cells of 100 kB, line breaks, 300 columns and 300 classes: a picture that can be written."
    names = sorted(path.name for path in samples.images.glob("*.jpg"))[:30]
    columns = {f"c{i}": [f"label\n{j % (300 if i == 0 else 2)}\t" for j in range(300)] for i in range(300)}
    rows = pd.DataFrame({"filename": names * 10, "y" * 100_000: ["z" * 100_000] * 300, **columns})
    table = Table(rows, ["y" * 100_000, *columns], samples.images)
    fig = plot_shares(table)
    assert {"label 0", "the first 40 of 301 attributes", "c0, the 30 largest of 300 classes"} <= written(fig)
    save_figure(fig, tmp_path / "shares.png")
    assert max(Image.open(tmp_path / "shares.png").size) < 30_000
    assert max(map(len, written(plot_examples(table, "y" * 100_000, n=1)))) <= 40


def test_a_font_for_every_script(monkeypatch):
    "DejaVu Sans first, then whatever adds a script; never a font that adds nothing, nor one in another style."
    has = {"DejaVu Sans": "عא", "Han": "领體", "More Han": "领", "Thai": "ก", "Slanted": "あ"}
    fonts = [SimpleNamespace(name=name, fname=name, weight=400, style="italic" if name == "Slanted" else "normal") for name in has]
    monkeypatch.setattr(text, "fontManager", SimpleNamespace(ttflist=fonts))
    monkeypatch.setattr(text, "_characters_of", lambda path, characters: {c for c in characters if c in has[path]})
    text.fallback_families.cache_clear()
    assert text.fallback_families() == ("DejaVu Sans", "Han", "Thai")
    text.fallback_families.cache_clear()
