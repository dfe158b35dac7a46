"Titles: combined with pictures where they help, in any language, with scores and thresholds of their own."
import numpy as np
import pandas as pd
import pytest

from deep_fashion.core import InputError, read_json
from deep_fashion.data.title_classifier import TitleClassifier
from deep_fashion.data.titles import TitleWords
from deep_fashion.predict.tagger import load_tagger
from deep_fashion.predict.title_use import check_titles

NECKS = {"0": "ヘンリーネック", "1": "フード付き", "2": "ポロ襟", "3": "丸首", "4": "Vネック", "5": "ジップ"}
PATTERNS = {"0": "einfarbig", "1": "gestreift", "2": "kariert", "3": "gepunktet", "4": "bedruckt", "5": "geblümt"}


@pytest.fixture
def titled(samples, table, rows):
    "The sample table with other names, and titles in two languages, a tenth of which are empty."
    rows = rows.drop_duplicates("filename")
    rows = rows[[(samples.images / name).exists() and name.startswith("shirt") for name in rows.filename]].reset_index(drop=True)
    title = [f"メンズ{NECKS.get(neck, '')}シャツ {PATTERNS.get(pattern, '')}es Hemd {i}{' قميص' * (i % 3 == 0)}" if i % 10 else ""
             for i, (neck, pattern) in enumerate(zip(rows.neck, rows.pattern))]
    necks = [f"no {neck}, or so" if neck.isdigit() else neck for neck in rows.neck]
    numbers = np.arange(len(rows))
    rows = rows.assign(title=title, third=np.where(numbers % 3 == 0, "yes", "no"), neck=necks, article=4000 + numbers)
    return table(rows.rename(columns={"neck": "neck, front"}).to_csv(index=False), "titled.csv")


@pytest.fixture
def train(trained, titled, samples, tmp_path):
    "Train a linear probe on the body of another run: quick, and the default of `train`."
    quick = "--weights", trained, "--views", "whole", "--size", "48", "-nw", "0", "--no-report", "--runs_dir", tmp_path / "runs"
    def words(name, *more): return "train", "--run_name", name, "--csv_path", titled, "--img_dir", samples.images, *quick, *more
    return words


def test_titles_of_any_language_are_learned_scored_and_used(command, train, titled, samples, tmp_path):
    result = command(*train("a", "--title_column", "title"))
    assert result.status == 0 and "picture and title combined (--use_titles):" in result.out, result.err
    assert "\ntitles are used for neck, front (weights: picture " in result.out
    metrics = read_json(tmp_path / "runs/a/metrics.json")
    assert metrics["title_weights"].keys() >= {"neck, front", "pattern"}
    for attribute in ("neck, front", "pattern"):
        assert metrics["title_weights"][attribute]["title"] > 0.1
        alone, both = (o["attributes"][attribute] for o in (metrics, metrics["with_titles"]))
        assert set(both) == set(alone) and both["photos"] == alone["photos"] and both["accuracy"] > alone["accuracy"] + 0.1
        assert both["macro_f1_low"] <= both["macro_f1"] <= both["macro_f1_high"] and both["coverage_at_95"] > alone["coverage_at_95"]
    given = "--model", tmp_path / "runs/a", "--img_dir", samples.images, "--csv_path", titled, "--title_column", "title", "--use_titles"
    evaluated = command("evaluate", *given)
    n = len(pd.read_csv(titled))
    note = f"titles are from column 'title'; the tagger knows words, or parts of words, in those of {n - -(-n // 10)} of {n}"
    assert evaluated.status == 0 and note in evaluated.err
    results = [command("tag", *given[:-1], "--min_precision", "0.9", "--out_csv", tmp_path / f"{n}.csv", *given[-1:][:n]) for n in range(2)]
    alone, both = (pd.read_csv(tmp_path / f"{n}.csv", dtype=str, keep_default_na=False) for n in range(2))
    assert (both["neck, front"] != "#N/A").mean() > (alone["neck, front"] != "#N/A").mean()
    assert "title_column has no effect" in results[0].err and "titles are from column 'title'" in results[1].err
    assert "neck, front:" in results[1].out and results[0].out != results[1].out
    rows = pd.read_csv(titled, dtype=str, keep_default_na=False).set_index("filename").loc[both.filename]
    # Without a title, the picture decides, as surely as before.
    same = (both.pattern_confidence == alone.pattern_confidence).to_numpy()
    assert same[(rows.title == "").to_numpy()].all() and not same.all()
    card = (tmp_path / "runs/a/bundle/README.md").read_text()
    assert "Combined with product titles" in card and "--title_column title" in card


def test_titles_of_a_column_are_not_replaced_by_file_names(command, refused, train, titled, samples, tmp_path):
    assert command(*train("a", "--title_column", "title")).status == 0
    says = ["learned from titles in column 'title'; give title_column (and csv_path)"]
    for model in ("runs/a", "runs/a/learn.pkl"):
        given = "--model", tmp_path / model, "--img_dir", samples.images, "--use_titles"
        refused("tag", *given, "--out_csv", tmp_path / "tags.csv", says=says)
        refused("evaluate", *given, "--csv_path", titled, says=says)
    renamed = pd.read_csv(titled, dtype=str, keep_default_na=False).rename(columns={"title": "name"})
    renamed.to_csv(tmp_path / "renamed.csv", index=False)
    other = "--csv_path", tmp_path / "renamed.csv", "--title_column", "name"
    assert command("tag", *given, *other, "--out_csv", tmp_path / "tags.csv").status == 0


def test_a_single_split_in_epochs_learns_from_titles(command, train, tmp_path):
    words = "--title_column", "title", "--attributes", "third,pattern"
    result = command(*train("a", *words, "--epochs", "1", "--learning_rate", "1e-3", "--valid_pct", "0.5"))
    assert result.status == 0, result.err
    metrics, learn = read_json(tmp_path / "runs/a/metrics.json"), load_tagger(tmp_path / "runs/a/learn.pkl")
    assert metrics["with_titles"]["mean"]["photos"] == metrics["mean"]["photos"]
    assert metrics["with_titles"]["attributes"]["third"]["accuracy"] > metrics["attributes"]["third"]["accuracy"]
    classifier, *weights = learn.title_models["third"]
    assert classifier.classes_ == ["no", "yes"] and min(weights) >= 0 and classifier.predict_proba(["قميص"])[0, 1] > 0.5
    assert {len(found[0]) for found in learn.title_confidences.values()} == {len(found[0]) for found in learn.confidences.values()}


@pytest.mark.parametrize("words, why", [(("--no-titles", "--title_column", "title"), "was trained without titles"),
                                        (("--title_column", "article"), "titles helped with no attribute")])
def test_without_titles_pictures_decide_alone(command, refused, train, samples, tmp_path, words, why):
    "Either they are not wanted, or they are numbers."
    result = command(*train("a", *words))
    assert result.status == 0 and ("titles help with no attribute, so --use_titles is not" in result.out) == ("--no-titles" not in words)
    assert "with_titles" not in read_json(tmp_path / "runs/a/metrics.json")
    given = "--model", tmp_path / "runs/a", "--img_dir", samples.images, "--out_csv", tmp_path / "tags.csv"
    refused("tag", *given, "--use_titles", says=[why])


def test_rules_of_an_earlier_version_are_named(trained, tmp_path):
    learn = load_tagger(trained / "learn.pkl")
    learn.title_words = {"neck": (TitleWords().fit(["polo shirt"] * 9, ["2"] * 9), 0.9)}
    learn.title_source = None
    learn.export((tmp_path / "old.pkl").absolute())
    with pytest.raises(InputError, match="rules of an earlier version.*train it again"):
        check_titles(load_tagger(tmp_path / "old.pkl"), "old.pkl")


def test_a_classifier_survives_anything():
    draw, alphabet = np.random.default_rng(0), [*"ab 漢字ßİ̇é́\t\n-_./,9", "\0", "\u2028", "\ud800", "ﬁ", "𝒜", "👕", "ا", "़"]
    titles = ["".join(draw.choice(alphabet, draw.integers(0, 40))) for _ in range(300)] + [None, float("nan"), 5, "x" * 10_000]
    found = TitleClassifier().fit(titles, [str(i % 3) for i in range(len(titles))])
    probabilities = found.predict_proba(titles)
    assert np.isfinite(probabilities).all() and np.allclose(probabilities.sum(1), 1, atol=1e-5)
    state = found.__getstate__()
    again = TitleClassifier()
    again.__setstate__(state)
    assert state["parts_"].encode() and again.parts_ == found.parts_ and np.array_equal(again.predict_proba(titles), probabilities)
