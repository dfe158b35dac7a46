"""fastai's own tools with this project's learner, each result compared with plain PyTorch or with fastai's own classes.

What makes training fast may not change a number: tests whose name begins with `same` compare it with `plain=True`."""
import copy
import os
import pickle
import random
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from fastai.callback.data import WeightedDL
from fastai.callback.fp16 import MixedPrecision
from fastai.callback.hook import hook_output
from fastai.callback.mixup import CutMix, MixUp
from fastai.callback.progress import CSVLogger, ProgressCallback
from fastai.callback.tracker import EarlyStoppingCallback, SaveModelCallback
from fastai.callback.training import GradientAccumulation, GradientClip
from fastai.vision.all import (
    SGD,
    Brightness,
    Callback,
    Interpretation,
    Metric,
    Normalize,
    Path,
    PILImage,
    Pipeline,
    RandomResizedCrop,
    Resize,
    TensorImage,
    TfmdDL,
    Transform,
    get_c,
    imagenet_stats,
    load_learner,
    noop,
    set_seed,
    trainable_params,
    vision_learner,
)
from PIL import Image
from torch import nn, tensor
from torchvision.models import resnet18

from deep_fashion.core import InputError
from deep_fashion.data.block import AttributeDataLoaders, TrainingAugmentation, attribute_block, attribute_dls
from deep_fashion.data.pixel_cache import PixelCache, Squish, resized
from deep_fashion.data.split import split_table
from deep_fashion.data.table import read_table
from deep_fashion.data.vocab import AttributeVocab
from deep_fashion.evaluate import fastai_interpretation  # noqa: F401 (adds `predictions`)
from deep_fashion.metrics.scores import attribute_metrics
from deep_fashion.model.loss import AttributeLoss
from deep_fashion.model.network import body_splitter
from deep_fashion.model.precision import Speed
from deep_fashion.predict.tagger import predict_files
from deep_fashion.train.checkpoint import EpochSeeds
from deep_fashion.train.feature_cache import FeatureCache, PhotosOnDevice
from deep_fashion.train.learner import AttributeLearner, attribute_learner
from deep_fashion.train.precision import BFloat16

SIZE = (48, 40)


@pytest.fixture(scope="module")
def table(samples): return split_table(read_table(samples.csv, samples.images))


@pytest.fixture(scope="module")
def gapless(table):
    rows = table.rows.dropna(subset=table.attributes)
    return replace(table, rows=rows.reset_index(drop=True))


@pytest.fixture(scope="module")
def body_file(tmp_path_factory):
    "The weights of a resnet18, so that learners of a test start alike."
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "resnet18.pth"
    torch.save(resnet18().state_dict(), path)
    return path


def loaders(table, **options):
    set_seed(0)
    return attribute_dls(table, **{**dict(size=SIZE, bs=16, batch_tfms=[], num_workers=0, cache=False), **options})


def learner(dls, weights, arch=resnet18, **options):
    "A learner whose weights depend on nothing but the seed; its body is frozen if it has `weights`."
    set_seed(1, reproducible=True)
    learn = attribute_learner(dls, arch, weights, **{**dict(dropout=0.0, speed=Speed(bfloat16=False)), **options})
    learn.remove_cb(ProgressCallback)
    learn.logger = noop
    return learn


def pixels_of(table, rows):
    "Photos by Pillow and torch alone, as floats (photos, 3, height, width)."
    photos = [torch.from_numpy(np.array(Image.open(table.img_dir / name).convert("RGB"))) for name in rows.filename]
    resize = dict(size=SIZE, mode="bilinear", antialias=True, align_corners=False)
    return torch.cat([F.interpolate(photo.permute(2, 0, 1)[None], **resize) for photo in photos]) / 255


def codes_of(dls, rows):
    "Class indices, -1 where missing, without the project's vocab."
    columns = [pd.Categorical(rows[a], categories=classes).codes for a, classes in dls.vocab.classes.items()]
    return torch.tensor(np.stack(columns, 1)).long()


def pooled_loss(logits, codes, sizes):
    "Mean over attributes of the mean cross-entropy of known labels."
    heads = zip(logits.split(list(sizes), 1), codes.T)
    return torch.stack([F.cross_entropy(head, column, ignore_index=-1) for head, column in heads]).mean()


def ordered(dls, side):
    rows = dls.loaders[side].items
    return rows.reset_index(drop=True)


def record_of(learn, **options): return [float(o) for o in learn.validate(**options)]


def losses_of(learn): return torch.tensor([list(row)[:2] for row in learn.recorder.values])


# Training


def small(pretrained):
    "An own architecture without batch normalisation, which would amplify rounding."
    return nn.Sequential(nn.Conv2d(3, 8, 5, 2), nn.ReLU(), nn.Conv2d(8, 16, 5, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("plain", [False, True])
def test_fit_equals_a_loop_in_pytorch(table, frozen, plain):
    "SGD without shuffling: losses and weights after three epochs."
    dls = loaders(table, shuffle=False, drop_last=False)
    learn = learner(dls, False, arch=small, plain=plain, opt_func=SGD, moms=None, wd=0.0)
    if frozen: learn.freeze()
    model = copy.deepcopy(learn.model)
    learn.fit(3, 0.1)
    assert plain or (learn.feature_cache.reason is None) == frozen

    mean, std = (torch.tensor(o)[:, None, None] for o in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    photos, codes = zip(*((pixels_of(table, ordered(dls, i)), codes_of(dls, ordered(dls, i))) for i in (0, 1)))
    photos = [(o - mean) / std for o in photos]
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.1)

    def logits_of(batch):
        maps = model.body(batch)
        pooled = torch.cat([maps.amax((2, 3)), maps.mean((2, 3))], 1)
        return torch.cat([head(pooled) for head in model.heads], 1)

    start = model.heads[1][2].weight.detach().clone()
    for epoch in range(3):
        model.train()
        for x, y in zip(photos[0].split(16), codes[0].split(16)):
            optimizer.zero_grad()
            pooled_loss(logits_of(x), y, model.sizes).backward()
            optimizer.step()
        model.eval()
        with torch.no_grad(): loss = pooled_loss(logits_of(photos[1]), codes[1], model.sizes)
        assert float(loss) == pytest.approx(learn.recorder.values[epoch][1], rel=1e-3)
    assert torch.allclose(learn.model.heads[1][2].weight, model.heads[1][2].weight, atol=1e-3)
    assert not torch.allclose(start, model.heads[1][2].weight, atol=1e-2)


@pytest.mark.parametrize("method", ["fit", "fit_one_cycle", "fit_flat_cos", "fit_sgdr", "fine_tune", "lr_find"])
def test_same_by_every_training_method(table, body_file, method, monkeypatch, tmp_path):
    def trained(plain):
        learn = learner(loaders(table), body_file, plain=plain)
        learn.model_dir = tmp_path
        set_seed(2)
        arguments = dict(fit=(2, 1e-3), fit_one_cycle=(2, 1e-3), fit_flat_cos=(2, 1e-3), fit_sgdr=(1, 2), fine_tune=(1, 1e-3), lr_find=())
        options = dict(num_it=8, show_plot=False, stop_div=False) if method == "lr_find" else {}
        found = getattr(learn, method)(*arguments[method], **options)
        return learn, found
    (fast, _), (plain, _) = trained(False), trained(True)
    assert fast.recorder.lrs == pytest.approx(plain.recorder.lrs)
    assert torch.allclose(tensor(fast.recorder.losses), tensor(plain.recorder.losses), rtol=5e-3)
    if method != "lr_find": assert torch.allclose(losses_of(fast), losses_of(plain), rtol=2e-2)


def test_layer_groups(table, body_file):
    learn = learner(loaders(table), body_file)
    assert [group[0].requires_grad for group in body_splitter(learn.model)] == [False, False, True]
    learn.freeze_to(1)
    groups = body_splitter(learn.model)
    assert [groups[i][0].requires_grad for i in range(3)] == [False, True, True]
    learn.fit(1, slice(1e-5, 1e-3))
    assert learn.opt.hypers[0]["lr"] < learn.opt.hypers[1]["lr"] < learn.opt.hypers[2]["lr"]
    single = learner(loaders(table), body_file, splitter=trainable_params)
    single.create_opt()
    assert len(single.opt.param_lists) == 1


def test_architecture_as_a_function_and_an_own_one(table, body_file):
    by_name, by_function = (learner(loaders(table), body_file) for _ in range(2))
    assert all(map(torch.equal, by_name.model.state_dict().values(), by_function.model.state_dict().values()))

    for pretrained in (False, True): assert attribute_learner(loaders(table), small, pretrained).model.n_features == 32


def test_vision_learner_built_by_hand(table, body_file):
    "fastai's own factory on these loaders: the number of outputs, the loss, the metrics."
    dls = loaders(table)
    learn = vision_learner(dls, resnet18, pretrained=False, loss_func=AttributeLoss(dls.vocab.sizes), metrics=attribute_metrics(dls.vocab))
    assert get_c(dls) == sum(dls.vocab.sizes)
    with learn.no_bar(), learn.no_logging(): learn.fit(1)
    logits, codes = learn.get_preds(act=noop)
    by_hand = (codes[:, 0] == logits[:, : dls.vocab.sizes[0]].argmax(1))[codes[:, 0] >= 0].float().mean()
    record = dict(zip(["loss", *(m.name for m in learn.metrics)], learn.validate()))
    assert record[f"{table.attributes[0]}_accuracy"] == pytest.approx(float(by_hand))


# Callbacks


class Watch(Callback):
    "Keep what a user's callback would see."
    order = 70
    def before_fit(self): self.inputs, self.losses, self.labels = [], [], []

    def after_loss(self):
        if not self.training: return
        self.inputs.append(self.x.detach().clone())
        self.labels.append(self.y.detach().clone())
        self.losses.append((self.pred.detach().clone(), self.loss.detach().clone()))


@pytest.mark.parametrize("mix", [MixUp, CutMix])
@pytest.mark.parametrize("frozen", [False, True])
def test_mixing_photos(gapless, body_file, mix, frozen):
    learn = learner(loaders(gapless), body_file, cbs=[watch := Watch(), mixing := mix()])
    if not frozen: learn.unfreeze()
    kept = []
    before = mixing.before_batch
    def before_batch():
        before()
        kept.append((torch.as_tensor(mixing.lam).clone(), mixing.yb1[0].clone()))
    mixing.before_batch = before_batch
    learn.fit(1, 1e-3)
    assert watch.inputs[0].shape[1:] == (3, *SIZE)
    def by_photo(logits, codes):
        heads = zip(logits.split(learn.vocab.sizes, 1), codes.as_subclass(torch.Tensor).T)
        return torch.stack([F.cross_entropy(head, column, reduction="none") for head, column in heads]).mean(0)
    for (logits, loss), codes, (lam, other) in zip(watch.losses, watch.labels, kept, strict=True):
        expected = torch.lerp(by_photo(logits, other), by_photo(logits, codes), lam.as_subclass(torch.Tensor)).mean()
        assert float(loss) == pytest.approx(float(expected), rel=1e-4)
    assert type(learn.loss_func) is AttributeLoss


def test_monitors_watch_the_loss_of_all_photos(table, body_file, tmp_path):
    "Gaps must not make the validation loss depend on the batch size."
    for size in (4, 30):
        dls = loaders(table, val_bs=size)
        learn = learner(dls, body_file, path=tmp_path, metrics=[])
        saving, stopping, logging = SaveModelCallback(fname=f"best{size}"), EarlyStoppingCallback(patience=9), CSVLogger(append=False)
        learn.fit(2, 1e-3, cbs=[saving, stopping, logging])
        losses = [row[1] for row in learn.recorder.values]
        logits, codes = learn.get_preds(act=noop)
        expected = float(pooled_loss(logits, codes_of(dls, ordered(dls, 1)), dls.vocab.sizes))
        assert learn.validate()[0] == pytest.approx(expected, rel=1e-4)
        assert saving.best == stopping.best == pytest.approx(min(losses))
        assert learn.feature_cache.reason is None
        assert pd.read_csv(tmp_path / "history.csv").valid_loss.tolist() == pytest.approx(losses, rel=1e-4)
        assert (tmp_path / f"models/best{size}.pth").exists()


def test_losses_of_photos_do_not_count_labels(table, body_file):
    learn = learner(loaders(table), body_file)
    logits, codes, losses = learn.get_preds(with_loss=True, act=noop)
    for head_losses, loss, known in zip(_by_head(logits, codes, learn.vocab.sizes), losses, codes >= 0):
        assert float(loss) == pytest.approx(float(head_losses[known].mean()), rel=1e-4)
    worst = Interpretation.from_learner(learn).top_losses(3)
    assert torch.allclose(worst[0], losses.topk(3)[0], rtol=1e-3)


def _by_head(logits, codes, sizes):
    heads = zip(logits.split(list(sizes), 1), codes.as_subclass(torch.Tensor).T)
    return torch.stack([F.cross_entropy(head, column, ignore_index=-1, reduction="none") for head, column in heads], 1)


def test_gradient_accumulation_and_clipping(table, body_file):
    for cbs in (GradientAccumulation(32), GradientClip(0.1)):
        fast, plain = (learner(loaders(table), body_file, plain=o) for o in (False, True))
        for learn in (fast, plain):
            set_seed(3)
            learn.fit(2, 1e-3, cbs=cbs)
        assert torch.allclose(losses_of(fast), losses_of(plain), rtol=1e-2)


def test_tensorboard_with_its_default_arguments(table, body_file, tmp_path):
    tensorboard = pytest.importorskip("fastai.callback.tensorboard")
    learn = learner(loaders(table), body_file, cbs=tensorboard.TensorBoardCallback(log_dir=tmp_path))
    learn.fit(1, 1e-3)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    events = EventAccumulator(str(tmp_path)).Reload()
    assert events.Tags()["images"] == ["Sample results"] and "valid_loss" in events.Tags()["scalars"] and events.Tags()["graph"]
    assert events.Scalars("valid_loss")[0].value == pytest.approx(learn.recorder.values[0][1], rel=1e-4)


def test_mixed_precision_and_back(table, body_file):
    learn = learner(loaders(table), body_file, speed=Speed(bfloat16=True))
    class Type(Callback):
        needs_photos = False
        def before_fit(self): self.hook = self.model.heads[0][2].register_forward_hook(lambda m, i, o: setattr(self, "dtype", o.dtype))
        def after_fit(self): self.hook.remove()
    def type_in(learn):
        learn.fit(1, 1e-3, cbs=(seen := Type()))
        return seen.dtype
    assert type_in(learn) == torch.bfloat16
    assert type_in(learn.to_fp32()) == torch.float32
    assert type_in(learner(loaders(table), body_file, speed=Speed(bfloat16=True), cbs=BFloat16(False))) == torch.float32
    assert type_in(learner(loaders(table), body_file, speed=Speed(bfloat16=True), plain=True)) == torch.float32
    mixed = learner(loaders(table), body_file, speed=Speed(bfloat16=True)).to_bf16()
    assert any(isinstance(cb, MixedPrecision) for cb in mixed.cbs) and not mixed.b_float16.in_use


def test_own_callbacks_replace_the_built_in_ones(table, body_file):
    learn = learner(loaders(table), body_file, cbs=[FeatureCache(0), BFloat16(False)])
    assert [type(cb) for cb in learn.cbs].count(FeatureCache) == [type(cb) for cb in learn.cbs].count(BFloat16) == 1
    learn.fit(1, 1e-3, cbs=(watch := Watch()))
    assert watch.inputs[0].ndim == 4
    learn = learner(loaders(table), body_file)
    learn.fit(1, 1e-3, cbs=FeatureCache(0))
    assert learn.cbs.filter(lambda cb: type(cb) is FeatureCache)[0].reason == "another FeatureCache was added"


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_failing_network_leaves_no_autocast_on(table, body_file, error):
    learn = learner(loaders(table), body_file, speed=Speed(bfloat16=True))
    learn.unfreeze()
    def fail(*_): raise error
    learn.model.heads[0].register_forward_hook(fail)
    with pytest.raises(error): learn.fit(1)
    assert not torch.is_autocast_enabled("cpu")


# The feature cache steps aside


@pytest.mark.parametrize("change", ["mirrored", "hook", "transform", "forward", "dropout", "batch_norm", "metric"])
def test_same_with_what_the_cache_does_not_know(table, body_file, change):
    "Anything that could act on photos gives the result of plain fastai."
    class Positive(Metric):
        "A metric that looks at its inputs."
        def reset(self): self.sum = 0.0
        def accumulate(self, learn): self.sum += float(learn.x.as_subclass(torch.Tensor).mean())
        @property
        def value(self): return self.sum
        @property
        def name(self): return "positive"

    def trained(plain):
        learn = learner(loaders(table), body_file, plain=plain, train_bn=change == "batch_norm")
        if change == "mirrored": learn.model.mirrored = True
        if change == "hook": learn.model.body[7].register_forward_hook(lambda module, args, out: out * 0.5)
        if change == "transform": learn.dls.add_tfms([Transform(lambda x: x * 0.5 if isinstance(x, TensorImage) else x)], "after_batch")
        if change == "forward":
            forward = learn.model.body.forward
            learn.model.body.forward = lambda x: forward(x * 0.5)
        if change == "dropout": learn.model.body.append(nn.Dropout(0.5))
        if change == "metric": learn.metrics = [Positive()]
        set_seed(4)
        learn.fit(2, 1e-3)
        return learn

    fast, plain = trained(False), trained(True)
    assert fast.feature_cache.reason and not fast.feature_cache.loaders
    assert torch.allclose(losses_of(fast), losses_of(plain), rtol=1e-2)
    if change == "metric": assert fast.recorder.values[-1][2] == pytest.approx(plain.recorder.values[-1][2], rel=1e-4)


class Counting(nn.Module):
    "A layer whose result depends on how often it was called."
    calls = 0
    def forward(self, x):
        self.calls += 1
        return x * (1 + self.calls / 10)


@pytest.mark.parametrize(
    "layer",
    [nn.Dropout2d(0.5), nn.InstanceNorm2d(16, track_running_stats=True), nn.BatchNorm2d(16, track_running_stats=False), Counting()],
    ids=lambda layer: type(layer).__name__,
)
def test_same_with_layers_that_act_in_training(table, layer):
    "In the first fit and in later ones, and after a validation, which must not change the layer either."
    def network(pretrained):
        steps = list(small(False).children())
        return nn.Sequential(*steps[:4], copy.deepcopy(layer), *steps[4:])
    def trained(plain):
        learn = learner(loaders(table), False, arch=network, plain=plain)
        learn.freeze()
        first = record_of(learn)[0], record_of(learn)[0]
        set_seed(4)
        learn.fit(1, 1e-2)
        learn.fit(1, 1e-2)
        return [*first, *losses_of(learn).flatten().tolist()]
    assert trained(False) == pytest.approx(trained(True), rel=1e-3)


@pytest.mark.parametrize("change", ["attribute", "buffer", "folder", "normalize", "augmentation", "labels", "weight decay"])
def test_same_after_a_change_in_place(table, change, tmp_path):
    "What features were computed from is changed without a new object."
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = 1.0
            self.register_buffer("factor", torch.ones(1), persistent=False)
        def forward(self, x): return x * self.scale * self.factor

    def network(pretrained): return nn.Sequential(Scaled(), *small(False).children())
    for name in table.rows.filename: Image.new("RGB", (20, 20), "red").save(tmp_path / name)

    def trained(plain):
        steps = dict(augmentation=TrainingAugmentation([]), normalize=Normalize.from_stats(*imagenet_stats, cuda=False))
        dls = loaders(table, batch_tfms=[steps[change]] if change in steps else [])
        learn = learner(dls, False, arch=network, plain=plain)
        set_seed(4)
        if change == "weight decay": learn.fit(1, 1e-2)
        learn.freeze()
        learn.fit(1, 1e-2, wd=0.5)
        before = losses_of(learn)
        dls = learn.dls
        if change == "attribute": learn.model.body[0].scale = 0.2
        if change == "buffer": learn.model.body[0].factor.fill_(0.2)
        if change == "folder": dls.train_ds.tls[0].tfms.fs[0].folder = str(tmp_path)
        if change == "normalize":
            for dl in dls.loaders: dl.after_batch.fs[-1].mean = torch.zeros(1, 3, 1, 1)
        if change == "augmentation": dls.train.after_batch.fs[-1].transforms = Pipeline([Brightness(0.9, p=1.0)], split_idx=0)
        if change == "labels": dls.train_ds.tls[1].items[table.attributes] = dls.train_ds.tls[1].items[table.attributes].shift(7)
        learn.fit(1, 1e-2, wd=0.5)
        return torch.cat([before, losses_of(learn)])
    fast, plain = trained(False), trained(True)
    if change != "augmentation": assert torch.allclose(fast, plain, rtol=5e-3)
    else: assert torch.allclose(fast, plain, rtol=3e-2) and abs(float(fast[1, 0] - fast[0, 0])) > 0.01


@pytest.mark.parametrize("owner", ["instance method", "callback attribute", "subclass", "loss", "metric", "bn_freeze off"])
def test_what_may_look_at_photos_gets_photos(table, body_file, owner):
    seen, learn = [], learner(loaders(table), body_file)
    class Seeds(EpochSeeds):
        def before_batch(self): seen.append(self.x.ndim)
    def loss(pred, target, **kwargs):
        seen.append(learn.x.ndim)
        return learn_loss(pred, target)
    def metric(pred, target):
        seen.append(learn.x.ndim)
        return torch.tensor(0.0)
    learn_loss = learn.loss_func
    if owner == "instance method":
        step = learn._do_one_batch
        def _do_one_batch():
            seen.append(learn.x.ndim)
            step()
        learn._do_one_batch = _do_one_batch
    if owner == "callback attribute": learn.recorder.before_batch = lambda: seen.append(learn.x.ndim)
    if owner == "subclass": learn.add_cb(Seeds(3))
    if owner == "loss": learn.loss_func = loss
    if owner == "metric": learn.metrics = [metric]
    if owner == "bn_freeze off": learn.bn_freeze.run = False
    learn.fit(1, 1e-3)
    assert learn.feature_cache.reason and set(seen) <= {4} and (seen or owner == "bn_freeze off")


def test_a_trained_pool_is_trained(table):
    class Scale(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(1))
        def forward(self, x): return x * self.weight
    learn = learner(loaders(table), False, arch=small)
    learn.model.pool.append(Scale())
    learn.splitter = lambda model: [list(model.body.parameters()), [*model.pool.parameters(), *model.heads.parameters()]]
    learn.freeze()
    learn.fit(2, 1e-1)
    assert float(learn.model.pool[-1].weight) != 1


def test_own_losses_are_what_monitors_watch(table, body_file):
    class Doubled(AttributeLoss):
        def forward(self, logits, targets): return 2 * super().forward(logits, targets)
    class Penalty(Callback):
        def after_loss(self):
            self.learn.loss_grad = self.loss_grad + 5
            self.learn.loss = self.loss_grad.clone()
    dls = loaders(table, val_bs=64)
    single = record_of(learner(dls, body_file))[0]
    assert record_of(learner(dls, body_file, loss_func=Doubled(dls.vocab.sizes)))[0] == pytest.approx(2 * single, rel=1e-4)
    assert record_of(learner(dls, body_file, cbs=Penalty()))[0] == pytest.approx(single + 5, rel=1e-4)


def test_photos_on_the_device_follow_the_loaders(table, body_file):
    "On a processor, to see what a GPU would do."
    class Grow(Callback):
        def before_epoch(self):
            if self.epoch == 1:
                for dl in self.dls.loaders: dl.after_item.fs[0].size = (64, 64)
    learn = learner(loaders(table), body_file, cbs=[PhotosOnDevice(True), Grow(), watch := Watch()])
    learn.unfreeze()
    learn.fit(2, 1e-4)
    assert {tuple(x.shape[-2:]) for x in watch.inputs} == {SIZE, (64, 64)}
    learn.dls.train.bs = 8
    learn.fit(1, 1e-4)
    assert len(watch.inputs[0]) == 8


def test_same_after_a_change_between_two_fits(table, body_file):
    "Known, but not the same as before: computed again."
    def trained(plain):
        learn = learner(loaders(table), body_file, plain=plain)
        set_seed(5)
        learn.fit(1, 1e-3)
        learn.model.body[0].weight.data *= 0.5
        learn.fit(1, 1e-3)
        learn.dls = loaders(table, size=(32, 32))
        learn.fit(1, 1e-3)
        first = losses_of(learn)
        learn.dls.add_tfms([Normalize.from_stats(*imagenet_stats, cuda=False)], "after_batch")
        learn.fit(1, 1e-3)
        return torch.cat([first, losses_of(learn)])
    assert torch.allclose(trained(False), trained(True), rtol=1e-2)


def test_callbacks_hooks_and_predictions_get_photos(table, body_file):
    learn = learner(loaders(table), body_file)
    learn.fit(1, 1e-3)
    assert learn.feature_cache.reason is None
    assert learn.get_preds(with_input=True)[0].shape[1:] == learn.get_preds(ds_idx=0, with_input=True)[0].shape[1:] == (3, *SIZE)
    learn.fit(1, 1e-3, cbs=(watch := Watch()))
    assert watch.inputs[0].shape[1:] == (3, *SIZE) and "watch" in learn.feature_cache.reason
    with hook_output(learn.model.body) as hook:
        learn.fit(1, 1e-3)
        assert hook.stored.ndim == 4 and learn.feature_cache.reason == "a module has a hook"


def test_augmentation_of_a_frozen_body_depends_on_the_seed(table, body_file):
    def features(seed, *fits):
        learn = learner(loaders(table, batch_tfms=None), body_file)
        set_seed(seed)
        for n in fits: learn.fit(n, 1e-3)
        return [features for features, _ in learn.feature_cache.cached]
    once, again, other = features(1, 1), features(1, 1), features(2, 1)
    assert torch.equal(once[0], again[0]) and not torch.equal(once[0], other[0])
    several = features(1, 1, 1, 1)
    assert len(several) == 3 and not torch.equal(several[0], several[1])


# Loaders


def test_the_pixel_cache_holds_photos_as_they_are(table, tmp_path):
    before = loaders(table, cache=tmp_path / "cache", shuffle=False, bs=8)
    plain = torch.cat([x for x, _ in before.train])
    class UpsideDown(Transform):
        def encodes(self, x: PILImage): return x.rotate(180)
    class Inverted(Transform):
        order = 9
        def encodes(self, x: TensorImage): return 255 - x
    for transform in (UpsideDown(), Inverted()):
        for folder in ("cache", "fresh"):
            changed = loaders(table, cache=tmp_path / folder, shuffle=False, bs=8)
            changed.add_tfms([transform], "after_item")
            assert not torch.equal(torch.cat([x for x, _ in changed.train]), plain)
            again = loaders(table, cache=tmp_path / folder, shuffle=False, bs=8)
            assert torch.equal(torch.cat([x for x, _ in again.train]), plain)


def test_random_item_transforms_can_be_reproduced(table):
    "Threads would share the state of a transform."
    def batches(**options):
        dls = loaders(table, item_tfms=RandomResizedCrop(32, min_scale=0.3), **options)
        return torch.cat([x for _ in range(2) for x, _ in dls.train])
    ours, again, by_fastai = batches(), batches(), batches(dl_type=TfmdDL)
    assert torch.equal(ours, again) and torch.equal(ours, by_fastai)


def test_random_crops_are_drawn_in_every_epoch(table, body_file):
    dls = loaders(table, item_tfms=RandomResizedCrop(32, min_scale=0.3), shuffle=False)
    learn = learner(dls, body_file, cbs=[watch := Watch(), PhotosOnDevice(True)])
    learn.fit(2, 1e-3)
    half = len(watch.inputs) // 2
    assert not torch.equal(watch.inputs[0], watch.inputs[half])


def test_tagging_applies_the_transforms_of_the_loaders(table, body_file):
    class Darker(Transform):
        order = 9
        def encodes(self, x: TensorImage): return x // 4
    class Top(Squish):
        def encodes(self, x: Image.Image): return TensorImage(resized(x.crop((0, 0, x.width, x.height // 2)), self.size))
    paths = [table.img_dir / name for name in table.rows.filename[:3]]
    for steps in ([Squish(SIZE), Darker()], [Top(SIZE)], [Resize(32)], [Squish(SIZE)]):
        learn = learner(loaders(table, item_tfms=steps), body_file)
        expected, _ = learn.get_preds(dl=learn.dls.test_dl(paths))
        ((_, found, _),) = predict_files(learn, paths, num_workers=0)
        assert torch.allclose(found, expected, atol=1e-5)


def test_the_pixel_cache_notices_another_file(tmp_path):
    "Of the same size, with the same time of modification."
    (tmp_path / "a.bmp").write_bytes(b"")
    cache = PixelCache((8, 8), tmp_path / "cache")
    keys = []
    for colour in ("white", "black"):
        (tmp_path / colour).mkdir()
        Image.new("RGB", (8, 8), colour).save(tmp_path / colour / "a.bmp")
        os.utime(tmp_path / colour / "a.bmp", (1, 1))
        (tmp_path / "current").unlink(missing_ok=True)
        (tmp_path / "current").symlink_to(tmp_path / colour)
        keys.append(cache.key(tmp_path / "current" / "a.bmp"))
    assert keys[0] != keys[1]


@pytest.mark.parametrize("order", [lambda n: [*range(0, n, 2)] * 2, lambda n: [*range(n)][::-1]])
def test_same_with_an_order_of_its_own(table, body_file, order):
    def trained(plain):
        learn = learner(loaders(table), body_file, plain=plain)
        learn.dls.train.get_idxs = lambda: order(len(learn.dls.train_ds))
        learn.fit(2, 1e-3)
        return losses_of(learn)
    assert torch.allclose(trained(False), trained(True), rtol=1e-2)


def test_plain_stays_plain(table, body_file):
    learn = learner(loaders(table, n=16), body_file, plain=True)
    assert {type(dl) for dl in learn.dls.loaders} == {TfmdDL} and len(learn.dls.train) == 1
    learn.dls = loaders(table, size=32)
    assert {type(dl) for dl in learn.dls.loaders} == {TfmdDL}


def test_mixing_photos_with_gaps(table, body_file):
    "A mixture of a photo and next to nothing of another one has the loss of the photo."
    def first_loss(*cbs):
        dls = loaders(table, bs=64)
        loss = AttributeLoss(dls.vocab.sizes, class_weights=[torch.arange(1.0, n + 1) for n in dls.vocab.sizes])
        learn = learner(dls, body_file, loss_func=loss, cbs=[watch := Watch(), *cbs])
        learn.fit(1, 0.0)
        return float(watch.losses[0][1])
    (mixing := MixUp()).distrib = SimpleNamespace(sample=torch.ones)
    assert first_loss(mixing) == pytest.approx(first_loss(), rel=1e-3)


def test_a_frozen_learner_works_after_export(table, body_file, tmp_path):
    learn = learner(loaders(table), body_file)
    learn.export(tmp_path / "learn.pkl")
    loaded, rows = load_learner(tmp_path / "learn.pkl"), ordered(learn.dls, 1)
    rows = rows.assign(filename=[str(table.img_dir / name) for name in rows.filename])
    with loaded.no_bar():
        assert record_of(loaded, dl=loaded.dls.test_dl(rows, with_labels=True))[0] == pytest.approx(record_of(learn)[0], rel=1e-3)
        assert loaded.tta(dl=loaded.dls.test_dl(rows))[0].shape == (len(rows), learn.dls.c)
    names, *_ = loaded.predict(rows.iloc[0])
    assert names == learn.predict(rows.filename[0])[0]


def test_labels_of_new_rows_may_be_numbers(table, body_file):
    dls = loaders(table)
    rows = ordered(dls, 1)
    numbers = rows.assign(**{a: pd.to_numeric(rows[a]) for a in table.attributes})
    assert torch.equal(torch.cat([y for _, y in dls.test_dl(numbers, with_labels=True)]), codes_of(dls, rows))


def test_probabilities_with_a_loss_of_your_own(table, body_file):
    dls = loaders(table)
    learn = learner(dls, body_file, loss_func=lambda pred, target: AttributeLoss(dls.vocab.sizes)(pred, target))
    found = learn.predictions()
    sums = found[[f"neck={label}" for label in dls.vocab["neck"]]].sum(axis=1)
    assert sums.to_numpy() == pytest.approx(1, abs=1e-3)
    ((_, probabilities, _),) = predict_files(learn, [table.img_dir / found.filename[0]], num_workers=0)
    assert float(probabilities[0].max()) <= 1 and float(probabilities.sum()) == pytest.approx(3, abs=1e-3)


def test_weighted_loaders(table, body_file):
    weights = np.where(table.rows[table.attributes[0]].notna(), 1.0, 0.0)
    block = attribute_block(AttributeVocab.from_table(table), table.img_dir, SIZE)
    direct = block.weighted_dataloaders(table.rows, weights, bs=8, num_workers=0)
    train_weights = weights[~table.rows.is_valid.to_numpy() & table.rows[table.attributes].notna().any(axis=1).to_numpy()]
    by_option = loaders(table, dl_type=WeightedDL, dl_kwargs=[dict(wgts=train_weights), {}], cache=True)
    for dls in (direct, by_option):
        assert all((y[:, 0] >= 0).all() for _, y in dls.train)
        learn = learner(dls, body_file)
        learn.fit(1, 1e-3)
        assert "loader" in learn.feature_cache.reason


def test_misspelt_options_are_refused(table, samples):
    for options in (dict(batchsize=8), dict(item_tfm=[]), dict(number_workers=0)):
        with pytest.raises(TypeError, match=next(iter(options))): attribute_dls(table, **options)
        with pytest.raises(TypeError, match=next(iter(options))): AttributeDataLoaders.from_csv(samples.folder, "attributes.csv", **options)
    with pytest.raises(TypeError): attribute_learner(loaders(table), pretrained=False, drop_out=0.1)


def test_from_df_and_from_csv(table, samples):
    by_file = AttributeDataLoaders.from_csv(
        samples.folder, "attributes.csv", folder="images", label_cols=["neck"], valid_pct=0.3, seed=3, item_tfms=Resize(32), batch_tfms=[],
        num_workers=0, bs=4)
    expected = split_table(replace(table, attributes=["neck"]), 0.3, seed=3).rows.dropna(subset="neck")
    assert by_file.valid.items.filename.tolist() == expected.filename[expected.is_valid].tolist()
    assert by_file.one_batch()[0].shape == (4, 3, 32, 32) and list(by_file.vocab) == ["neck"]
    frame = pd.DataFrame({"Neck": [3, 1, 3, None] * 5, "photo": table.rows.filename[:20], "part": ["train"] * 12 + ["valid"] * 8})
    dls = AttributeDataLoaders.from_df(frame, samples.images, fn_col="photo", valid_col="part", size=32, num_workers=0)
    assert dls.vocab.classes == {"Neck": ["1", "3"]} and len(dls.valid_ds) == 6
    for wrong in (dict(fn_col="file"), dict(fn_col=9), dict(fn_col="photo", label_cols=["neck"]), dict(fn_col="photo", valid_col="split")):
        with pytest.raises(InputError): AttributeDataLoaders.from_df(frame, samples.images, **wrong)


def test_signatures_name_every_option():
    import inspect
    by_class = AttributeDataLoaders.from_table, AttributeDataLoaders.from_df, AttributeDataLoaders.from_csv
    for function in (attribute_dls, attribute_learner, *by_class):
        parameters = inspect.signature(function).parameters
        assert not any(p.kind is p.VAR_KEYWORD for p in parameters.values()), function
    options = {"bs", "val_bs", "shuffle", "device", "item_tfms", "batch_tfms", "num_workers", "vocab"}
    assert all(options <= {*inspect.signature(function).parameters, "vocab"} for function in (attribute_dls, *by_class))
    assert {"opt_func", "splitter", "cbs", "wd", "mirrored", "dropout", "plain"} <= set(inspect.signature(attribute_learner).parameters)


def test_vocab_as_a_dictionary(table):
    dls = loaders(table)
    vocab = dls.vocab
    assert len(vocab) == 3 and list(vocab) == table.attributes and vocab["neck"] == vocab[0] == vocab.classes["neck"]
    assert dls.c == sum(map(len, vocab.classes.values()))
    assert dict(zip(vocab, map(vocab.__getitem__, vocab))) == vocab.classes


@pytest.mark.skipif(sys.platform == "win32", reason="a script given on the command line cannot be imported by workers there")
def test_workers_can_be_spawned(table, samples, tmp_path):
    script = tmp_path / "spawn.py"
    script.write_text(f"""
import multiprocessing
from deep_fashion.all import *
if __name__ == "__main__":
    multiprocessing.set_start_method("spawn")
    table = split_table(read_table({str(samples.csv)!r}, {str(samples.images)!r}))
    options = dict(size=32, cache={str(tmp_path / "cache")!r}, batch_tfms=[], shuffle=False)
    here, there = (torch.cat([x for x, _ in attribute_dls(table, num_workers=n, **options).valid]) for n in (0, 2))
    print("equal", torch.equal(here, there))
""")
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, cwd=tmp_path)
    assert "equal True" in done.stdout, done.stderr[-2000:]


# Other loaders and photos


def test_progressive_resizing_and_new_loaders(table, body_file):
    "The network normalises, so the same photos give the same predictions whichever loader they come from."
    learn = learner(loaders(table), body_file)
    expected = record_of(learn)
    assert record_of(learn, dl=loaders(table).valid) == pytest.approx(expected, nan_ok=True)
    learn.dls = loaders(table)
    assert record_of(learn) == pytest.approx(expected, nan_ok=True)
    rows = ordered(learn.dls, 1)
    mean, std = (torch.tensor(o)[:, None, None] for o in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    model = learn.model.eval()
    with torch.no_grad():
        maps = model.body((pixels_of(table, rows) - mean) / std)
        logits = torch.cat([head(torch.cat([maps.amax((2, 3)), maps.mean((2, 3))], 1)) for head in model.heads], 1)
    assert expected[0] == pytest.approx(float(pooled_loss(logits, codes_of(learn.dls, rows), model.sizes)), rel=1e-3)
    learn.dls = loaders(table, size=64)
    learn.fine_tune(1, 1e-3)
    assert np.isfinite(learn.validate()[0])


def test_loaders_that_normalise_are_not_normalised_again(table, body_file):
    normalising = loaders(table, batch_tfms=[Normalize.from_stats(*imagenet_stats, cuda=False)])
    by_network = record_of(learner(loaders(table), body_file))
    assert record_of(learner(normalising, body_file)) == pytest.approx(by_network, rel=1e-3, nan_ok=True)
    by_loaders, by_itself = learner(normalising, body_file), learner(loaders(table), body_file)
    with pytest.raises(InputError, match="leave Normalize out"): by_itself.dls = normalising
    with pytest.raises(InputError, match="add the same Normalize"): by_loaders.validate(dl=loaders(table).valid)
    assert learner(loaders(table), body_file, normalize=False).model.std.flatten().tolist() == [1.0]


def test_other_classes_are_refused(table, body_file):
    learn = learner(loaders(table), body_file)
    fewer = replace(table, rows=table.rows[table.rows.neck != learn.vocab["neck"][0]].reset_index(drop=True))
    without, reordered = replace(table, attributes=table.attributes[:2]), replace(table, attributes=table.attributes[::-1])
    for other in (fewer, without, reordered):
        dls = loaders(other)
        with pytest.raises(InputError, match="the network"): learn.dls = dls
        for use in (learn.validate, learn.get_preds):
            with pytest.raises(InputError, match="the network"): use(dl=dls.valid)
    learn.dls = loaders(fewer, vocab=learn.vocab)
    assert np.isfinite(learn.validate()[0])
    with pytest.raises(InputError, match="outputs"): AttributeLearner(loaders(fewer), learn.model, loss_func=learn.loss_func)


def test_metrics_without_labels_and_with_another_loss(table, body_file):
    dls = loaders(table)
    def weighted(pred, target, reduction="mean"): return pooled_loss(pred, target.as_subclass(torch.Tensor), dls.vocab.sizes)
    learn = learner(dls, body_file, loss_func=weighted, cbs=EarlyStoppingCallback("accuracy"))
    learn.fit(1, 1e-3)
    values = dict(zip(learn.recorder.metric_names[1:], learn.recorder.values[-1]))
    logits, codes = learn.get_preds()
    first = logits[:, : dls.vocab.sizes[0]].argmax(1)
    by_hand = (first == codes[:, 0])[codes[:, 0] >= 0].float().mean()
    assert values[f"{table.attributes[0]}_accuracy"] == pytest.approx(float(by_hand))
    names, indices, probabilities = learn.predict(table.img_dir / table.rows.filename[0])
    assert list(names) == table.attributes and all(float(p.sum()) == pytest.approx(1, abs=1e-4) for p in probabilities.values())
    unlabelled = ordered(dls, 1).assign(**{table.attributes[0]: None})
    values = dict(zip(["loss", *(m.name for m in learn.metrics)], learn.validate(dl=dls.test_dl(unlabelled, with_labels=True))))
    assert np.isnan(values[f"{table.attributes[0]}_accuracy"]) and np.isfinite(values["accuracy"])


def test_class_weights_and_label_smoothing(table, body_file):
    dls = loaders(table)
    weights = [torch.rand(size) + 0.5 for size in dls.vocab.sizes]
    learn = learner(dls, body_file, loss_func=AttributeLoss(dls.vocab.sizes, class_weights=weights, label_smoothing=0.1))
    learn.fit(1, 1e-3)
    logits, codes = learn.get_preds(act=noop)
    heads = zip(logits.split(dls.vocab.sizes, 1), codes.as_subclass(torch.Tensor).T, weights)
    expected = torch.stack([F.cross_entropy(o, c, w, ignore_index=-1, label_smoothing=0.1) for o, c, w in heads]).mean()
    assert learn.validate()[0] == pytest.approx(float(expected), rel=1e-4)


# Inference


def test_predictions_agree(table, body_file):
    "get_preds, predict, test_dl and tta on the same photos."
    learn = learner(loaders(table), body_file)
    probabilities, codes, decoded = learn.get_preds(with_decoded=True)
    rows = ordered(learn.dls, 1)
    assert torch.equal(codes, codes_of(learn.dls, rows))
    heads = probabilities.split(learn.vocab.sizes, 1)
    assert torch.equal(decoded, torch.stack([head.argmax(1) for head in heads], 1))
    from_files, _ = learn.get_preds(dl=learn.dls.test_dl([table.img_dir / name for name in rows.filename]))
    assert torch.allclose(from_files, probabilities, atol=1e-5)
    assert torch.allclose(learn.tta(n=2, beta=1)[0], probabilities, atol=1e-5) and learn.tta(n=2)[0].shape == probabilities.shape
    names, indices, by_attribute = learn.predict(table.img_dir / rows.filename[0])
    assert torch.allclose(torch.cat(list(by_attribute.values())), probabilities[0], atol=1e-5)
    assert indices.tolist() == decoded[0].tolist()


def test_predict_takes_what_fastai_takes(table, body_file):
    learn = learner(loaders(table), body_file)
    path = table.img_dir / table.rows.filename[0]
    image = PILImage.create(path)
    pixels = np.asarray(image)
    as_tensor = TensorImage(torch.from_numpy(pixels.copy()).permute(2, 0, 1))
    expected = torch.cat(list(learn.predict(path)[2].values()))
    for item in (str(path), path.read_bytes(), image, pixels, as_tensor, as_tensor.float() / 255):
        assert torch.allclose(torch.cat(list(learn.predict(item)[2].values())), expected, atol=1e-5), type(item)
    grey = pixels[:, :, :1]
    by_three = torch.cat(list(learn.predict(np.repeat(grey, 3, 2))[2].values()))
    assert torch.allclose(torch.cat(list(learn.predict(grey)[2].values())), by_three, atol=1e-5)
    photo, *rest = learn.predict(path, None, True)
    assert photo.shape[-2:] == SIZE and len(rest) == 3
    assert torch.allclose(photo.float(), pixels_of(table, table.rows[:1])[0] * 255, atol=1.01)
    assert torch.allclose(torch.cat(list(learn.predict(path, rm_type_tfms=1)[2].values())), expected, atol=1e-5)


def test_saving_and_loading(table, body_file, tmp_path):
    learn = learner(loaders(table), body_file, path=tmp_path)
    learn.fit(1, 1e-3)
    expected = record_of(learn)
    learn.save("here")
    for weights in ("models/here.pth", "bare.pth"):
        if weights == "bare.pth": learn.save(tmp_path / "bare", with_opt=False)
        again = learner(loaders(table), tmp_path / weights)
        assert torch.equal(again.model.body[0].weight, learn.model.body[0].weight)
    other = learner(loaders(table), body_file, path=tmp_path).load("here")
    assert record_of(other) == pytest.approx(expected, rel=1e-4, nan_ok=True)
    copied = pickle.loads(pickle.dumps(learn))
    assert record_of(copied) == pytest.approx(expected, rel=1e-4, nan_ok=True)
    by_vision = vision_learner(loaders(table), resnet18, pretrained=False, loss_func=learn.loss_func, path=tmp_path)
    by_vision.save("vision")
    assert torch.equal(learner(loaders(table), tmp_path / "models/vision.pth").model.body[0].weight, by_vision.model[0][0].weight)


def test_an_exported_learner_has_no_path_of_this_machine(table, body_file, samples, tmp_path):
    learn = learner(loaders(table, cache=tmp_path / "cache", path=tmp_path), body_file, path=tmp_path, cbs=SaveModelCallback())
    learn.fit(1, 1e-3)
    path = table.img_dir / table.rows.filename[0]
    expected = torch.cat(list(learn.predict(path)[2].values()))
    opt, dls = learn.opt, learn.dls
    learn.export("learn.pkl")
    assert learn.opt is opt and learn.dls is dls and learn.path == tmp_path
    content = (tmp_path / "learn.pkl").read_bytes()
    for secret in (str(samples.folder), str(tmp_path), "PosixPath", "WindowsPath", Path.home().name + "/"):
        assert secret.encode() not in content, secret
    loaded = load_learner(tmp_path / "learn.pkl")
    assert torch.allclose(torch.cat(list(loaded.predict(path)[2].values())), expected, atol=1e-5)
    with pytest.raises(OSError): learn.export(tmp_path / "none" / "learn.pkl")
    assert learn.opt is opt and learn.dls is dls


def test_results_can_be_shown(table, body_file):
    import matplotlib.pyplot as plt
    learn = learner(loaders(table), body_file)
    learn.dls.show_batch(max_n=4)
    learn.dls.train.show_batch(max_n=4, unique=True)
    learn.show_results(max_n=4)
    Interpretation.from_learner(learn).show_results([0, 1])
    assert len(plt.get_fignums()) == 4
    plt.close("all")


def test_seeds_do_not_depend_on_the_cache(table, body_file):
    "Without augmentation, the feature cache leaves the random numbers of training as they were."
    def state(plain):
        learn = learner(loaders(table), body_file, plain=plain, dropout=0.5)
        set_seed(6)
        learn.dls.train.rng = random.Random(6)
        learn.fit(2, 1e-3)
        return torch.get_rng_state(), random.getstate()
    fast, plain = state(False), state(True)
    assert torch.equal(fast[0], plain[0]) and fast[1] == plain[1]
