"CLIP, SigLIP, DINO and other bodies that take photos of one size, from their name to tags."
import shutil
from types import SimpleNamespace

import pytest
import timm
import torch

from deep_fashion.cli import main
from deep_fashion.core import InputError, read_json
from deep_fashion.data.samples import make_samples
from deep_fashion.experiment.bodies import with_body
from deep_fashion.experiment.plan import TrainingPlan
from deep_fashion.experiment.recipes import Training
from deep_fashion.model import arch as module
from deep_fashion.model.arch import arch_source, arch_stats, photo_size
from deep_fashion.model.body import split_body, trained_body
from deep_fashion.model.crops import fitted_crops, named_crops
from deep_fashion.model.network import AttributeModel

SMALL = ["--folds", "2", "-nw", "0", "--no-report"]


@pytest.fixture(scope="module")
def photos(tmp_path_factory): return make_samples(tmp_path_factory.mktemp("one_size") / "photos", n=16)


@pytest.fixture
def data(photos): return ["--csv_path", photos / "attributes.csv", "--img_dir", photos / "images"]


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    "A tiny network with weights that takes photos of 160 x 160 pixels only, in the format of the hub."
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("hub") / "tiny"
    config = dict(pretrained_cfg=dict(mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6)))
    timm.models.save_for_hf(timm.create_model("test_vit_relpos"), folder, model_config=config)
    return folder


def shallow(name, **options):
    "The network of that name with one layer, since only shapes matter."
    torch.manual_seed(0)
    return split_body(timm.create_model(name, depth=1, **options), name)


@pytest.mark.parametrize(
    ("name", "side", "pooling"),
    [
        ("vit_base_patch32_clip_224.openai", 224, "token"),
        ("vit_base_patch32_clip_384", 384, "token"),
        ("vit_base_patch16_siglip_256", 256, "map"),
        ("vit_base_patch16_siglip_gap_224", 224, "avg"),
        ("vit_small_patch14_dinov2", 224, "token"),
        ("vit_small_patch14_reg4_dinov2", 224, "token"),
        ("vit_small_patch16_dinov3", 224, "avg"),
        ("eva02_tiny_patch14_336", 336, "avg"),
        ("vit_pe_core_tiny_patch16_384", 384, "map"),
    ],
)
def test_families(name, side, pooling):
    body = shallow(name)
    config = timm.get_pretrained_cfg(name)
    assert arch_stats(name) == (list(config.mean), list(config.std)) and body.global_pool == pooling
    crops = fitted_crops(named_crops("garment"), body, (480, 360))
    model = AttributeModel(body, [3], crops=crops, stats=arch_stats(name)).eval()
    with torch.no_grad(): one, other = model.features(torch.rand(2, 3, 96, 72))
    assert {crop.shape[2:] for crop in model.body_inputs(torch.rand(1, 3, 96, 72))} == {(side, side)}
    assert len(one) == 4 * body.num_features and one.isfinite().all() and (one != other).float().mean() > 0.9
    # The whole photo comes in the size that its weights need, unless somebody wants another.
    usual = photo_size(name)
    assert fitted_crops((), body, (usual, usual)) in ((), (fitted_crops((), body, (97, 211))))


def test_what_is_pooled():
    "What timm itself gives to its classifier or, for CLIP, to the projection to the space of texts."
    photos = torch.rand(2, 3, 224, 224)
    for name in ("vit_base_patch32_clip_224", "vit_base_patch16_siglip_224"):
        torch.manual_seed(0)
        whole = timm.create_model(name, depth=1).eval()
        with torch.no_grad():
            tokens = whole.forward_features(photos)
            expected = whole.forward_head(tokens, pre_logits=True)
            body = split_body(whole, name).eval()
            assert torch.equal(body(photos), expected)
            if "clip" in name: assert torch.equal(expected, tokens[:, 0])


def test_positions_of_dinov2_are_interpolated():
    "As its authors do it, whatever the weights come from."
    whole = timm.create_model("vit_small_patch14_dinov2", depth=1)
    by_timm = timm.create_model("vit_small_patch14_dinov2", depth=1, dynamic_img_size=True)
    by_timm.load_state_dict(whole.state_dict())
    photos = torch.rand(2, 3, 224, 224)
    with torch.no_grad(): expected, found = by_timm.eval()(photos), split_body(whole, "vit_small_patch14_dinov2").eval()(photos)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("name", ["test_maxvit", "dla46_c", "coat_lite_tiny", "crossvit_tiny_240"])
def test_other_networks_of_one_size(name):
    body = trained_body(name, False)
    model = AttributeModel(body, [3], crops=fitted_crops(named_crops("garment"), body)).eval()
    with torch.no_grad(): assert model(torch.rand(1, 3, 96, 72)).isfinite().all()


@pytest.fixture(scope="module")
def runs(photos, clip, tmp_path_factory):
    "A run with four crops, one with a whole photo of another size, one with two bodies; what they came from is gone."
    folder = tmp_path_factory.mktemp("runs")
    torch.manual_seed(0)
    timm.models.save_for_hf(timm.create_model("test_resnet"), folder / "resnet")
    vit, resnet = (f"local-dir:{shutil.copytree(source, folder / name)}" for source, name in ((clip, "a"), (folder / "resnet", "b")))
    shared = ["--runs_dir", folder, *SMALL, "--csv_path", photos / "attributes.csv", "--img_dir", photos / "images"]
    for name, arch, more in (
        ("garment", vit, ["--crops", "garment"]),
        ("whole", vit, ["--crops", "whole", "--size", "96x64"]),
        ("joined", f"{vit}+{resnet}", ["--crops", "garment"]),
    ):
        assert main([str(word) for word in ["train", "--run_name", name, "--arch", arch, *more, *shared]]) == 0
    for name in "ab": shutil.rmtree(folder / name)
    return folder


@pytest.mark.parametrize(
    ("name", "arch", "crops"),
    [
        ("garment", "test_vit_relpos", [(160, 160)] * 4),
        ("whole", "test_vit_relpos", [(160, 160)]),
        # Each body fits them to itself.
        ("joined", "test_vit_relpos+test_resnet", [(320, 240), (256, 384), (288, 360), (320, 288)]),
    ],
)
def test_from_training_to_tags(command, runs, photos, name, arch, crops):
    network = read_json(runs / name / "bundle/tagger.json")["network"]
    assert (network["arch"], [(crop["height"], crop["width"]) for crop in network["crops"]]) == (arch, crops)
    if name != "joined": assert network["mean"] == pytest.approx([0.1, 0.2, 0.3])
    photo = next((photos / "images").iterdir())
    by_bundle, by_pickle = (command("test", "--model", runs / name / file, "-i", photo) for file in ("bundle", "learn.pkl"))
    assert (by_bundle.status, by_bundle.out) == (0, by_pickle.out)


def test_no_map_is_refused_in_one_line(refused, runs, photos):
    photo = next((photos / "images").iterdir())
    refused("test", "--model", runs / "garment", "-i", photo, "--explain", "--out_image", "a.png", says=["has no feature map"])


@pytest.mark.parametrize(("word", "library"), [("export", "onnxruntime"), ("convert --precision bfloat16", "openvino")])
def test_exported_and_converted(command, runs, photos, word, library):
    pytest.importorskip(library)
    images = ["--img_dir", photos / "images"]
    made = command(*word.split(), "--model", runs / "whole", *images, "--photos", "4", "--out", "out")
    assert made.status == 0, made.err
    tags = command("tag", "--model", "out", *images, "--out_csv", "tags.csv")
    assert tags.status == 0, tags.err


@pytest.mark.parametrize(
    ("arch", "reason"),
    [("resnet81", "no architecture"), ("resnet18+nonsense", "no architecture"), ("vit_base_patch32_clip_224.opnai", "no such weights")],
)
def test_a_misspelt_name_is_refused_before_photos_are_read(refused, data, monkeypatch, arch, reason):
    def fail(*_): raise AssertionError("photos were read")
    monkeypatch.setattr("deep_fashion.experiment.training.read_training_set", fail)
    refused("train", "--run_name", "x", "--arch", arch, *SMALL, *data, says=[arch.split("+")[-1], reason])


def test_no_network_is_noticed_once(monkeypatch):
    constants, asked = module.constants, []
    class Session:
        def head(self, url, timeout): asked.append(timeout); raise OSError("no network")
    monkeypatch.setattr(module, "get_session", Session)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    module._answers.cache_clear()
    for name in ("hf-hub:nobody/nothing", "hf-hub:nobody/other"):
        with pytest.raises(InputError, match="cannot be fetched"): arch_source(name)
    with pytest.raises(InputError, match="could not be fetched"): trained_body("test_vit2", True)
    assert asked == [20] and constants.HF_HUB_OFFLINE is False
    module._answers.cache_clear()


def test_compared_at_the_size_of_their_weights(clip):
    whole = TrainingPlan(None, "whole", 224, 0, True, 5, 0.2)
    def size(name, plan=whole, size=None): return with_body(Training(None, SimpleNamespace(size=size), plan, None), name).plan.size
    assert (size("resnet18"), size("vit_base_patch32_clip_384"), size(f"local-dir:{clip}")) == (224, 384, 160)
    assert size("vit_base_patch32_clip_384", size=224) == 224
