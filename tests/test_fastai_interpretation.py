"fastai's interpretation for several attributes, against the same numbers computed one photo at a time."
import re
import warnings
from collections import Counter
from types import SimpleNamespace

import matplotlib.pyplot as plt
import pandas as pd
import pytest
import torch
from fastai.vision.all import ClassificationInterpretation, Interpretation, ProgressCallback, load_learner, set_seed
from sklearn.metrics import f1_score

from deep_fashion.core import InputError
from deep_fashion.data.block import attribute_dls
from deep_fashion.data.split import split_table
from deep_fashion.data.table import read_table
from deep_fashion.evaluate.fastai_interpretation import AttributeInterpretation
from deep_fashion.model.precision import Speed
from deep_fashion.train.learner import attribute_learner


def learner_of(table, **kwargs):
    "A learner that knows nothing: its normalisation is fitted to the photos, so that it predicts many classes, and most of them wrong."
    set_seed(1, reproducible=True)
    dls = attribute_dls(table, size=48, bs=16, num_workers=0, cache=False, **kwargs)
    learn = attribute_learner(dls, pretrained=False, speed=Speed(bfloat16=False)).remove_cb(ProgressCallback)
    with torch.no_grad():
        for _ in range(10): learn.model.train()(dls.valid.one_batch()[0])
        for head in learn.model.heads: head[-1].weight *= 3
    return learn


def table_of(folder, rows=None, attributes=None, names=True):
    path = folder / "attributes.csv"
    if rows is not None:
        path = folder / "changed.csv"
        rows.to_csv(path, index=False)
    return split_table(read_table(path, folder / "images", attributes, names=folder / "names.json" if names else None), valid_pct=0.4)


@pytest.fixture(scope="module")
def data(samples):
    "A learner, its interpretation, and what plain torch says about every validation photo."
    learn = learner_of(table_of(samples.folder))
    return SimpleNamespace(learn=learn, interp=AttributeInterpretation.from_learner(learn), photos=by_torch(learn, learn.dls.valid))


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


def by_torch(learn, dl):
    "Per photo: its row, loss, and for every attribute label and predicted label (None where missing) and probabilities."
    learn.model.eval()
    loss_func, found = type(learn.loss_func)(learn.vocab.sizes, reduction="none"), []
    with torch.no_grad(): batches = [(learn.model(photos.as_subclass(torch.Tensor)), targets) for photos, targets in dl]
    losses = torch.cat([loss_func(logits, targets) for logits, targets in batches]).tolist()
    for (_, row), logits, loss in zip(dl.items.iterrows(), torch.cat([logits for logits, _ in batches]), losses):
        heads = {}
        for attribute, head in zip(learn.vocab.attributes, logits.split(learn.vocab.sizes)):
            label, classes, shares = row[attribute], learn.vocab.classes[attribute], torch.softmax(head, 0)
            known = isinstance(label, str) and label != learn.vocab.catch_all.get(attribute)
            heads[attribute] = label if known else None, classes[int(shares.argmax())], shares
        found.append(SimpleNamespace(filename=row.filename, loss=loss, heads=heads))
    return found


def pairs_of(photos, attribute):
    return Counter(photo.heads[attribute][:2] for photo in photos if photo.heads[attribute][0] is not None)


def drawn(figure):
    figure.canvas.draw()
    return figure


def test_sample_has_gaps_and_mistakes(data):
    gaps = [photo.heads[a][0] is None for photo in data.photos for a in data.learn.vocab.attributes]
    assert any(gaps) and not all(gaps)
    for attribute in data.learn.vocab.attributes: assert any(a != b for a, b in pairs_of(data.photos, attribute))


def test_confusion_matrix(data):
    vocab = data.learn.vocab
    for attribute in vocab.attributes:
        pairs, classes = pairs_of(data.photos, attribute), vocab.classes[attribute]
        assert data.interp.confusion_matrix(attribute).tolist() == [[pairs[truth, guess] for guess in classes] for truth in classes]


def test_most_confused(data):
    vocab = data.learn.vocab
    for attribute in vocab.attributes:
        expected = {
            (vocab.name(attribute, truth), vocab.name(attribute, guess), n)
            for (truth, guess), n in pairs_of(data.photos, attribute).items()
            if truth != guess
        }
        found = data.interp.most_confused(attribute)
        assert set(found) == expected and len(found) == len(expected)
        assert [n for *_, n in found] == sorted((n for *_, n in found), reverse=True)
        assert data.interp.most_confused(attribute, min_val=2) == [o for o in found if o[2] >= 2]


def test_report_agrees_with_macro_f1_and_names_absent_classes(data, capsys):
    vocab = data.learn.vocab
    data.interp.print_classification_report()
    reports = capsys.readouterr().out
    assert re.findall(rf"^({'|'.join(vocab.attributes)})$", reports, re.M) == vocab.attributes
    for attribute in vocab.attributes:
        data.interp.print_classification_report(attribute)
        report = capsys.readouterr().out
        assert report.strip() in reports
        truth, guesses = zip(*pairs_of(data.photos, attribute).elements())
        macro = f1_score(truth, guesses, average="macro", zero_division=0)
        assert re.search(r"macro avg +\S+ +\S+ +(\S+)", report)[1] == f"{macro:.2f}"
        for label in vocab.classes[attribute]: assert vocab.name(attribute, label) in report


def test_top_losses(data):
    expected = sorted(data.photos, key=lambda photo: -photo.loss)[:5]
    losses, positions, rows = data.interp.top_losses(5, items=True)
    assert losses.tolist() == pytest.approx([photo.loss for photo in expected], abs=1e-4)
    assert [data.photos[i].loss for i in positions.tolist()] == pytest.approx(losses.tolist(), abs=1e-4)
    assert [data.photos[i].filename for i in positions.tolist()] == rows.filename.tolist()


@pytest.mark.parametrize("plain", [False, True])
def test_plot_top_losses(data, plain):
    interp, vocab = Interpretation.from_learner(data.learn) if plain else data.interp, data.learn.vocab
    interp.plot_top_losses(4)
    titles = [ax.get_title(loc="left") for ax in drawn(plt.gcf()).axes if ax.images]
    photos = [data.photos[i] for i in data.interp.top_losses(4)[1].tolist()]
    assert len(titles) == 4
    for title, photo in zip(titles, photos):
        first, *lines = title.replace("\n  ", " ").splitlines()
        assert first == f"loss {photo.loss:.2f}"
        for line, (attribute, (truth, guess, shares)) in zip(lines, photo.heads.items(), strict=True):
            share = "" if plain else f" {float(shares.max()):.0%}"
            label = "" if truth in (None, guess) else f" ({vocab.name(attribute, truth)}?)"
            assert line == f"{attribute}: {vocab.name(attribute, guess)}{share}{label}"


def test_ranks_smallest_losses_and_show_results(data):
    data.interp.plot_top_losses([1, 2], largest=False, nrows=1)
    lowest = sorted(photo.loss for photo in data.photos)
    titles = [ax.get_title(loc="left") for ax in plt.gcf().axes if ax.images]
    assert [title.splitlines()[0] for title in titles] == [f"loss {loss:.2f}" for loss in lowest[1:3]]
    plt.close("all")
    data.interp.show_results([0, 3])
    assert len([ax for ax in drawn(plt.gcf()).axes if ax.images]) == 2


def test_normalised_plot_of_absent_class(data):
    "A class that no photo has is a row of zeros, without a warning about a division."
    rows = data.learn.dls.valid.items
    rows = rows[rows.neck != rows.neck.dropna().iloc[0]]
    interp = AttributeInterpretation.from_learner(data.learn, dl=data.learn.dls.test_dl(rows, with_labels=True))
    absent = data.learn.vocab.classes["neck"].index(data.learn.dls.valid.items.neck.dropna().iloc[0])
    assert not interp.confusion_matrix("neck")[absent].any()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        interp.plot_confusion_matrix("neck", normalize=True)
        (ax,) = drawn(plt.gcf()).axes
    cells = ax.images[0].get_array()
    assert not cells[absent].any() and set(cells.sum(1).round(6).tolist()) <= {0, 1}
    assert [text.get_text() for text in ax.get_yticklabels()] == data.learn.vocab.class_names("neck")


def test_predicts_once(data, monkeypatch):
    def refuse(*args, **kwargs): raise AssertionError("predicted again")
    monkeypatch.setattr(data.learn, "get_preds", refuse)
    for attribute in data.learn.vocab.attributes:
        data.interp.plot_confusion_matrix(attribute)
        data.interp.most_confused(attribute)
    data.interp.print_classification_report()
    data.interp.top_losses(3, items=True)


def test_unknown_attribute(data):
    interp = data.interp
    for method in (interp.confusion_matrix, interp.plot_confusion_matrix, interp.most_confused, interp.print_classification_report):
        with pytest.raises(InputError, match="no attribute 'hem'; the learner knows neck, sleeve_length, pattern"): method("hem")
    with pytest.raises(InputError, match="with_labels=True"):
        AttributeInterpretation.from_learner(data.learn, dl=data.learn.dls.test_dl(data.learn.dls.valid.items))


def test_predictions(data):
    vocab, found = data.learn.vocab, data.learn.predictions()
    assert found.filename.tolist() == [photo.filename for photo in data.photos]
    for (_, row), photo in zip(found.iterrows(), data.photos, strict=True):
        for attribute, (truth, guess, shares) in photo.heads.items():
            if truth is not None: assert row[attribute] == truth
            assert row[f"{attribute}_predicted"] == guess
            assert row[f"{attribute}_confidence"] == pytest.approx(float(shares.max()), abs=1e-4)
            columns = [f"{attribute}={label}" for label in vocab.classes[attribute]]
            assert row[columns].tolist() == pytest.approx(shares.tolist(), abs=1e-4)


@pytest.mark.parametrize("given", [False, True])
def test_predictions_of_shuffled_training_photos(data, given):
    "In the order of the table, complete, and of the photos as they are rather than augmented."
    dls = data.learn.dls
    assert dls.train.shuffle and dls.train.drop_last
    found = data.learn.predictions(dl=dls.train) if given else data.learn.predictions(ds_idx=0)
    assert found.filename.tolist() == dls.train.items.filename.tolist()
    expected, _ = data.learn.get_preds(dl=dls.test_dl(dls.train.items))
    columns = [f"{a}={label}" for a in data.learn.vocab.attributes for label in data.learn.vocab.classes[a]]
    assert found[columns].to_numpy() == pytest.approx(expected.numpy(), abs=2e-4)
    assert dls.train_ds.split_idx == 0


def test_interpretation_of_training_photos(data):
    "Losses are those of the photos that are shown, although the training loader shuffles and augments."
    rows = data.learn.dls.train.items
    of_training = AttributeInterpretation.from_learner(data.learn, ds_idx=0)
    again = AttributeInterpretation.from_learner(data.learn, dl=data.learn.dls.test_dl(rows, with_labels=True))
    assert of_training.losses.tolist() == pytest.approx(again.losses.tolist(), abs=1e-4) and len(of_training.losses) == len(rows)


@pytest.mark.parametrize("kind", ["files", "names of files", "rows", "opened"])
def test_predictions_without_labels(data, samples, kind):
    from deep_fashion.data.loaders import Photo
    rows = data.learn.dls.valid.items[:3]
    paths = [samples.images / name for name in rows.filename]
    items = {
        "files": paths,
        "names of files": list(map(str, paths)),
        "rows": rows[["filename"]].reset_index(drop=True),
        "opened": list(map(Photo.create, paths)),
    }[kind]
    found = data.learn.predictions(dl=data.learn.dls.test_dl(items))
    expected = {"rows": rows.filename.tolist(), "opened": [None] * 3}.get(kind, list(map(str, paths)))
    assert found.filename.tolist() == expected
    assert not set(data.learn.vocab.attributes) & set(found.columns)
    for column in ("neck_predicted", "pattern_confidence"): assert found[column].tolist() == data.learn.predictions()[column][:3].tolist()


def test_predictions_of_loaded_learner(data, samples, tmp_path):
    data.learn.export(tmp_path / "learn.pkl")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loaded = load_learner(tmp_path / "learn.pkl")
    # A loaded learner does not know the folder of the photos it was trained on.
    rows = data.learn.dls.valid.items.assign(filename=lambda o: [str(samples.images / name) for name in o.filename])
    found, expected = loaded.predictions(dl=loaded.dls.test_dl(rows)), data.learn.predictions()
    pd.testing.assert_frame_equal(found.drop(columns="filename"), expected.drop(columns="filename"), atol=2e-4)
    labelled = AttributeInterpretation.from_learner(loaded, dl=loaded.dls.test_dl(rows, with_labels=True))
    assert labelled.confusion_matrix("neck").tolist() == data.interp.confusion_matrix("neck").tolist()


def test_the_class_for_one_target_refuses(data):
    "It would compare class indices of different attributes."
    with pytest.raises(InputError, match="AttributeInterpretation"): ClassificationInterpretation.from_learner(data.learn)


def test_missing_labels_as_a_class(samples):
    "A photo without a label is no truth to compare with, whatever was predicted for it."
    learn = learner_of(table_of(samples.folder), missing="class")
    interp = AttributeInterpretation.from_learner(learn)
    labelled = learn.dls.valid.items.neck.dropna()
    counts = interp.confusion_matrix("neck")
    assert not counts[-1].any() and counts.sum() == (labelled != learn.vocab.catch_all.get("neck")).sum()
    interp.print_classification_report()
    interp.plot_top_losses(2)
    assert "#N/A?" not in "".join(ax.get_title(loc="left") for ax in plt.gcf().axes)


def test_one_attribute_with_names_that_look_like_formulas(samples, rows, capsys):
    "`$`, `_{` and `^` are text in plots: matplotlib would read them as formulas, and fail."
    odd = ["$a_{b$", "c^$d^$", r"\$e_{", "f%{}"]
    labels = pd.Series([odd[i % len(odd)] for i in range(len(rows))])
    learn = learner_of(table_of(samples.folder, pd.DataFrame({"filename": rows.filename, "x_y": labels}), ["x_y"], names=False))
    interp = AttributeInterpretation.from_learner(learn)
    assert sorted(learn.vocab.classes["x_y"]) == sorted(odd)
    interp.plot_confusion_matrix("x_y", title="$x_{y$")
    (ax,) = drawn(plt.gcf()).axes
    assert [text.get_text() for text in ax.get_xticklabels()] == learn.vocab.class_names("x_y")
    plt.close("all")
    interp.plot_top_losses(4)
    drawn(plt.gcf())
    interp.print_classification_report()
    assert "$a_{b$" in capsys.readouterr().out
    found = learn.predictions()
    pairs, classes = Counter(zip(found.x_y, found.x_y_predicted)), learn.vocab.classes["x_y"]
    assert interp.confusion_matrix("x_y").tolist() == [[pairs[truth, guess] for guess in classes] for truth in classes]
