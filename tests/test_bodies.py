"Bodies: joined ones, those of the hub, and the comparison of several."
import shutil

import pandas as pd
import pytest
import timm
import torch

from deep_fashion.core import InputError, read_json
from deep_fashion.data.samples import make_samples
from deep_fashion.experiment import bodies as module
from deep_fashion.model.arch import arch_source, local_name
from deep_fashion.run import Run

SMALL = ["--crops", "whole", "--size", "64", "--folds", "2", "-nw", "0"]


@pytest.fixture(autouse=True)
def short_measurements(monkeypatch): monkeypatch.setattr(module, "_SECONDS", 0)


@pytest.fixture(scope="module")
def photos(tmp_path_factory): return make_samples(tmp_path_factory.mktemp("bodies") / "photos", n=20)


@pytest.fixture
def data(photos): return ["--csv_path", photos / "attributes.csv", "--img_dir", photos / "images"]


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    "Two tiny networks with weights, as folders in the format of the hub."
    folder = tmp_path_factory.mktemp("hub")
    torch.manual_seed(0)
    for name in ("test_resnet", "test_efficientnet"):
        config = dict(pretrained_cfg=dict(mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6)))
        timm.models.save_for_hf(timm.create_model(name), folder / name, model_config=config)
    return folder


@pytest.fixture
def names(hub): return [f"local-dir:{hub / name}" for name in ("test_resnet", "test_efficientnet")]


def test_joined_bodies_from_training_to_tags(command, data, names, photos, tmp_path):
    arch = "+".join(names)
    assert command("train", "--run_name", "both", "--arch", arch, "--no-report", *SMALL, *data).status == 0
    run = Run(tmp_path / "runs/both")
    description = read_json(run.file("bundle") / "tagger.json")
    assert (run.config["plan"]["arch"], description["network"]["arch"]) == (arch, "test_resnet+test_efficientnet")
    assert (description["format"], description["network"]["source"]) == (2, "joined")
    photo = next((photos / "images").iterdir())
    by_bundle = command("test", "--model", run.path, "-i", photo, "--explain", "--out_image", "a.png")
    by_pickle = command("test", "--model", run.file("model"), "-i", photo)
    assert (by_bundle.status, by_bundle.out) == (0, by_pickle.out) and (tmp_path / "a.png").is_file()


def test_a_joined_body_computes_what_each_computes_alone(data, names, photos, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    from deep_fashion.all import attribute_dls, attribute_learner, extract_features, read_table, split_table
    table = split_table(read_table(photos / "attributes.csv", photos / "images"))
    dls = attribute_dls(table, size=64, num_workers=0)
    archs = [*names, "+".join(names)]
    learners = [attribute_learner(dls, arch, crops="garment") for arch in archs]
    first, second = (extract_features(learn, table.rows.head(4)) for learn in learners[:2])
    with monkeypatch.context() as nothing_computed:
        nothing_computed.setattr("deep_fashion.train.linear_probe.inference_features", None)
        known = extract_features(learners[2], table.rows.head(4))
    learners[2].feature_store = False
    both = extract_features(learners[2], table.rows.head(4))
    assert (known == both).all()
    assert both.shape[1] == first.shape[1] + second.shape[1]
    assert (both[:, : first.shape[1]] == first).all() and (both[:, first.shape[1] :] == second).all()
    # What is known of the parts is read, mirrored or not, and only then.
    learners[2].feature_store, learners[2].model.mirrored = True, True
    mirrored = extract_features(learners[2], table.rows.head(4))
    assert (mirrored != both).any() and not learners[2].model.body.parts[0].mirrored
    monkeypatch.setattr("deep_fashion.train.linear_probe.inference_features", None)
    assert (extract_features(learners[2], table.rows.head(4)) == mirrored).all()
    learners[2].model.mirrored = False
    assert (extract_features(learners[2], table.rows.head(4)) == both).all()


def test_joined_bodies_in_epochs_and_as_weights(command, refused, data, tmp_path):
    words = ["--arch", "test_resnet+test_efficientnet", "--no-pretrained", "-ep", "1", "-lr", "0.003", "--no-report", "--size", "64"]
    assert command("train", "--run_name", "scratch", *words, *data).status == 0
    more = ["--weights", tmp_path / "runs/scratch", "--no-report"]
    # One frozen epoch, then all layers.
    assert command("train", "--run_name", "tuned", *more, "-ep", "1", "-lr", "0.003", "--size", "64", *data).status == 0
    refused("train", "--run_name", "one", *more, "--arch", "test_efficientnet+test_resnet", *SMALL, *data, says=["of another shape"])
    assert command("train", "--run_name", "single", *words, "--arch", "test_resnet", *data).status == 0
    single = ["--weights", tmp_path / "runs/single", "--arch", "test_resnet+test_efficientnet"]
    refused("train", "--run_name", "two", *single, *SMALL, *data, says=["hold no test_resnet among joined bodies"])
    refused("convert", "--model", tmp_path / "runs/tuned", "--img_dir", data[-1], "--out", "fast", says=["several bodies", "export"])
    assert read_json(tmp_path / "runs/single/bundle/tagger.json")["format"] == 1


@pytest.mark.parametrize(
    ("arch", "reason"),
    [("resnet18+", "a name is missing"), ("resnet18+resnet18", "is named twice"), ("resnet18+nonsense", "no architecture"),
     ("local-dir:/nowhere", "cannot be fetched")],
)  # fmt: skip
def test_names_that_are_none(refused, data, arch, reason): refused("train", "--run_name", "x", "--arch", arch, *SMALL, *data, says=[reason])


def test_a_tagger_from_the_hub_needs_no_hub(command, data, hub, photos, tmp_path):
    folder = shutil.copytree(hub / "test_resnet", tmp_path / "tiny")
    assert command("train", "--run_name", "hub", "--arch", f"local-dir:{folder}", "--no-report", *SMALL, *data).status == 0
    network = read_json(tmp_path / "runs/hub/bundle/tagger.json")["network"]
    assert (network["arch"], network["mean"]) == ("test_resnet", pytest.approx([0.1, 0.2, 0.3]))
    shutil.rmtree(folder)
    photo = next((photos / "images").iterdir())
    assert command("test", "--model", tmp_path / "runs/hub", "-i", photo).status == 0


def test_a_network_that_its_name_does_not_describe_is_exported_only(command, data, photos, tmp_path):
    network = timm.create_model("test_vit", img_size=224)
    timm.models.save_for_hf(network, tmp_path / "vit", model_config=dict(model_args=dict(img_size=224)))
    found = command("train", "--run_name", "vit", "--arch", f"local-dir:{tmp_path / 'vit'}", "--no-report", *SMALL, *data, "--size", "224")
    assert found.status == 0 and any("bundle is not written" in note for note in found.notes)
    photo = next((photos / "images").iterdir())
    assert command("test", "--model", tmp_path / "runs/vit", "-i", photo).status == 0


def test_names_of_the_hub(monkeypatch, hub, tmp_path):
    constants = pytest.importorskip("huggingface_hub").constants
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    folder = tmp_path / "models--somebody--tiny"
    shutil.copytree(hub / "test_resnet", folder / "snapshots" / "0123abcd")
    (folder / "refs").mkdir()
    (folder / "refs/main").write_text("0123abcd")
    assert (arch_source("hf-hub:somebody/tiny"), local_name("hf-hub:somebody/tiny")) == ("timm", "test_resnet")
    with pytest.raises(InputError, match="cannot be fetched"): arch_source("hf-hub:nobody/nothing")


def test_a_name_that_both_libraries_have_stays_the_one_of_timm(tmp_path):
    timm.models.save_for_hf(timm.create_model("resnet18"), tmp_path)
    name = local_name(f"local-dir:{tmp_path}")
    assert (arch_source(name), timm.create_model(name).pretrained_cfg["architecture"]) == ("timm", "resnet18")


def test_bodies_are_compared(command, refused, data, names, tmp_path):
    words = ["bodies", "--out", "out", "--photos", "16", *SMALL, *data]
    archs = [names[0], "local-dir:/nowhere", "+".join(names), "+".join(names[::-1]), "shufflenet_v2_x0_5"]
    found = command(*words, "--arch", ",".join(archs))
    assert found.status == 0, found.err
    skipped = [note for note in found.notes if "is skipped" in note]
    assert len(skipped) == 2 and "'local-dir:/nowhere' is skipped: cannot be fetched" in skipped[0]
    table = pd.read_csv(tmp_path / "out/bodies.csv")
    assert sorted(table.arch) == sorted([names[0], "+".join(names)]) and table.is_advised.sum() == 1
    assert (table.macro_f1_low <= table.macro_f1).all() and (table.macro_f1 <= table.macro_f1_high).all()
    assert (table.photos_per_second > 0).all() and table.difference.max() == 0
    page = (tmp_path / "out/bodies.html").read_text(encoding="utf-8")
    assert "local-dir:/nowhere: cannot be fetched" in page and "<svg" in page and "16 labelled photos" in page
    advice = next(line for line in found.out.splitlines() if line.startswith("Take "))
    assert advice.split(":")[0] in page
    assert "Always naming the most frequent class gets a macro-F1 of" in found.out
    refused(*words, "--arch", names[0], says=["finished comparison of other bodies"])


def test_no_body_is_left(refused, data, tmp_path):
    says = ["no body could be measured", "local-dir:/a", "local-dir:/b"]
    refused("bodies", "--out", "out", "--arch", "local-dir:/a,local-dir:/b", *SMALL, *data, says=says)
    assert not (tmp_path / "out").exists()
    says = ["'resnett34': no architecture", "did you mean 'resnet34'?", "'resnet1 8': no architecture"]
    refused("bodies", "--out", "out", "--arch", "resnet18+resnett34,test_resnet,resnet1 8", *SMALL, *data, says=says)
    refused("bodies", "--out", "out", "--arch", ",", *SMALL, *data, says=["arch is empty"])
    refused("bodies", "--out", "out", "--arch", "resnet18", *SMALL, *data, "--photos", "2", says=["at least 2 products", "--photos"])


def test_a_stopped_comparison_is_continued(monkeypatch, command, refused, data, names, tmp_path):
    words, measured, measure = ["bodies", "--out", "out", "--arch", ",".join(names), *SMALL, *data], [], module.measure_body

    def stopping(training):
        if measured: raise KeyboardInterrupt
        measured.append(training.plan.arch)
        return measure(training)

    monkeypatch.setattr(module, "measure_body", stopping)
    stopped = command(*words)
    assert stopped.status == 130 and "the same command continues" in stopped.err
    refused(*words, "--random_seed", "7", says=["other photos or settings"])
    monkeypatch.setattr(module, "measure_body", lambda training: (measured.append(training.plan.arch), measure(training))[1])
    finished = command(*words)
    again = command(*words)
    assert (finished.status, again.status, again.out) == (0, 0, finished.out) and any("is finished" in note for note in again.notes)
    assert measured == names and len(pd.read_csv(tmp_path / "out/bodies.csv")) == 2
