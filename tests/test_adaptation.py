"effort best: a body is adapted to the photos, honestly; a run that was stopped continues; effort quick is a first impression."
import json
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from deep_fashion.all import load_learner
from deep_fashion.cli import main, print_run
from deep_fashion.data.samples import make_samples
from deep_fashion.experiment import recipes
from deep_fashion.experiment.plan import TrainingPlan
from deep_fashion.experiment.recipes import adapt_part
from deep_fashion.predict.card import adaptation_text
from deep_fashion.predict.tagger import load_tagger
from deep_fashion.run import Run
from deep_fashion.train import adaptation
from deep_fashion.train.adaptation import AdaptationRecipe, adapt_body


@pytest.fixture(scope="session")
def few(tmp_path_factory):
    "Photos whose titles name the pattern, and weights of a tiny network."
    import timm
    folder = make_samples(tmp_path_factory.mktemp("few") / "samples", n=24)
    rows = pd.read_csv(folder / "attributes.csv", dtype=str)
    rows["title"] = [f"Shirt with word{'abc'[i % 3]} pattern" for i in range(len(rows))]
    rows.to_csv(folder / "attributes.csv", index=False)
    torch.manual_seed(0)
    torch.save(timm.create_model("test_efficientnet").state_dict(), folder / "weights.pth")
    return SimpleNamespace(folder=folder, csv=folder / "attributes.csv", images=folder / "images", weights=folder / "weights.pth")


@pytest.fixture
def brief(monkeypatch):
    "One epoch in place of several; adaptation helps, whatever so few photos say."
    recipe = AdaptationRecipe(epochs=1)
    monkeypatch.setattr(recipes, "RECIPE", recipe)
    monkeypatch.setattr(recipes, "_helps", lambda *_: True)
    return recipe


@pytest.fixture(scope="session")
def words(few):
    "The command that trains with some options."
    def of(name, *options, effort="best"):
        data = ["--csv_path", few.csv, "--img_dir", few.images, "--title_column", "title", "--arch", "test_efficientnet"]
        quick = ["--weights", few.weights, "--size", "48", "--crops", "whole", "-nw", "0", "-bs", "8", "--no-photo_cache", "--no-report"]
        return ["train", "--run_name", name, *(["--effort", effort] if effort else []), *data, *quick, *options]
    return of


FOLDS = ("--folds", "2")


@pytest.fixture(scope="session")
def adapted(words, tmp_path_factory):
    "A run with an adaptation per fold."
    runs = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recipes, "RECIPE", AdaptationRecipe(epochs=1))
        patch.setattr(recipes, "_helps", lambda *_: True)
        assert main([str(word) for word in words("whole", *FOLDS, "--runs_dir", runs)]) == 0
    return Run(runs / "whole")


def state_of(run): return load_tagger(run.path).model.state_dict()


def test_the_tagger_is_a_frozen_and_an_adapted_network(adapted, few, command):
    plan, metrics = TrainingPlan.of_run(adapted), adapted.metrics
    assert plan.effort == "best" and plan.is_adapted and metrics["validation_photos"] == 24
    assert set(metrics["adaptation"]) == {"frozen", "adapted", "mean", "kept", "heads"} and metrics["adaptation"]["kept"] == "mean"
    assert {o["fold"] for o in metrics["adaptation"]["heads"]} == {0, 1, "all"}
    state, original = state_of(adapted), torch.load(few.weights)
    name = next(name for name in original if original[name].ndim == 4)
    assert torch.equal(state[f"models.0.body.{name}"], original[name])
    assert not torch.equal(state[f"models.1.body.{name}"], original[name])
    assert not list(adapted.path.glob("checkpoint_fold_*"))
    exported = load_learner(adapted.file("model"))
    photo = sorted(few.images.iterdir())[0]
    found, again = (learn.predict(photo)[2] for learn in (exported, load_tagger(adapted.path)))
    assert all(torch.equal(found[a], again[a]) for a in found)


def test_what_adaptation_did_is_told(adapted, capsys):
    print_run(adapted)
    found = adapted.metrics["adaptation"]
    text = "; ".join(f"{title}: accuracy {found[name]['accuracy']:.3f}, macro-F1 {found[name]['macro_f1']:.3f}" for name, title in
                     (("frozen", "frozen body"), ("adapted", "adapted body"), ("mean", "their mean, which is kept")))
    card = (adapted.file("bundle") / "README.md").read_text()
    assert f"\n{text}\n" in capsys.readouterr().out and text in card
    assert "mean of 2 networks: one with the pretrained body, one adapted to the photos," in card
    assert found["mean"]["accuracy"] == pytest.approx(adapted.metrics["mean"]["accuracy"], abs=1e-3)


def test_scores_of_an_adaptation_in_words():
    scores, mean = dict(accuracy=0.5, macro_f1=None), dict(accuracy=0.7, macro_f1=0.6)
    text = adaptation_text(dict(adaptation=dict(frozen=scores, adapted=scores, mean=mean, kept="mean", heads=[])))
    assert text.endswith("adapted body: accuracy 0.500, macro-F1 –; their mean, which is kept: accuracy 0.700, macro-F1 0.600")
    assert adaptation_text(dict(mean=scores)) == ""


@pytest.mark.parametrize("split", [FOLDS, ("--valid_pct", "0.3")], ids=["folds", "split"])
def test_the_frozen_body_is_kept_where_adaptation_does_not_help(command, words, brief, monkeypatch, tmp_path, split):
    monkeypatch.setattr(recipes, "_helps", lambda *_: False)
    numbers = []
    def counted(training, learn, test, number, bar=None):
        numbers.append(number)
        return adapt_part(training, learn, test, number, bar)
    monkeypatch.setattr(recipes, "adapt_part", counted)
    result = command(*words("a", *split, "--report"))
    # Not to all photos, which would be in vain.
    assert numbers == ([0, 1] if split is FOLDS else [0])
    assert result.status == 0 and "the frozen body alone is kept, since adaptation did not help (log loss" in result.out
    assert command(*words("good", *split, effort="good")).status == 0
    ours, theirs = Run(tmp_path / "runs/a"), Run(tmp_path / "runs/good")
    assert ours.metrics["mean"] == theirs.metrics["mean"] and ours.metrics["adaptation"]["kept"] == "frozen"
    assert all(torch.equal(x, y) for x, y in zip(state_of(ours).values(), state_of(theirs).values(), strict=True))
    assert "the frozen body alone is kept" in ours.file("report").read_text()
    card = (ours.file("bundle") / "README.md").read_text()
    assert ("to choose between the frozen and the adapted body" in card) == (split is not FOLDS) and "mean of 2" not in card
    # Its body learned nothing, so it does not make scores too good.
    again = command(*words("b", "--weights", ours.path, *split, effort="quick"))
    assert again.status == 0 and not any("learned from" in note for note in again.notes)


def test_the_lower_log_loss_decides():
    better, worse = dict(macro_f1=0.5, log_loss=0.7), dict(macro_f1=0.6, log_loss=0.8)
    assert recipes._helps(better, worse) and not recipes._helps(worse, better) and not recipes._helps(better, better)


def test_predictions_are_those_of_the_mean(adapted):
    model = load_tagger(adapted.path).model.eval()
    photos = torch.rand(2, 3, 48, 48)
    with torch.no_grad(): of_each, together = torch.stack([o(photos) for o in model.models]), model(photos)
    torch.testing.assert_close(together, of_each.mean(0) / model.output_temperatures())


def test_it_tags_explains_and_starts_another_run(adapted, few, command, words, tmp_path):
    photo = sorted(few.images.iterdir())[0]
    assert command("test", "--model", adapted.path, "--input", photo, "--out_image", "p.png", "--explain").status == 0
    assert command("tag", "--model", adapted.path, "--img_dir", few.images, "--out_csv", "tags.csv", "-nw", "0").status == 0
    assert len(pd.read_csv(tmp_path / "tags.csv")) == 24
    of_adapted = command(*words("b", "--weights", adapted.path, *FOLDS, effort="good"))
    assert of_adapted.status == 0 and any("learned from 24 of the 24 photos" in note for note in of_adapted.notes)
    # A frozen body has learned what its own weights have.
    again = command(*words("c", "--weights", tmp_path / "runs/b", "--valid_pct", "0.2", effort="quick"))
    assert any("learned from" in note for note in again.notes)
    ours, theirs = state_of(Run(tmp_path / "runs/b")), state_of(adapted)
    assert all(torch.equal(ours[name], theirs[f"models.1.{name}"]) for name in ours if name.startswith("body."))


def test_photos_of_a_fold_are_never_seen(command, words, brief, monkeypatch, tmp_path):
    seen, given = [], []
    def spy(learn, data, *rest):
        titles = list(data.titles)
        seen.append(set(data.rows.filename))
        given.append(titles)
        return adapt_body(learn, data, *rest)
    monkeypatch.setattr(recipes, "adapt_body", spy)
    assert command(*words("a", *FOLDS)).status == 0
    folds = pd.read_csv(tmp_path / "runs/a/split.csv").groupby("fold").filename.agg(set)
    assert seen == [folds[1], folds[0], folds[0] | folds[1]]
    assert list(map(len, given)) == list(map(len, seen))


def test_a_stopped_run_continues_to_the_same_tagger(command, words, adapted, brief, monkeypatch, tmp_path):
    calls = []
    def stopped(training, learn, test, number, bar=None):
        calls.append(number)
        if len(calls) in (2, 4): raise KeyboardInterrupt
        return adapt_part(training, learn, test, number, bar)
    monkeypatch.setattr(recipes, "adapt_part", stopped)
    results = [command(*words("a", *FOLDS))]
    while results[-1].status: results.append(command("train", "--run_name", "a", "--resume"))
    statuses = [result.status for result in results]
    for result in results[:2]: assert "stopped; finished adaptations are kept, train --run_name a --resume continues" in result.err
    known = [note for result in results for note in result.notes if "adaptations are known" in note]
    assert [note.split(" adaptations")[0].split()[-3:] for note in known] == [["1", "of", "2"], ["2", "of", "2"]]
    assert statuses == [130, 130, 0] and calls == [0, 1, 1, 2, 2]
    a, whole = Run(tmp_path / "runs/a"), adapted
    assert a.metrics == whole.metrics
    pd.testing.assert_frame_equal(a.predictions, whole.predictions)
    assert all(torch.equal(x, y) for x, y in zip(state_of(a).values(), state_of(whole).values()))


def test_a_finished_adaptation_is_kept_until_the_run_is(command, words, brief, monkeypatch, tmp_path):
    kept = recipes._kept_model
    def stopped(*_): raise KeyboardInterrupt
    monkeypatch.setattr(recipes, "_kept_model", stopped)
    assert command(*words("a", "--valid_pct", "0.3")).status == 130
    monkeypatch.setattr(recipes, "_kept_model", kept)
    monkeypatch.setattr(recipes, "adapt_part", stopped)
    assert command("train", "--run_name", "a", "--resume").status == 0
    assert set(torch.load(tmp_path / "runs/a/checkpoint.pth", weights_only=True)) == set(state_of(Run(tmp_path / "runs/a")))


def test_a_damaged_or_foreign_checkpoint_is_refused(command, words, brief, refused, monkeypatch, tmp_path):
    def stop(*_): raise KeyboardInterrupt
    def first_only(training, learn, test, number, bar=None):
        return adapt_part(training, learn, test, number, bar) if number == 0 else stop()
    monkeypatch.setattr(recipes, "adapt_part", first_only)
    for name, seed in ("a", "1"), ("b", "2"): assert command(*words(name, *FOLDS, "--random_seed", seed)).status == 130
    first, other = (tmp_path / "runs" / name / "checkpoint_fold_0.pth" for name in "ab")
    content, state = bytearray(first.read_bytes()), torch.load(first)
    for wrong in {**state, "logits": state["logits"][:2]}, {name: state[name] for name in state if name != "choices"}:
        torch.save(wrong, first)
        refused("train", "--run_name", "a", "--resume", says=["checkpoint_fold_0.pth", "damaged", "delete it"])
    first.write_bytes(other.read_bytes())
    refused("train", "--run_name", "a", "--resume", says=["checkpoint_fold_0.pth", "another run"])
    content[len(content) // 2] ^= 1
    first.write_bytes(content)
    refused("train", "--run_name", "a", "--resume", says=["checkpoint_fold_0.pth", "damaged"])


def labels_left(few, tmp_path, kept, **columns):
    rows = pd.read_csv(few.csv, dtype=str)
    rows.loc[kept:, ["neck", "sleeve_length", "pattern"]] = None
    path = tmp_path / "few_labels.csv"
    rows.assign(**columns).to_csv(path, index=False)
    return path


def test_photos_without_labels_teach_by_their_titles(command, words, brief, few, monkeypatch, tmp_path):
    table, counts = labels_left(few, tmp_path, 12), []
    fit = adaptation.adaptation_loaders
    def spy(learn, img_dir, found, *rest):
        counts.append((len(found.rows), len(found.words)))
        return fit(learn, img_dir, found, *rest)
    monkeypatch.setattr(adaptation, "adaptation_loaders", spy)
    for name, option in ("with", "--titles"), ("without", "--no-titles"):
        assert command(*words(name, "--valid_pct", "0.2", option, "--csv_path", table)).status == 0
    (n, n_words), (labelled, none) = counts
    assert n > labelled and n_words == 3 and none == 0 and labelled <= 12
    taught = load_tagger(tmp_path / "runs/with").seen
    assert len(taught.photos) > len(load_tagger(tmp_path / "runs/without").seen.photos)


@pytest.mark.parametrize("options", [("--attributes", "neck,one"), ("--crops", "garment", "--size", "96x72", "--attributes", "neck"),
                                     ("--plain",)], ids=["one class", "crops", "plain"])
def test_other_settings(command, words, few, monkeypatch, tmp_path, options):
    monkeypatch.setattr(recipes, "RECIPE", AdaptationRecipe(epochs=1))
    table = labels_left(few, tmp_path, 24, one="same")
    assert command(*words("a", "--valid_pct", "0.3", "--csv_path", table, *options)).status == 0
    assert np.isfinite(Run(tmp_path / "runs/a").metrics["mean"]["accuracy"])


def test_joined_bodies_are_adapted_together(brief, few, tmp_path):
    from deep_fashion.data.block import attribute_dls
    from deep_fashion.data.split import split_table
    from deep_fashion.data.table import read_table
    from deep_fashion.data.training_set import TrainingSet
    from deep_fashion.train.learner import attribute_learner
    table = split_table(read_table(few.csv, few.images, ["neck", "pattern"]))
    dls = attribute_dls(table, size=48, bs=8, num_workers=0, cache=False)
    learn = attribute_learner(dls, "test_efficientnet+test_vit", pretrained=False)
    network = adapt_body(learn, TrainingSet(table, pd.Series(range(24))), brief, cache=False)
    for part, before in zip(network.body.parts, learn.model.body.parts):
        assert not all(torch.equal(a, b) for a, b in zip(part.body.parameters(), before.body.parameters()))
    with torch.no_grad(): assert network(torch.rand(2, 3, 48, 48)).isfinite().all()


@pytest.mark.parametrize("effort", ["quick", "good", "best"])
@pytest.mark.parametrize("options", [("--epochs", "2"), ("--missing", "class")], ids=["epochs", "missing"])
def test_contradictions_are_refused(refused, words, effort, options):
    refused(*words("a", *options, effort=effort), says=[f"effort {effort}", "linear probe", options[0][2:]])


def test_without_weights_there_is_nothing_to_adapt(refused, few):
    data = ["--csv_path", few.csv, "--img_dir", few.images, "--no-pretrained"]
    refused("train", "--run_name", "a", "--effort", "best", *data, says=["effort best", "no-pretrained"])


def test_quick_is_one_unmirrored_view(command, words, tmp_path):
    assert command(*words("a", *FOLDS, effort="quick")).status == 0
    run = Run(tmp_path / "runs/a")
    assert not load_tagger(run.path).model.mirrored
    assert {o["penalty"] for o in run.metrics["heads"]} == {0.03}
    again = command(*words("b", "--weights", run.path, "--valid_pct", "0.3", effort="quick"))
    assert again.status == 0 and not any("learned from" in note for note in again.notes)


def test_runs_of_older_versions_have_the_default_effort(command, words, tmp_path):
    assert command(*words("a", *FOLDS, effort=None)).status == 0
    path = tmp_path / "runs/a/config.json"
    config = json.loads(path.read_text())
    for part in "settings", "plan": del config[part]["effort"]
    path.write_text(json.dumps(config))
    (tmp_path / "runs/a/learn.pkl").unlink()
    assert TrainingPlan.of_run(Run(path.parent)).effort == "good"
    assert command("train", "--run_name", "a", "--resume").status == 0


def test_an_overconfident_adapted_network_does_not_outvote_the_frozen_one():
    from deep_fashion.data.classes import AttributeVocab
    rows = pd.DataFrame(dict(a=["x", "y"] * 100, fold=np.arange(200) % 2))
    rows["a"] = rows.a.sample(frac=1, random_state=0).to_numpy()
    logits = 20 * torch.randn(200, 2, generator=torch.Generator().manual_seed(0)) # sure, and right by chance
    calibrated, temperatures = recipes._calibrated(logits, rows, AttributeVocab(dict(a=["x", "y"])))
    assert calibrated.abs().mean() < 3 and temperatures.shape == (1,) and temperatures[0] > 15


def test_a_sweep_can_search_effort(command, few, brief, tmp_path):
    fixed = dict(csv_path=few.csv, img_dir=few.images, title_column="title", arch="test_efficientnet", weights=few.weights, size=48,
                 crops="whole", num_workers=0, batch_size=8, folds=2, photo_cache=False)
    lines = [f"{name} = {json.dumps(value if type(value) in (int, bool) else str(value))}" for name, value in fixed.items()]
    (tmp_path / "sweep.toml").write_text("\n".join([*lines, "[search]", 'effort = ["quick", "best"]']))
    assert command("sweep", "--config", "sweep.toml", "--name", "efforts").status == 0
    (trials,), (best,) = tmp_path.rglob("trials.csv"), tmp_path.rglob("best.toml")
    assert list(pd.read_csv(trials).state) == ["complete"] * 2 and "effort = " in best.read_text()
