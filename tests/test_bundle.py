"A tagger as plain data: the same predictions, and nothing that was altered is loaded or does harm."
import copy
import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import QUICK
from fastai.learner import Learner, load_learner

from deep_fashion.cli import main
from deep_fashion.core import InputError
from deep_fashion.data.block import attribute_dls
from deep_fashion.data.samples import make_samples
from deep_fashion.data.seen import SeenPhotos
from deep_fashion.data.split import split_table
from deep_fashion.data.table import read_table
from deep_fashion.data.title_classifier import TitleClassifier
from deep_fashion.predict.bundle import read_description, read_bundle
from deep_fashion.predict.saving import load_bundle, save_bundle
from deep_fashion.predict.tagger import load_tagger, predict_files
from deep_fashion.predict.title_use import check_titles
from deep_fashion.run import Run
from deep_fashion.train.learner import attribute_learner

PHOTO = np.random.default_rng(1).integers(0, 256, (80, 60, 3), np.uint8)


def probabilities(learn): return torch.cat(list(learn.predict(PHOTO)[2].values()))


def renew_sums(folder):
    files = sorted(path.name for path in folder.iterdir() if path.name not in ("README.md", "SHA256SUMS"))
    lines = [f"{hashlib.sha256((folder / name).read_bytes()).hexdigest()}  {name}\n" for name in files]
    (folder / "SHA256SUMS").write_text("".join(lines))


def refusal(folder):
    "Why a bundle is refused, which has to be one line; None if it is loaded."
    try: load_bundle(folder)
    except InputError as error:
        assert str(folder) in str(error) and "\n" not in str(error) and len(str(error)) < 700
        return str(error)


@pytest.fixture(scope="module")
def learn(tmp_path_factory):
    "A learner of a tiny network, with everything a bundle can hold."
    folder = make_samples(tmp_path_factory.mktemp("tiny") / "samples", n=24)
    table = split_table(read_table(folder / "attributes.csv", folder / "images", names=folder / "names.json"))
    dls = attribute_dls(table, size=64, bs=8, num_workers=0, cache=False)
    learn = attribute_learner(dls, "test_resnet", pretrained=False)
    learn.model.eval()
    learn.model.temperatures.copy_(torch.tensor([1.5, 0.7, 1.1]))
    some = np.linspace(0.3, 0.9, 7, dtype=np.float32), np.arange(7) % 2 == 0
    learn.confidences = {a: some for a in learn.vocab}
    learn.seen = SeenPhotos.of([table.img_dir / name for name in table.rows.filename], table.rows.filename, ~table.rows.is_valid)
    learn.vocab.catch_all = {"neck": "9"}
    learn.title_models = {"neck": (TitleClassifier().fit(["polo shirt", "hooded シャツ"] * 9, learn.vocab["neck"][:2] * 9), 0.8, 0.5)}
    learn.title_source = "Produktname"
    learn.title_confidences = {**learn.confidences, "neck": (some[0] / 2, ~some[1])}
    return learn


@pytest.fixture(scope="module")
def bundle(learn, tmp_path_factory): return save_bundle(learn, tmp_path_factory.mktemp("bundles") / "bundle")


@pytest.fixture
def altered(bundle, tmp_path):
    "A copy of the bundle, to be altered."
    return Path(shutil.copytree(bundle, tmp_path / "altered"))


def test_a_bundle_holds_everything(learn, bundle):
    loaded = Learner.from_bundle(bundle)
    assert torch.equal(probabilities(loaded), probabilities(learn))
    assert (loaded.vocab.classes, loaded.vocab.names, loaded.vocab.catch_all) == (
        learn.vocab.classes, learn.vocab.names, learn.vocab.catch_all
    )
    assert (loaded.majority, loaded.arch, loaded.bfloat16) == (learn.majority, "test_resnet", learn.bfloat16)
    for a, found in loaded.confidences.items():
        assert all(x.dtype == y.dtype and np.array_equal(x, y) for x, y in zip(found, learn.confidences[a]))
    assert all(np.array_equal(getattr(loaded.seen, name), getattr(learn.seen, name)) for name in ("photos", "products", "others"))
    (titles, *weights), texts = loaded.title_models["neck"], ["a polo shirt", "シャツ", "a polo", "", None]
    assert loaded.title_source == "Produktname" and loaded.title_models["neck"].title_weight == 0.5
    assert weights == [0.8, 0.5] and np.array_equal(titles.predict_proba(texts), learn.title_models["neck"][0].predict_proba(texts))
    assert all(np.array_equal(*o) for o in zip(loaded.title_confidences["neck"], learn.title_confidences["neck"]))
    assert np.array_equal(loaded.title_confidences["pattern"][0], learn.confidences["pattern"][0])


def test_rules_of_title_words_of_earlier_versions_are_no_longer_used(learn, altered, tmp_path):
    description = json.loads((altered / "tagger.json").read_text())
    rules = dict(precision=0.9, min_precision=0.8, min_photos=3, words=[["polo", description["attributes"][0]["classes"][0], 9, 0.9]])
    for attribute in description["attributes"]: attribute.pop("title_model")
    description["attributes"][0]["titles"] = rules
    description.pop("title_source")
    (altered / "tagger.json").write_text(json.dumps({**description, "format": 1}))
    renew_sums(altered)
    loaded = load_bundle(altered)
    assert torch.equal(probabilities(loaded), probabilities(learn)) and loaded.title_models is None
    with pytest.raises(InputError, match="train it again with titles"): check_titles(loaded, altered)
    again = load_bundle(save_bundle(loaded, tmp_path / "again"))
    assert again.title_models is None and read_bundle(tmp_path / "again").format == 1


def test_a_loaded_learner_is_trained_further_exported_and_kept_again(learn, bundle, tmp_path):
    loaded = load_tagger(bundle)
    with loaded.no_bar(), loaded.no_logging():
        loaded.dls = learn.dls
        loaded.fine_tune(1)
    loaded.export((tmp_path / "learn.pkl").absolute())
    again = load_tagger(save_bundle(loaded, tmp_path / "again"))
    assert torch.equal(probabilities(again), probabilities(load_tagger(tmp_path / "learn.pkl")))
    with pytest.raises(InputError, match="the loaders have the classes"):
        again.dls = attribute_dls(fewer_classes(learn), size=64, num_workers=0, cache=False)


def fewer_classes(learn):
    "A table like that of `learn`, without one of its classes."
    folder = learn.dls.train.dataset.tls[0].tfms.fs[0].folder
    table = split_table(read_table(Path(folder).parent / "attributes.csv", folder))
    table.rows["neck"] = table.rows["neck"].where(table.rows["neck"] != learn.vocab.classes["neck"][0], None)
    return table


def test_the_card_counts_the_photos_with_labels(trained):
    from deep_fashion.predict.card import model_card
    description = read_description((trained / "bundle/tagger.json").read_bytes())
    more = description.model_copy(update=dict(scores={**description.scores, "training_photos": 12345}))
    card = model_card(more)
    assert f"Trained on {len(description.seen.photos.array)} labelled photos of " in card and "12345" not in card


def test_a_run_has_a_bundle_that_predicts_as_its_pickle_does(trained, samples, command):
    paths = sorted(samples.images.glob("shirt-*.jpg"))[:10]
    bundle, pickled = load_tagger(trained), load_learner(trained / "learn.pkl")
    assert torch.equal(*(next(predict_files(o, paths))[1] for o in (bundle, pickled)))
    assert bundle.scores == Run(trained).metrics == pickled.scores
    names = {path.name for path in (trained / "bundle").iterdir()}
    assert names == {"tagger.json", "weights.safetensors", "README.md", "SHA256SUMS"}
    for name in ("tagger.json", "README.md"):
        text = (trained / "bundle" / name).read_text(encoding="utf-8")
        assert str(samples.folder) not in text and "shirt-" not in text and str(trained) not in text
    card = (trained / "bundle/README.md").read_text(encoding="utf-8")
    assert "| sleeve\\_length |" in card and f"{Run(trained).metrics['training_photos']} labelled photos" in card
    for line in (trained / "bundle/SHA256SUMS").read_text().splitlines():
        found, name = line.split("  ")
        assert hashlib.sha256((trained / "bundle" / name).read_bytes()).hexdigest() == found
    for model in ("", "bundle", "learn.pkl"):
        result = command("test", "--model", trained / model, "-i", paths[0])
        assert result.status == 0 and result.out == command("test", "--model", trained, "-i", paths[0]).out


def test_networks_of_folds_and_missing_as_a_class(samples, tmp_path):
    data = ["--csv_path", str(samples.csv), "--img_dir", str(samples.images), "--runs_dir", str(tmp_path), "--no-report"]
    options = ["--arch", "test_resnet", "--folds", "2", "--missing", "class", *QUICK]
    assert main(["train", "--run_name", "folds", *data, *options]) == 0
    paths = sorted(samples.images.glob("shirt-*.jpg"))[:6]
    loaded, pickled = load_tagger(tmp_path / "folds/bundle"), load_learner(tmp_path / "folds/learn.pkl")
    assert len(loaded.model.models) == 2 and loaded.vocab.classes == pickled.vocab.classes
    assert torch.equal(*(next(predict_files(o, paths))[1] for o in (loaded, pickled)))


def test_damage_is_refused_in_one_line(bundle, altered):
    "Bits, ends and whole files, without new checksums."
    draw = np.random.default_rng(0)
    files = {path.name: path.read_bytes() for path in altered.iterdir() if path.name != "README.md"}
    for _ in range(360):
        name = draw.choice(list(files))
        content = bytearray(files[name])
        kind, at = draw.integers(4), draw.integers(len(content))
        if kind == 0: content[at] ^= 1 << draw.integers(8)
        elif kind == 1: content = content[:at]
        elif kind == 2: content += draw.bytes(1 + draw.integers(40))
        else: content[at : at + 9] = draw.bytes(9)
        (altered / name).write_bytes(content)
        # Without its last line break, the list of checksums is the same.
        assert refusal(altered) or (name == "SHA256SUMS" and content == files[name][:-1]), (name, kind, at)
        (altered / name).write_bytes(files[name])
    for name in files:
        (altered / name).unlink()
        assert "lacks" in refusal(altered)
        (altered / name).symlink_to(bundle / name)
        assert "link" in refusal(altered)
        (altered / name).unlink()
        (altered / name).mkdir()
        assert refusal(altered)
        (altered / name).rmdir()
        (altered / name).write_bytes(files[name])
    (altered / "README.md").write_text("Mine")
    assert refusal(altered) is None


HOSTILE = (None, True, -1, 0, 10**12, 10**400, 1e308, 0.5, "", "../x", "/etc/passwd", "hf-hub:a/b", "x" * 10**5, [], {}, [[]] * 50)


def places(value, path=()):
    "Every place in a description."
    if path: yield path
    below = value.items() if isinstance(value, dict) else enumerate(value[:2]) if isinstance(value, list) else ()
    for key, o in below: yield from places(o, (*path, key))


def replaced(description, path, value):
    "The description with `value` in one place; `places` if it is taken out."
    found = copy.deepcopy(description)
    *above, last = path
    inner = found
    for key in above: inner = inner[key]
    if value is places: del inner[last]
    else: inner[last] = value
    return found


def test_descriptions_made_to_do_harm_are_refused_or_harmless(learn, altered):
    "With new checksums: whoever can alter the files can make these, too."
    expected, draw = probabilities(learn), np.random.default_rng(0)
    description = json.loads((altered / "tagger.json").read_text())
    cases = [(path, value) for path in places(description) for value in (*HOSTILE, places)]
    refused = 0
    for i in draw.permutation(len(cases))[:700]:
        path, value = cases[i]
        (altered / "tagger.json").write_text(json.dumps(replaced(description, path, value)))
        renew_sums(altered)
        try: found = read_bundle(altered)
        except InputError as error:
            assert "\n" not in str(error)
            refused += 1
            continue
        # Building a network takes time; what does not reach the network is not built each time.
        if path[0] not in ("network", "engine", "files") and draw.random() > 0.1: continue
        if refusal(altered) is not None: continue
        again = probabilities(load_bundle(altered))
        assert again.shape == expected.shape and again.isfinite().all(), (path, value, found)
        if path[0] != "network": assert torch.equal(again, expected), (path, value)
    assert refused > 300


@pytest.mark.parametrize(
    "change, reason",
    [
        (dict(format=4), "upgrade"),
        (dict(engine="onnx"), "ONNX Runtime"),
        (dict(engine="openvino"), "other files"),
        (dict(files=["weights.safetensors", "tagger.json"]), "damaged"),
        (dict(network=dict(arch="vit_giant_patch14_224", source="timm")), "weights"),
        (dict(network=dict(arch="regnet_y_128gf", source="torchvision")), "too few"),
        (dict(network=dict(arch="resnet18", source="torchvision")), "weights"),
        (dict(network=dict(arch="no_such_net", source="timm")), "no_such_net"),
        (dict(network=dict(size=[4096, 4096])), "pixels"),
        (dict(network=dict(networks=2)), "weights"),
        (dict(network=dict(crops=[dict(top=0, bottom=1, left=0, right=1, height=4096, width=4096)])), "pixels"),
    ],
)
def test_what_is_refused_is_named(altered, change, reason):
    description = json.loads((altered / "tagger.json").read_text())
    network = {**description["network"], **change.pop("network", {})}
    (altered / "tagger.json").write_text(json.dumps({**description, "network": network, **change}))
    renew_sums(altered)
    assert reason in refusal(altered)


def test_weights_made_to_do_harm_are_refused_or_harmless(altered):
    draw, file = np.random.default_rng(0), altered / "weights.safetensors"
    content = file.read_bytes()
    header = int.from_bytes(content[:8], "little")
    for i in range(120):
        damaged = bytearray(content)
        damaged[draw.integers(8 + header)] ^= 1 << draw.integers(8)
        if i % 4 == 0: damaged = damaged[: draw.integers(len(damaged))]
        file.write_bytes(damaged)
        renew_sums(altered)
        refusal(altered)
    file.write_bytes((2**62).to_bytes(8, "little") + content[8:])
    renew_sums(altered)
    assert "weights.safetensors is damaged" in refusal(altered)
    number = 8 + header + 4 * 100
    file.write_bytes(content[:number] + b"\0\0\xc0\x7f" + content[number + 4 :])
    renew_sums(altered)
    assert "finite" in refusal(altered)


def test_json_that_programs_read_differently_is_refused(altered):
    text = (altered / "tagger.json").read_text()
    for found in (
        text.replace('"format": 3', '"format": 3, "format": 3'),
        text.replace('"format": 3', '"format": NaN'),
        text.replace('"plain": false', '"plain": ' + "[" * 10**5),
        "[" * 10**6,
        '{"format": ' + "9" * 10**6 + "}",
        "\ufeff" + text,
        text.encode("utf-16").decode("latin1"),
    ):
        (altered / "tagger.json").write_text(found, encoding="utf-8")
        renew_sums(altered)
        assert "damaged" in refusal(altered) or "upgrade" in refusal(altered)


def test_commands_refuse_a_damaged_bundle(bundle, altered, samples, refused):
    (altered / "weights.safetensors").write_bytes(b"")
    photo = samples.images / "shirt-00001-1.jpg"
    refused("test", "--model", altered, "-i", photo, says=[str(altered), "weights.safetensors is damaged"])
    (altered / "tagger.json").unlink()
    refused("test", "--model", altered, "-i", photo, says=[str(altered)])


def test_convert_writes_a_bundle_or_a_pickle(bundle, samples, command, tmp_path):
    pytest.importorskip("openvino")
    words = "convert", "--model", bundle, "--img_dir", samples.images, "--precision", "bfloat16", "--photos", "4", "--out"
    assert command(*words, "fast").status == command(*words, "fast.pkl").status == 0
    assert {path.name for path in (tmp_path / "fast").iterdir()} == {
        "tagger.json", "weights.safetensors", "body-0.xml", "body-0.bin", "README.md", "SHA256SUMS"
    }
    assert torch.equal(*(probabilities(load_tagger(tmp_path / name)) for name in ("fast", "fast.pkl")))
    content = (tmp_path / "fast/body-0.xml").read_bytes()
    (tmp_path / "fast/body-0.xml").write_bytes(content[: len(content) // 2])
    renew_sums(tmp_path / "fast")
    result = command("test", "--model", "fast", "-i", samples.images / "shirt-00001-1.jpg")
    assert result.status == 2 and len(result.lines) == 1 and "Traceback" not in result.err, result.err


def test_nothing_is_overwritten(learn, bundle, tmp_path):
    before = {path.name: path.read_bytes() for path in bundle.iterdir()}
    with pytest.raises(InputError, match="is kept"): save_bundle(learn, bundle)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(InputError, match="is kept"): save_bundle(learn, tmp_path / "file")
    assert before == {path.name: path.read_bytes() for path in bundle.iterdir()} and (tmp_path / "file").read_text() == "mine"
