"Exported taggers: the same labels as PyTorch's, without PyTorch; and graphs made to do harm."
import hashlib
import shutil
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch

from deep_fashion.core import read_json
from deep_fashion.data.block import attribute_dls
from deep_fashion.data.split import split_table
from deep_fashion.data.table import read_table
from deep_fashion.data.title_classifier import TitleClassifier
from deep_fashion.model.arch import IMAGENET_STATS
from deep_fashion.model.body import trained_body
from deep_fashion.model.crops import Crop
from deep_fashion.model.network import AttributeModel, EnsembleModel
from deep_fashion.predict.runtime import RuntimeTagger
from deep_fashion.predict.saving import save_bundle
from deep_fashion.predict.tagger import load_tagger
from deep_fashion.train.learner import attribute_learner

onnx = pytest.importorskip("onnx", reason="onnx is not installed")
pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")

NO_TORCH = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {*"torch torchvision fastai fasttransform matplotlib sklearn scipy".split(),
                                      *"captum timm cleanlab imagehash jinja2 safetensors platformdirs onnx openvino".split()}:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name.partition(".")[0])
sys.meta_path.insert(0, Refuse())
from deep_fashion.cli import main
sys.exit(main(sys.argv[1:]))
"""


def read(path): return pd.read_csv(path, dtype=str, keep_default_na=False)


def member(vocab, photos):
    "A small network with crops whose predictions differ from photo to photo."
    crops = [Crop(.1, .6, .2, .8, 64, 80)]
    model = AttributeModel(trained_body("test_resnet", False), vocab.sizes, crops=crops, mirrored=True, stats=IMAGENET_STATS)
    for head in model.heads: torch.nn.init.normal_(head[2].weight, std=.2)
    model.temperatures.uniform_(.5, 2)
    # Without statistics of photos, it would give the same label to all.
    with torch.no_grad():
        for _ in range(20): model.train()(photos)
    return model.eval()


@pytest.fixture(scope="module")
def ensemble(samples, tmp_path_factory):
    "A bundle of a tagger of two networks with crops, mirror images, a title classifier and confidences. It is not trained."
    torch.manual_seed(0)
    table = split_table(read_table(samples.csv, samples.images, names=samples.names))
    dls = attribute_dls(table, size=(80, 64), num_workers=0)
    learn = attribute_learner(dls, "test_resnet", pretrained=False)
    photos = dls.train.one_batch()[0].as_subclass(torch.Tensor)
    learn.model = EnsembleModel([member(dls.vocab, photos), member(dls.vocab, photos)])
    learn.confidences = {a: (np.linspace(.2, 1, 50), np.arange(50) > 10) for a in learn.vocab.attributes}
    titles = [f"shirt-{i:05}-{i % 4}.jpg" for i in range(1, 61)]
    learn.title_models = {"neck": (TitleClassifier().fit(titles, (learn.vocab["neck"] * 60)[:60]), .8, .9)}
    learn.title_source = "filename"
    learn.title_confidences = {**learn.confidences, "neck": (np.linspace(.1, .9, 50), np.arange(50) > 10)}
    return save_bundle(learn, tmp_path_factory.mktemp("ensemble") / "bundle")


@pytest.fixture(scope="module")
def exported(ensemble, samples, tmp_path_factory):
    "The same tagger for ONNX Runtime."
    from deep_fashion.predict.export import export_tagger
    out = tmp_path_factory.mktemp("exported") / "onnx"
    comparison = export_tagger(model=ensemble, img_dir=samples.images, out=out, photos=20)
    assert (comparison.agreement == 1).all() and comparison.difference.max() < 1e-4
    return out


def check_tags(expected, found):
    "The same labels, confidences up to the last digit, and the same photos that cannot be read."
    expected, found = read(expected), read(found)
    confidences = [column for column in expected if column.endswith("_confidence")]
    pd.testing.assert_frame_equal(found.drop(columns=confidences), expected.drop(columns=confidences))
    np.testing.assert_allclose(found[confidences].astype(float), expected[confidences].astype(float), atol=2e-4)


def test_an_exported_run_gives_the_same_tags_and_scores(command, trained, samples, tmp_path):
    out = tmp_path / "onnx"
    result = command("export", "--model", trained, "--img_dir", samples.images, "--out", out)
    assert result.status == 0 and result.out.count("100.0% of the labels agree with PyTorch") == 3, result.err
    for model, name in ((trained, "torch"), (out, "exported")):
        given = "--model", model, "--img_dir", samples.images, "--no-bfloat16"
        assert command("tag", *given, "--out_csv", tmp_path / f"{name}.csv").status == 1
        assert command("evaluate", *given, "--csv_path", samples.csv, "--out", tmp_path / f"{name}.json").status == 0
    check_tags(tmp_path / "torch.csv", tmp_path / "exported.csv")
    assert (tmp_path / "torch.errors.csv").read_text() == (tmp_path / "exported.errors.csv").read_text()
    expected, found = read_json(tmp_path / "torch.json"), read_json(tmp_path / "exported.json")
    assert expected["seen_in_training"] == found["seen_in_training"] is not None
    assert found["mean"]["accuracy"] == pytest.approx(expected["mean"]["accuracy"])


def test_an_ensemble_tags_without_pytorch(command, ensemble, exported, samples, tmp_path):
    options = ["--img_dir", samples.images, "--min_precision", ".6", "--use_titles", "--group_pattern", r"shirt-(\d+)"]
    assert command("tag", "--model", ensemble, "--out_csv", tmp_path / "torch.csv", *options, "--no-bfloat16").status == 1
    words = ["tag", "--model", exported, "--out_csv", tmp_path / "exported.csv", *options, "-bs", "7"]
    done = subprocess.run([sys.executable, "-c", NO_TORCH, *map(str, words)], capture_output=True, text=True)
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    for ending in ("csv", "review.csv"): check_tags(tmp_path / f"torch.{ending}", tmp_path / f"exported.{ending}")
    assert all(len({*read(tmp_path / "exported.csv")[a]}) > 1 for a in ("neck", "sleeve_length", "pattern"))
    words = ["test", "--model", exported, "-i", samples.images / "shirt-00001-1.jpg"]
    done = subprocess.run([sys.executable, "-c", NO_TORCH, *map(str, words)], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.startswith("neck ")


def test_one_photo_in_memory(ensemble, exported, samples):
    photo = samples.images / "shirt-00001-1.jpg"
    expected, found = (tagger.predict(photo.read_bytes()) for tagger in (load_tagger(ensemble).to_fp32(), RuntimeTagger(exported)))
    assert found[0] == dict(expected[0]) and list(found[1]) == expected[1].tolist()
    for a, head in expected[2].items(): np.testing.assert_allclose(found[2][a], head.numpy(), atol=1e-5)


def test_what_an_exported_tagger_cannot_do(command, refused, exported, samples, tmp_path):
    photo = ["test", "--model", exported, "-i", samples.images / "shirt-00001-1.jpg", "--out_image", tmp_path / "a.png"]
    assert command(*photo).status == 0 and (tmp_path / "a.png").stat().st_size > 5_000
    refused(*photo[:-1], tmp_path / "b.png", "--explain", says=["explain", str(exported), "exported from"])
    tagging = "tag", "--model", exported, "--img_dir", samples.images, "--out_csv", tmp_path / "tags.csv"
    refused(*tagging, "--bfloat16", says=["bfloat16", "32 bits"])
    for name in ("convert", "export"):
        refused(name, "--model", exported, "--img_dir", samples.images, "--out", tmp_path / name, says=["was exported for ONNX Runtime"])
    assert not {"tags.csv", "convert", "export"} & {path.name for path in tmp_path.iterdir()}


def test_an_export_that_differs_is_not_kept(refused, ensemble, samples, tmp_path, monkeypatch):
    from deep_fashion.predict import export
    sizes = load_tagger(ensemble).vocab.sizes
    monkeypatch.setattr(export, "onnx_graph", lambda *_: constant(equal_shares(sizes), n=sum(sizes)))
    words = ["export", "--model", ensemble, "--img_dir", samples.images, "--photos", "8", "--out"]
    refused(*words, tmp_path / "new", says=[str(ensemble), "differ from PyTorch's", "nothing was written"])
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("kept")
    refused(*words, tmp_path / "mine", says=["mine", "exists already"])
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    refused(*words, tmp_path / "new", says=["onnxscript is not installed", "deep_fashion[export]"])
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def tensor(name, values): return onnx.numpy_helper.from_array(np.asarray(values, np.float32), name)


def graph_of(nodes, initializers=(), size=(80, 64), kind=onnx.TensorProto.UINT8, outputs=("probabilities",), n=13):
    "A graph that looks like that of the tagger."
    photos = onnx.helper.make_tensor_value_info("photos", kind, ["batch", *size, 3])
    found = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["batch", n]) for name in outputs]
    graph = onnx.helper.make_graph(nodes, "tagger", [photos], found, initializers)
    opsets = [onnx.helper.make_opsetid("", 18), onnx.helper.make_opsetid("com.microsoft", 1)]
    return onnx.helper.make_model(graph, opset_imports=opsets, ir_version=9).SerializeToString()


def constant(values, **kwargs):
    "The same numbers for every photo."
    node = onnx.helper.make_node
    nodes = [node("Cast", ["photos"], ["floats"], to=1), node("ReduceMean", ["floats", "axes"], ["mean"], keepdims=0),
             node("Mul", ["mean", "zero"], ["zeros"]), node("Unsqueeze", ["zeros", "one"], ["column"]),
             node("Add", ["column", "values"], ["probabilities"])]
    axes = [onnx.numpy_helper.from_array(np.array(o, np.int64), name) for name, o in (("axes", [1, 2, 3]), ("one", [1]))]
    return graph_of(nodes, [*axes, tensor("zero", 0), tensor("values", [values])], **kwargs)


def external(location):
    found = tensor("values", np.zeros(13))
    found.ClearField("raw_data")
    found.data_location = onnx.TensorProto.EXTERNAL
    found.external_data.add(key="location", value=str(location))
    return graph_of([onnx.helper.make_node("Identity", ["values"], ["probabilities"])], [found])


def nested_loop():
    "A loop without an end, in a branch."
    node, true = onnx.helper.make_node, onnx.numpy_helper.from_array(np.array(True), "true")
    body = onnx.helper.make_graph([node("Identity", ["go"], ["on"])], "body",
                                  [onnx.helper.make_tensor_value_info("i", onnx.TensorProto.INT64, []),
                                   onnx.helper.make_tensor_value_info("go", onnx.TensorProto.BOOL, [])],
                                  [onnx.helper.make_tensor_value_info("on", onnx.TensorProto.BOOL, [])])
    return graph_of([node("Loop", ["", "true"], [], body=body), node("Identity", ["values"], ["probabilities"])],
                    [true, tensor("values", np.zeros((1, 13)))])


def numbered_oddly(message, part, field):
    """A message whose `field` has a number with a bit beyond 32, which protobuf drops: the same to ONNX Runtime.

    The lengths of the messages around it are written anew: of the model (7), the graph (`part`), and the message in it."""
    def varint(n): return bytes([n & 127 | 128]) + varint(n >> 7) if n > 127 else bytes([n])
    def held(number, content): return varint(number << 3 | 2) + varint(len(content)) + content
    model = onnx.ModelProto.FromString(message)
    found = model.graph.node if part == 1 else model.graph.initializer
    content = found[0].SerializeToString()
    assert content.count(field) == 1
    odd = content.replace(field, bytes([field[0] | 0x80, 0x80, 0x80, 0x80, 0x10]) + field[1:])
    del found[0]
    whole = held(part, odd) + model.graph.SerializeToString()
    model.ClearField("graph")
    return model.SerializeToString() + held(7, whole)


def inflated(*nodes, **values):
    "A graph of little more than what makes a huge `large` from small values."
    node, given = onnx.helper.make_node, dict(axes=np.array([1, 2, 3]), one=np.array([1]), zero=np.float32(0), **values)
    nodes = [*nodes, node("ReduceMax", ["large"], ["most"], keepdims=0), node("Cast", ["photos"], ["floats"], to=1),
             node("ReduceMean", ["floats", "axes"], ["mean"], keepdims=0), node("Unsqueeze", ["mean", "one"], ["column"]),
             node("Mul", ["column", "most"], ["probabilities"])]
    return graph_of(nodes, [onnx.numpy_helper.from_array(np.asarray(value), name) for name, value in given.items()])


def hungry():
    "Graphs of a kilobyte whose results take 16 GiB and more, one by its first operator and one by many."
    node, quarter = onnx.helper.make_node, np.ones((1, 4), np.float32)
    many = [node("Concat", [f"{i}"] * 4, [f"{i + 1}" if i < 15 else "large"], axis=1) for i in range(16)]
    return [inflated(node("Expand", ["zero", "shape"], ["large"]), shape=np.array([2**32])),
            inflated(node("Conv", ["photo", "kernel"], ["large"], pads=[2**15] * 4), photo=np.ones((1, 1, 2, 2), np.float32),
                     kernel=np.ones((1, 1, 3, 3), np.float32)),
            inflated(node("MatMul", ["column_of", "row"], ["large"]), column_of=np.ones((2**16, 1), np.float32),
                     row=np.ones((1, 2**16), np.float32)),
            inflated(*many, **{"0": quarter})]


def equal_shares(sizes): return np.concatenate([np.full(size, 1 / size) for size in sizes])


def altered(bundle, folder, *contents):
    "A copy of a bundle with another graph, and checksums that fit."
    shutil.copytree(bundle, folder)
    names = read_json(folder / "tagger.json")["files"]
    for name, content in zip(names, contents, strict=True): (folder / name).write_bytes(content)
    sums = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in (*names, "tagger.json")}
    (folder / "SHA256SUMS").write_text("".join(f"{found}  {name}\n" for name, found in sums.items()))
    return folder


def hostile(content, secret, sizes):
    "Reason -> graphs that are refused with it."
    n, shares = sum(sizes), equal_shares(sizes)
    def of_domain(domain): return graph_of([onnx.helper.make_node("Gelu", ["photos"], ["probabilities"], domain=domain)])
    return [
        ("damaged", content[:-7]), ("damaged", content[: len(content) // 2]), ("damaged", b""), ("damaged", b"\0" * 99),
        ("damaged", b"<html>not found</html>"), ("damaged", b"ORTM" + content), ("another file", external(secret)),
        ("another file", external(secret.name)), ("another file", external("../" + secret.name)),
        ("com.microsoft", of_domain("com.microsoft")), ("of 'mine'", of_domain("mine")), ("Loop", nested_loop()),
        *(("more than 4 GiB", graph) for graph in hungry()),
        ("ConstantOfShape", inflated(onnx.helper.make_node("ConstantOfShape", ["shape"], ["large"]), shape=np.array([9]))),
        ("field 536870925", numbered_oddly(external("secret.bin"), 5, b"\x6a\x16\x0a\x08location")),
        ("field 536870916", numbered_oddly(nested_loop(), 1, b"\x22\x04Loop")),
        ("field 536870919", numbered_oddly(of_domain("mine"), 1, b"\x3a\x04mine")),
        ("80 x 64", constant(shares, size=(64, 64), n=n)), ("80 x 64", constant(shares, kind=onnx.TensorProto.FLOAT, n=n)),
        ("classes", constant(shares[1:], n=n - 1)),
        ("no probabilities", constant(shares * np.nan, n=n)), ("no probabilities", constant(shares - 1, n=n)),
        ("no probabilities", constant(shares * np.inf, n=n)), ("do not sum to 1", constant(shares / 2, n=n))]


def test_graphs_made_to_do_harm(refused, exported, samples, tmp_path, monkeypatch):
    secret = tmp_path / "secret.bin"
    secret.write_bytes(np.zeros(13, np.float32).tobytes())
    monkeypatch.chdir(tmp_path)
    vocab, content = RuntimeTagger(exported).vocab, (exported / "network.onnx").read_bytes()
    fine = constant(equal_shares(vocab.sizes), n=sum(vocab.sizes))
    assert RuntimeTagger(altered(exported, tmp_path / "fine", fine)).predict(samples.images / "shirt-00001-1.jpg")
    for i, (reason, graph) in enumerate(hostile(content, secret, vocab.sizes)):
        folder = altered(exported, tmp_path / f"altered-{i}", graph)
        refused("test", "--model", folder, "-i", samples.images / "shirt-00001-1.jpg", says=[str(folder), reason])
    (folder / "network.onnx").write_bytes(content)
    refused("test", "--model", folder, "-i", samples.images / "shirt-00001-1.jpg", says=[str(folder), "network.onnx is damaged"])


def test_flipped_bits_are_refused_or_give_probabilities(exported, samples, tmp_path):
    from deep_fashion.core import InputError
    draw, content, photo = np.random.default_rng(0), (exported / "network.onnx").read_bytes(), samples.images / "shirt-00001-1.jpg"
    given = refusals = 0
    for i in range(40):
        flipped = bytearray(content)
        # The structure is small beside the parameters, and comes first.
        flipped[draw.integers(0, 20_000 if i % 2 else len(content))] ^= 1 << int(draw.integers(8))
        folder = altered(exported, tmp_path / str(i), bytes(flipped))
        try: heads = RuntimeTagger(folder).predict(photo)[2].values()
        except InputError as e: refusals += str(e).startswith(f"model {folder}: ") and "\n" not in str(e)
        else: given += all(abs(head.sum() - 1) < 1e-3 for head in heads)
        shutil.rmtree(folder)
    assert given + refusals == 40 and refusals


def hungry_openvino():
    "A network that makes 16 GiB of one number."
    from openvino import Model
    from openvino import opset13 as ops

    from deep_fashion.model.openvino_body import openvino_files
    photos = ops.parameter([-1, 80, 64, 3], np.uint8)
    most = ops.reduce_max(ops.convert(photos, "f32"), ops.constant([0, 1, 2, 3]), False)
    return openvino_files(Model([ops.reduce_max(ops.broadcast(most, ops.constant([2**16, 2**16])), ops.constant([0]), True)], [photos]))


def test_openvino_graphs_made_to_do_harm(command, refused, ensemble, exported, samples, tmp_path):
    pytest.importorskip("openvino", reason="openvino is not installed")
    whole, photo = tmp_path / "openvino", samples.images / "shirt-00001-1.jpg"
    words = "--model", ensemble, "--img_dir", samples.images, "--photos", "20", "--out", whole, "--format", "openvino"
    assert command("export", *words).out.count("100.0% of the labels agree with PyTorch") == 3
    assert command("test", "--model", whole, "-i", photo).out == command("test", "--model", exported, "-i", photo).out
    xml, weights = ((whole / name).read_bytes() for name in ("network.xml", "network.bin"))
    entities = b'<!DOCTYPE net [<!ENTITY a SYSTEM "file:///etc/passwd">]>' + xml.partition(b"?>")[2]
    for i, (reason, *contents) in enumerate((
        ("damaged", xml[:-9], weights), ("damaged", constant(np.zeros(13)), weights), ("damaged", b"", b""),
        ("damaged", xml, weights[:100]), ("declares entities", entities, weights),
        ("Loop", xml.replace(b'type="Convolution"', b'type="Loop"', 1), weights),
        ("prefixes", xml.replace(b"<net ", b'<net xmlns="x" ').replace(b'type="Convolution"', b'type="Loop"', 1), weights),
        ("damaged", entities.decode().encode("utf-16"), weights), ("extension", xml.replace(b'"opset1"', b'"extension"', 1), weights),
        ("more than any tagger", *hungry_openvino()),
        ("damaged", xml.replace(b"64", b"65"), weights),
    )): refused("test", "--model", altered(whole, tmp_path / str(i), *contents), "-i", photo, says=[str(tmp_path / str(i)), reason])
