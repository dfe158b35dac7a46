"An exported learner is loaded without running code it holds; whatever else a file holds is named and refused."
import copyreg
import os
import pickle
import pickletools
import subprocess
import zipfile
from collections import OrderedDict
from functools import partial
from operator import attrgetter, methodcaller

import cloudpickle
import numpy as np
import pytest
import torch
from fastai.learner import load_learner
from fastai.vision.all import RandomResizedCrop, Resize, aug_transforms, resnet18
from fastcore.foundation import L
from torch import nn

from deep_fashion.core import InputError
from deep_fashion.data.block import attribute_dls
from deep_fashion.data.samples import make_samples
from deep_fashion.data.split import split_table
from deep_fashion.data.table import read_table
from deep_fashion.pickles import load_pickle
from deep_fashion.predict.tagger import load_tagger
from deep_fashion.train.learner import attribute_learner

MARKER = "harm-was-done"


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    folder = make_samples(tmp_path_factory.mktemp("samples") / "samples", n=24)
    return split_table(read_table(folder / "attributes.csv", folder / "images"))


@pytest.fixture(scope="module")
def learn(table):
    return attribute_learner(attribute_dls(table, size=64, bs=8, num_workers=0, cache=False), "test_resnet", pretrained=False)


@pytest.fixture(scope="module")
def exported(learn, tmp_path_factory):
    path = tmp_path_factory.mktemp("exported") / "learn.pkl"
    learn.export(path)
    return path


@pytest.fixture
def refused_pickle(tmp_path, monkeypatch):
    "Load a pickle, plain and as torch.save writes it, and expect a refusal in one line without any effect."
    monkeypatch.chdir(tmp_path)
    def check(content, *says):
        with zipfile.ZipFile("zipped.pkl", "w") as f:
            f.writestr("learn/data.pkl", content)
            f.writestr("learn/byteorder", "little")
        (tmp_path / "plain.pkl").write_bytes(content)
        for name in ("plain.pkl", "zipped.pkl"):
            with pytest.raises(InputError) as error: load_pickle(name)
            text = str(error.value)
            assert name in text and "\n" not in text and not os.path.exists(MARKER), text
            for word in says: assert word in text, text
    return check


class Calls:
    "Pickled as a call of `function`."
    def __init__(self, function, *arguments, state=None): self.reduced = function, arguments, state
    def __reduce__(self): return self.reduced[:2] if self.reduced[2] is None else self.reduced


def touch(): return f"touch {MARKER}"
def text(value): return pickle.SHORT_BINUNICODE + bytes([len(value)]) + value.encode()


GETATTR = Calls(getattr, Calls(__import__, "os"), "system")
CALLS = dict(
    system=Calls(os.system, touch()),
    popen=Calls(subprocess.Popen, ["touch", MARKER]),
    eval=Calls(eval, f"open('{MARKER}', 'w')"),
    exec=Calls(exec, f"open('{MARKER}', 'w')"),
    open=Calls(open, MARKER, "w"),
    getattr=GETATTR,
    partial=Calls(partial, os.system),
    partial_state=Calls(partial, print, state=(os.system, (touch(),), {}, None)),
    attrgetter=Calls(attrgetter, "system"),
    methodcaller=Calls(methodcaller, "system", touch()),
    map=Calls(list, Calls(map, os.system, [touch()])),
    torch_load=Calls(torch.load, "other.pkl"),
    torch_hub=Calls(torch.hub.load, "a/b", "c"),
    pickle=Calls(pickle.loads, pickle.dumps(Calls(os.system, touch()))),
    marshal=Calls(__import__("marshal").loads, b""),
    numpy_load=Calls(np.load, "other.npy"),
    objects=np.array([Calls(os.system, touch())], dtype=object),
    items=L([Calls(os.system, touch())]),
    key={"a": Calls(os.system, touch())},
    ordered=OrderedDict(a=Calls(os.system, touch())),
    function=cloudpickle.loads(cloudpickle.dumps(lambda: 1)),
    constructor=Calls(copyreg._reconstructor, subprocess.Popen, object, None),
    layer=Calls(nn.Linear, 10**7, 10**7),
    module_call=Calls(nn.Sequential, nn.Identity()),
    signature=Calls(getattr, Calls(getattr, np, "f2py"), "os"),
)


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
@pytest.mark.parametrize("name", CALLS)
def test_calls_are_refused(name, protocol, refused_pickle):
    refused_pickle(cloudpickle.dumps(CALLS[name], protocol))


# By hand: what no pickler writes.
OPCODES = dict(
    GLOBAL=b"cposix\nsystem\n" + text(touch()) + b"\x85R.",
    GLOBAL_of_a_wrong_case=b"cbuiltins\neval\n" + text(f"open('{MARKER}','w')") + b"\x85R.",
    STACK_GLOBAL=text("posix") + text("system") + b"\x93" + text(touch()) + b"\x85R.",
    STACK_GLOBAL_from_the_memo=text("posix") + b"\x94" + text("system") + b"\x94" + text("a") + text("b") + b"00h\x00h\x01\x93"
    + text(touch()) + b"\x85R.",
    STACK_GLOBAL_behind_texts=text("posix") + text("system") + b"\x93" + b"0" + text("posix") + text("system")
    + b"\x86\x8c\x05torch\x8c\x06Tensor000" + b"cposix\nsystem\n" + text(touch()) + b"\x85R.",
    INST=b"(" + text(touch()) + b"iposix\nsystem\n.",
    OBJ=b"(cposix\nsystem\n" + text(touch()) + b"o.",
    NEWOBJ=b"csubprocess\nPopen\n" + text(touch()) + b"\x85\x81.",
    NEWOBJ_EX=b"csubprocess\nPopen\n)}\x92.",
    EXT1=b"\x82\x01.",
    EXT2=b"\x83\x01\x00.",
    EXT4=b"\x84\x01\x00\x00\x00.",
    dotted=text("deep_fashion.core") + text("os.system") + b"\x93" + text(touch()) + b"\x85R.",
    dotted_layer=b"ctorch.nn.modules.linear\nmath.sqrt\nK\x01\x85R.",
    module_of_a_layer=b"ctorch.nn.modules.module\nwarnings\n.",
    class_attributes=b"cdeep_fashion.train.learner\nAttributeLearner\n}" + text("predict") + b"cbuiltins\nprint\nsb.",
    slots=b"cfastcore.foundation\nL\n)\x81N}" + text("items") + b"K\x01s\x86b.",
    reduce_print=b"cbuiltins\nprint\n" + text(touch()) + b"\x85R.",
    reduce_learner=b"cdeep_fashion.train.learner\nAttributeLearner\n)R.",
    getattr_of_a_class=b"cbuiltins\ngetattr\ncdeep_fashion.train.learner\nAttributeLearner\n" + text("__init__") + b"\x86R.",
    getattr_of_globals=b"cbuiltins\ngetattr\ncdeep_fashion.model.network\nbody_splitter\n" + text("__globals__") + b"\x86R.",
    method_of_print=b"ccloudpickle.cloudpickle\n_builtin_type\n" + text("MethodType") + b"\x85Rcbuiltins\nprint\n" + text("a") + b"\x86R.",
    code_type=b"ccloudpickle.cloudpickle\n_builtin_type\n" + text("CodeType") + b"\x85R.",
    partial_of_getattr=b"cfunctools\npartial\ncbuiltins\ngetattr\n\x85R.",
    setitem_of_an_object=b"ctorch.nn.modules.container\nSequential\n)\x81K\x00K\x01s.",
    append_to_an_object=b"ctorch.nn.modules.container\nModuleList\n)\x81K\x01a.",
    persistent=b"K\x01Q.",
    persistent_text=b"Pposix\n.",
    huge_bytearray=b"\x80\x05\x96" + (2**50).to_bytes(8, "little") + b".",
    huge_text=b"\x8d" + (2**50).to_bytes(8, "little") + b".",
    huge_frame=b"\x80\x04\x95" + (2**60).to_bytes(8, "little") + b".",
    huge_array=b"cnumpy._core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85C\x01b\x87R(K\x01J\xff\xff\xff\x7f\x85"
    b"cnumpy\ndtype\n" + text("f8") + b"\x85R\x89C\x00tb.",
    array_of_pointers=b"cnumpy._core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85C\x01b\x87R(K\x01K\x01\x85"
    b"cnumpy\ndtype\n" + text("V8") + b"\x85R\x89C\x08AAAAAAAAtb.",
    nothing=b"",
    no_stop=b"K\x01",
    empty_stack=b"R.",
    endless_memo=b"h\x05.",
)


@pytest.mark.parametrize("name", OPCODES)
def test_instructions_are_refused(name, refused_pickle):
    refused_pickle(OPCODES[name])


def test_the_unpickler_refuses_what_the_check_misses(monkeypatch, refused_pickle):
    monkeypatch.setattr("deep_fashion.pickles.found_names", lambda content: [])
    for content in OPCODES.values(): refused_pickle(content)
    for name in CALLS: refused_pickle(cloudpickle.dumps(CALLS[name], 4))


class Made:
    "Written by hand as an object of a class, with attributes."
    def __init__(self, name, **attributes): self.name, self.attributes = name, attributes


class Function(str): "Written as the name of a class or function."


class Call(tuple): "Written as a call: the function and its arguments."


class Partial(tuple): "Written as a functools.partial: the function, its arguments, and its keywords."


def assembled(value):
    "The instructions of a value."
    if type(value) is Function: return f"c{value.rpartition('.')[0]}\n{value.rpartition('.')[2]}\n".encode()
    if type(value) is Call: return assembled(value[0]) + assembled(value[1:]) + b"R"
    if type(value) is Made: return assembled(Function(value.name)) + b")\x81" + assembled(value.attributes) + b"b"
    if type(value) is Partial: return b"cfunctools\npartial\n" + assembled(value[:1]) + b"R" + assembled((*value, None)) + b"b"
    if isinstance(value, (list, set)): return (b"]" if isinstance(value, list) else b"\x8f") + b"(" + b"".join(map(assembled, value)) + b"e"
    if isinstance(value, tuple): return b"(" + b"".join(map(assembled, value)) + b"t"
    if isinstance(value, dict): return b"}(" + b"".join(assembled(o) for item in value.items() for o in item) + b"u"
    return pickle.dumps(value, 2)[2:-1] if not isinstance(value, str) else b"X" + len(value).to_bytes(4, "little") + value.encode()


def layer(name, children=(), **attributes):
    hooks = {f"_{o}_hooks": {} for o in ("forward", "forward_pre", "backward", "backward_pre", "state_dict", "load_state_dict_post")}
    return Made(name, **{"training": False, "_parameters": {}, "_buffers": {}, **hooks, "_modules": dict(children), **attributes})


LEARNER, PIPELINE, LIST = "deep_fashion.train.learner.AttributeLearner", "fasttransform.transform.Pipeline", "fastcore.foundation.L"
LINEAR, SEQUENTIAL, FLIP = (Function(o) for o in ("torch.nn.modules.linear.Linear", "torch.nn.modules.container.Sequential",
                                                  "fastai.vision.augment.flip_mat"))
IDENTITY, PRINT = layer("torch.nn.modules.linear.Identity"), Function("builtins.print")
CODE = f'[x", None) \rgetattr(__import__("os"), "system")("{touch()}")\rdef g(input_1):\r    x=("]'
TITLES = "deep_fashion.data.title_classifier.TitleClassifier"
NUMBERS = dict(scales_=np.ones(1, "f4"), coefficients_=np.ones((1, 2), "f4"), intercepts_=np.ones(2, "f4"))
CLASSIFIER = dict(classes_=["a", "b"], parts_="a", **NUMBERS)
ATTRIBUTES = dict(
    code_of_names=Made(LEARNER, _dls=Made(LEARNER, cpu=Partial((Function("timm.models._features_fx.GraphExtractNet"), (
        layer(SEQUENTIAL, {CODE: IDENTITY, "last": IDENTITY}), {"last": "o"}), {})))),
    graph=layer("timm.models._features_fx.FeatureGraphNet"),
    hook_network=layer("timm.models._features.FeatureHookNet"),
    partial_layer=Partial((LINEAR, (60000, 60000), {})),
    partial_print=Partial((PRINT, ("x",), {})),
    partial_of_objects=Partial((FLIP, (), {"draw": PRINT})),
    layer_as_value=Made(LEARNER, opt_func=LINEAR),
    method=Made(LEARNER, _dls=Made(LEARNER, cpu=PRINT)),
    function=Made("fastai.data.core.DataLoaders", cpu=PRINT),
    delegation=Made(LEARNER, _default="x"),
    class_of_object=Made(LEARNER, __class__=LINEAR),
    forward=layer(SEQUENTIAL, forward=PRINT),
    compiled=layer(SEQUENTIAL, _compiled_call_impl=PRINT),
    hook=layer(SEQUENTIAL, _forward_hooks={1: PRINT}),
    other_hook=layer(SEQUENTIAL, _forward_pre_hooks={1: "text"}),
    child=layer(SEQUENTIAL, {"a": Made(LEARNER)}),
    named_method=layer("timm.models.resnet.ResNet", stage_names=["compile"]),
    parameter=layer(SEQUENTIAL, _parameters={"a": "text"}),
    encodes=Made("fastai.data.transforms.ToTensor", encodes=PRINT),
    setups=Made("fastai.data.transforms.Normalize", setups=None, decodes=PRINT),
    event=Made("fastai.callback.core.TrainEvalCallback", after_cancel_fit=PRINT),
    step=Made(PIPELINE, fs=Made(LIST, items=[PRINT])),
    items=Made(LIST, items=Made(LEARNER)),
    title_words=Made("deep_fashion.data.titles.TitleWords", _label={"a": "b"}, words_=Made(LEARNER)),
    title_classifier=Made(TITLES, **{**CLASSIFIER, "coefficients_": np.ones((1, 2))}),
    other_parts=Made(TITLES, **{**CLASSIFIER, "parts_": "a\nb"}),
    unfitted=Made(TITLES, parts_="a"),
    title_models=Made(LEARNER, title_models={"neck": (Made(LIST, items=[PRINT]), 1., 1.)}),
    key={Made(LIST, items=[1]): None},
    nested_key={((1,), 2): None},
    new_enumeration=Call((Function("timm.layers.format.Format"), "X", ["A", "B"])),
    random=Made(LEARNER, path=Call((Function("random.Random"), 1))),
)


@pytest.mark.parametrize("checked", [True, False])
@pytest.mark.parametrize("name", ATTRIBUTES)
def test_attributes_that_act_are_refused(name, checked, refused_pickle, monkeypatch):
    import timm.models._features_fx # noqa: F401 - layers of modules that are not loaded are refused anyway
    if not checked: monkeypatch.setattr("deep_fashion.pickles.found_names", lambda content: [])
    refused_pickle(b"\x80\x04" + assembled(ATTRIBUTES[name]) + b".")


def doubled(n, mark=b"]", end=b"e"):
    "A list of a list of a list ..., each twice in the next: endless as text, and endless to hash if tuples."
    levels = (b"0" + mark + b"(" + b"h" + bytes([i]) + b"h" + bytes([i]) + end + b"q" + bytes([i + 1]) for i in range(n))
    return text("a") + b"q\x00" + b"".join(levels)


MANY = 30_000
TOO_MUCH = dict(
    text_of_lists=b"cbuiltins\ngetattr\n" + doubled(60) + text("x") + b"\x86R.",
    type_of_lists=b"cnumpy\ndtype\n" + doubled(60) + b"\x85R.",
    hash_of_tuples=b"}" + doubled(60, b"", b"t") + b"Ns.",
    set_of_tuples=b"\x8f(" + doubled(60, b"", b"t") + b"\x90.",
    numbers_of_lists=b"(" + text("storage") + b"ctorch\nFloatStorage\n" + doubled(60) + text("cpu") + b"K\x04tQ.",
    depth=b"}" + b")" + b"\x85"*2**20 + b"Ns.",
    copies=b"X" + (10**6).to_bytes(4, "little") + b"a"*10**6 + b"q\x00]("
    + (b"c_codecs\nencode\nh\x00" + text("latin1") + b"\x86R")*MANY + b"e.",
    generators=b"](" + b"crandom\nRandom\n)R"*MANY + b"e.",
    same_hash=b"}(" + b"".join(b"\x8a\x0c" + (k*(2**61 - 1)).to_bytes(12, "little") + b"N" for k in range(1, 9)) + b"u.",
    random_of_text=b"crandom\nRandom\n)R(K\x02(" + (text("%99999999999d"))*625 + b"tNtb.",
    long=b"\x8b\x08\x00\x00\x00" + bytes(8) + b".",
)


@pytest.mark.parametrize("checked", [True, False])
@pytest.mark.parametrize("name", TOO_MUCH)
def test_endless_work_is_refused(name, checked, refused_pickle, monkeypatch):
    if not checked: monkeypatch.setattr("deep_fashion.pickles.found_names", lambda content: [])
    refused_pickle(b"\x80\x04" + TOO_MUCH[name])


def altered_zip(path, target, change):
    "Copy a zip archive of torch.save; `change` gives the new content of a part, or None to leave it out."
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(target, "w") as new:
        for info in old.infolist():
            part = info.filename.split("/", 1)[1]
            if (content := change(part, old.read(info))) is not None: new.writestr("learn/" + part, content)
    return target


@pytest.mark.parametrize(
    "change",
    [
        lambda part, content: content[:-4] if part == "data/3" else content,
        lambda part, content: content + bytes(4) if part == "data/3" else content,
        lambda part, content: None if part == "data/3" else content,
        lambda part, content: None if part == "data.pkl" else content,
        lambda part, content: b"big" if part == "byteorder" else content,
        lambda part, content: content.replace(b"FloatStorage", b"DoubleStorage") if part == "data.pkl" else content,
    ],
)
def test_numbers_that_do_not_fit_are_refused(exported, tmp_path, change):
    path = altered_zip(exported, tmp_path / "altered.pkl", change)
    with pytest.raises(InputError, match="altered.pkl"): load_tagger(path)


def test_compressed_parts_and_other_formats_are_refused(exported, tmp_path):
    with zipfile.ZipFile(tmp_path / "bomb.pkl", "w", zipfile.ZIP_DEFLATED) as f: f.writestr("learn/data.pkl", bytes(10**7))
    torch.save(dict(a=torch.ones(2)), tmp_path / "legacy.pkl", _use_new_zipfile_serialization=False)
    torch.jit.save(torch.jit.script(nn.Linear(2, 2)), tmp_path / "script.pkl")
    for name in ("bomb.pkl", "legacy.pkl", "script.pkl"):
        with pytest.raises(InputError, match=name): load_tagger(tmp_path / name)


def test_altered_exports_do_no_harm(exported, tmp_path):
    "Bytes of the pickle at random: refused in one line, or a learner."
    draw = np.random.default_rng(0)
    with zipfile.ZipFile(exported) as f: content = f.read(next(name for name in f.namelist() if name.endswith("data.pkl")))
    for _ in range(40):
        damaged = bytearray(content)
        for at in draw.integers(len(content), size=1 + draw.integers(4)): damaged[at] = draw.integers(256)
        new = bytes(damaged)
        path = altered_zip(exported, tmp_path / "altered.pkl", lambda part, old, new=new: new if part == "data.pkl" else old)
        try: load_tagger(path)
        except InputError as error: assert "\n" not in str(error)


def same_predictions(learn, loaded):
    photo = np.random.default_rng(1).integers(0, 256, (80, 60, 3), np.uint8)
    return all(torch.equal(a, b) for a, b in zip(*(o.predict(photo)[2].values() for o in (learn, loaded))))


def test_exported_learners_are_loaded(learn, exported):
    loaded = load_tagger(exported)
    assert same_predictions(load_learner(exported), loaded) and loaded.vocab.classes == learn.vocab.classes
    assert {type(cb) for cb in loaded.cbs} == {type(cb) for cb in load_learner(exported).cbs}
    with loaded.no_bar(), loaded.no_logging():
        loaded.dls = learn.dls
        loaded.fit(1, 1e-3)


@pytest.mark.parametrize(
    "options",
    [
        dict(item_tfms=Resize(64), batch_tfms=aug_transforms(size=64)),
        dict(item_tfms=RandomResizedCrop(64), batch_tfms=aug_transforms(mult=2)),
    ],
)
def test_transforms_of_fastai_are_loaded(table, tmp_path, options):
    learn = attribute_learner(attribute_dls(table, num_workers=0, bs=8, cache=False, **options), "test_resnet", pretrained=False)
    with learn.no_bar(), learn.no_logging(): learn.fit(1, 1e-3)
    learn.export((tmp_path / "learn.pkl").absolute())
    assert same_predictions(load_learner(tmp_path / "learn.pkl"), load_tagger(tmp_path / "learn.pkl"))


@pytest.mark.parametrize("arch", ["resnet18", "tf_efficientnet_lite0", "test_vit", "test_convnext", "mobilenet_v3_small", "densenet121"])
def test_networks_are_loaded(table, tmp_path, arch):
    size = 160 if arch == "test_vit" else 64
    learn = attribute_learner(attribute_dls(table, size=size, num_workers=0, cache=False), arch, pretrained=False)
    learn.export((tmp_path / "learn.pkl").absolute())
    assert same_predictions(load_learner(tmp_path / "learn.pkl"), load_tagger(tmp_path / "learn.pkl"))


def test_a_function_of_a_notebook_needs_trust(table, tmp_path, samples, command, refused):
    space = {"resnet18": resnet18}
    exec("def own(pretrained): return resnet18(weights=None)\ndef splitter(model): return [list(model.parameters())]", space)
    space["splitter"].__module__ = "__main__"
    learn = attribute_learner(attribute_dls(table, size=64, num_workers=0, cache=False), pretrained=False, splitter=space["splitter"])
    learn.export((tmp_path / "learn.pkl").absolute())
    words = "test", "--model", tmp_path / "learn.pkl", "-i", samples.images / "shirt-00001-1.jpg"
    refused(*words, says=["learn.pkl: holds cloudpickle", "--trust", "trust=True"])
    assert command(*words, "--trust").status == 0
    assert same_predictions(learn, load_tagger(tmp_path / "learn.pkl", trust=True))


def test_what_is_no_learner_is_refused_in_one_line(samples, refused, tmp_path):
    photo = samples.images / "shirt-00001-1.jpg"
    torch.save(nn.Linear(2, 2), tmp_path / "layer.pkl")
    torch.save({"a": torch.ones(2)}, tmp_path / "weights.pkl")
    (tmp_path / "harm.pkl").write_bytes(pickle.dumps(CALLS["system"]))
    for name, reason in (("layer.pkl", "Linear"), ("weights.pkl", "dict"), ("harm.pkl", "posix.system")):
        refused("test", "--model", tmp_path / name, "-i", photo, says=[name, reason])
    for command in (("tag", "--img_dir", samples.images, "--out_csv", "t.csv"), ("convert", "--img_dir", samples.images, "--out", "c"),
                    ("evaluate", "--csv_path", samples.csv, "--img_dir", samples.images)):
        refused(*command, "--model", tmp_path / "harm.pkl", says=["posix.system"])
    assert not (tmp_path / MARKER).exists()


def test_pickletools_knows_every_instruction_of_the_list():
    from deep_fashion import pickles
    assert pickles._INSTRUCTIONS <= {o.name for o in pickletools.opcodes}
    assert {"INST", "OBJ", "NEWOBJ_EX", "EXT1", "EXT2", "EXT4", "BYTEARRAY8"} & pickles._INSTRUCTIONS == set()
