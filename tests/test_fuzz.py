"""Fuzz: whatever the table, option, photo or file of a run, the outcome is a result or one line about what is wrong.

Every seed is fixed, so a failure is one of the code that changed, and can be repeated."""
import csv
import io
import json
import random
import resource
import string
import tomllib
import typing
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from deep_fashion import cli
from deep_fashion.core import InputError, write_csv
from deep_fashion.data.corrections import correct_table
from deep_fashion.data.csv_dialect import CsvFormat
from deep_fashion.data.file_names import PhotoFinder
from deep_fashion.data.labels import as_label, read_labels_map
from deep_fashion.data.photo import open_photo, photo_fault
from deep_fashion.data.table import Table, read_table
from deep_fashion.evaluate.label_audit import checked_predictions, label_errors, match_predictions
from deep_fashion.run import RUN_FILES, Run
from deep_fashion.settings import Settings, as_toml, plain_value

HEALTH = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]
def examples(n): return settings(derandomize=True, database=None, deadline=None, max_examples=n, suppress_health_check=HEALTH)


def mostly(usual, other, n=6):
    "One value in `n` from `other`, the rest from `usual`."
    return st.integers(1, n).flatmap(lambda i: other if i == n else usual)


def outcome(function, *arguments, **keywords):
    "What a call gives, or None if it refuses its input in one line. Any other exception is a fault."
    with warnings.catch_warnings(record=True) as notes:
        warnings.simplefilter("always")
        try: found = function(*arguments, **keywords)
        except InputError as e:
            found, line = None, str(e)
            assert line.strip() and len(line.splitlines()) == 1 and len(line) < 3000, line
    for note in notes:
        if issubclass(note.category, UserWarning): assert str(note.message).strip()
    return found


# Tables

PHOTOS = ["shirt-1.jpg", "shirt-2.JPG", "tops/polo.png", "tops/größe 纱.jpg", "15970.jpg", "a,b;c.jpg"]


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    "Six small photos, one of them in pieces."
    folder = tmp_path_factory.mktemp("photos")
    (folder / "tops").mkdir()
    for i, name in enumerate(PHOTOS): Image.new("RGB", (6, 8), (40 * i, 90, 255 - 40 * i)).save(folder / name)
    (folder / "broken.jpg").write_bytes((folder / PHOTOS[0]).read_bytes()[:200])
    return folder


TEXTS = st.text(st.characters(codec="utf-8", exclude_characters="\0\r\n"), max_size=12)
GOOD_NAMES = st.sampled_from([*PHOTOS, "broken.jpg", "tops\\polo.png"])
NAMES = mostly(GOOD_NAMES, st.one_of(
    st.sampled_from([*PHOTOS, "broken.jpg", "absent.jpg", "SHIRT-1.jpeg", "shirt-1", "15970", "15970.0", "tops\\polo.png", "polo.png", ""]),
    st.sampled_from(["../secret.jpg", "/etc/passwd", "C:\\photos\\shirt-1.jpg", "https://shop.example/a/shirt-1.jpg?w=3", "shirt%2D1.jpg",
                     "a.jpg|b.jpg", "~/a.jpg", ".", "..", "tops", "x" * 300 + ".jpg", "sh\u200birt-1.jpg", "\ud7ff.jpg"]),
    TEXTS), 4)
GOOD_LABELS = st.sampled_from(["polo", "Polo", "henley", "crew", "6", "6.0", "#N/A", ""])
LABELS = mostly(GOOD_LABELS, st.one_of(
    st.sampled_from(["polo", "Polo", "POLO ", "henley", "henly", "0", "1", "6.0", "6", "-1", "01", "1e3", "true", "True", "yes", "no"]),
    st.sampled_from(["", "#N/A", "nan", "unknown", "-", "?", "n.a.", "None", "[]", "['polo']", "['a', 'b']", "polo, henley",
                     "a|b", "{a: 1}"]),
    st.sampled_from(['5"', '"', 'say "no"', "a\tb", "=1+1", "\u200bpolo", "e\u0301", "é", "x" * 9000, "1" * 5000, "-" * 900, "#REF!"]),
    TEXTS), 3)
GOOD_HEADERS = st.sampled_from(["neck", "pattern", "sleeve_length"])
HEADERS = mostly(GOOD_HEADERS, st.one_of(
    st.sampled_from(["filename", "file", "image", "Neck", "neck", "NECK", "neck ", "pattern", "sleeve_length", "label", "class", "brand"]),
    st.sampled_from(["mean", "is_valid", "fold", "line", "index", "attribute", "price", "title", "id", "url", "date", "sku", "neck=polo",
                     "neck_predicted", "neck_confidence", "", " ", "unnamed 2", "Unnamed: 0", "a.jpg", "n" * 300, "größe", "\ufeffneck"]),
    TEXTS), 3)


@st.composite
def tables(draw, tidy=True):
    "Header and rows; tidy ones have a column `filename`, no name twice, and one cell per column."
    header = draw(st.lists(HEADERS, min_size=1, max_size=5, unique_by=(lambda name: name.strip("\ufeff ")) if tidy else None))
    if tidy: header = ["filename", *(name for name in header if name.strip() != "filename")]
    return header, draw(st.lists(st.tuples(NAMES, *[LABELS] * (len(header) - 1)), min_size=1, max_size=12))


@st.composite
def files(draw):
    "The bytes of a table as people and programs write it, or of what is none."
    header, rows = draw(tables(tidy=draw(st.sampled_from([True, True, True, False]))))
    delimiter, end = draw(st.sampled_from([*",,,;;\t|", " ", "::"])), draw(st.sampled_from(["\n", "\n", "\r\n", "\r"]))
    if len(delimiter) == 1 and draw(st.sampled_from([True, True, False])):
        stream = io.StringIO()
        csv.writer(stream, delimiter=delimiter, lineterminator=end, quoting=draw(st.sampled_from([0, 1, 2]))).writerows([header, *rows])
        text = stream.getvalue()
    else: text = end.join(delimiter.join(cells) for cells in [header, *rows])
    start = draw(st.sampled_from([*[""] * 6, "sep=;\n", "A title\n\n", "\n\n", ",,,\n", "# a comment\n", "\ufeff"]))
    encoding = draw(st.sampled_from([*["utf-8"] * 6, "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "cp1252", "gb18030",
                                     "shift_jis"]))
    return mutated(draw, (start + text).encode(encoding, "replace"))


def mutated(draw, data):
    "`data`, often with a few pieces lost, doubled or replaced."
    for _ in range(draw(st.sampled_from([0, 0, 0, 1, 3]))):
        i = draw(st.integers(0, max(len(data), 1)))
        piece = draw(st.sampled_from([b"", b"\0", b'"', b"\r", b"\n", b",", b"\xff", b"\xef\xbb\xbf", b"\x1a", b'""', data[:40]]))
        data = data[:i] + piece + data[i + draw(st.integers(0, 3)):]
    return data


@examples(500)
@given(content=files(), attributes=st.sampled_from([None, None, None, None, ["neck"], ["neck", "pattern"]]))
def test_any_file_is_a_table_or_refused(photos, tmp_path, content, attributes):
    (tmp_path / "table.csv").write_bytes(content)
    table = outcome(read_table, tmp_path / "table.csv", photos, attributes)
    if table is None: return
    assert isinstance(table, Table) and table.attributes and not table.rows.filename.duplicated().any()
    assert set(table.rows.filename) <= {*PHOTOS} and set(table.lines) == set(table.rows.filename)
    assert table.dropped.reason.map(bool).all() and table.rows[table.attributes].notna().any(axis=None)


@examples(250)
@given(content=tables(), delimiter=st.sampled_from(",;\t|"), encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "gb18030"]))
def test_no_row_of_a_written_table_is_lost(photos, tmp_path, content, delimiter, encoding):
    header, rows = content
    with open(tmp_path / "table.csv", "w", encoding=encoding, newline="") as f:
        csv.writer(f, delimiter=delimiter).writerows([header, *rows])
    table = outcome(read_table, tmp_path / "table.csv", photos, csv_format=CsvFormat("filename", delimiter, encoding))
    if table is None: return
    filled = [number for number, cells in enumerate(rows, 2) if any(cell.strip() for cell in cells)]
    assert sorted([*table.lines.values(), *table.dropped.line]) == filled
    write_csv(tmp_path / "again.csv", table.rows[["filename", *table.attributes]])
    # Whether a label is a list depends on the others of its column, some of which are gone.
    kept = {a: {label: label for label in table.rows[a].dropna()} for a in table.attributes}
    again = read_table(tmp_path / "again.csv", photos, table.attributes, labels_map=kept, csv_format=CsvFormat("filename", ",", "utf-8"))
    pd.testing.assert_frame_equal(again.rows, table.rows[["filename", *table.attributes]])


CELLS = mostly(GOOD_LABELS, st.one_of(
    LABELS, NAMES, st.none(), st.booleans(), st.integers(), st.floats(), st.dates(), st.datetimes(), st.binary(max_size=4),
    st.lists(st.integers(0, 3), max_size=2), st.just(np.array([1, 2])), st.just(pd.NaT), st.just(pd.NA), st.just(Path("shirt-1.jpg"))), 3)
COLUMNS = mostly(HEADERS, st.one_of(st.integers(), st.none(), st.tuples(st.text("ab"))))


@examples(150)
@given(header=st.lists(COLUMNS, min_size=1, max_size=4), data=st.data())
def test_any_data_frame_is_a_table_or_refused(photos, header, data):
    rows = data.draw(st.lists(st.tuples(NAMES, *[CELLS] * len(header)), max_size=6))
    outcome(read_table, pd.DataFrame(rows, columns=pd.Index(["filename", *header], tupleize_cols=False)), photos)


PARTS = st.sampled_from(["..", ".", "", "/", "\\", "tops", "shirt-1.jpg", "%2e%2e", "C:", "file://", "\n"])


@examples(300)
@given(name=st.one_of(NAMES, st.lists(PARTS).map("/".join)))
def test_no_name_leads_out_of_the_folder(photos, name):
    found = PhotoFinder(photos).find(name)
    assert bool(found.name) != bool(found.fault)
    if found.name: assert (photos / found.name).resolve().is_relative_to(photos.resolve())


@examples(200)
@given(label=st.one_of(LABELS, st.text(max_size=20)))
def test_a_label_is_read_as_itself(label):
    read = as_label(label)
    assert read is None or as_label(read) == read


@pytest.fixture(scope="module")
def labelled(photos, tmp_path_factory):
    path = tmp_path_factory.mktemp("tables") / "table.csv"
    labels = ["polo,solid", "henley,dots", "Polo,solid", ",dots", "polo,", "henley,solid"]
    quoted = ['"' + name + '"' for name in PHOTOS]
    path.write_text("filename,neck,pattern\n" + "".join(f"{name},{of_photo}\n" for name, of_photo in zip(quoted, labels)), encoding="utf-8")
    return path


@st.composite
def small_files(draw, columns, *cells):
    "The bytes of a table with these columns, some missing or doubled."
    columns = draw(mostly(st.just(columns), st.lists(st.sampled_from([*columns, "", "photos"]), max_size=5)))
    rows = [draw(st.tuples(*cells)) for _ in range(draw(st.integers(0, 5)))]
    stream = io.StringIO()
    csv.writer(stream, delimiter=draw(st.sampled_from(",;\t")), lineterminator="\n").writerows([columns, *rows])
    return mutated(draw, stream.getvalue().encode())


@examples(200)
@given(content=small_files(["attribute", "label", "use"], st.sampled_from(["neck", "pattern", "Neck", "colour", ""]), LABELS, LABELS))
def test_any_map_of_labels_is_used_or_refused(labelled, photos, tmp_path, content):
    (tmp_path / "map.csv").write_bytes(content)
    found = outcome(read_labels_map, tmp_path / "map.csv")
    if found is not None: assert all(label and use != "" for labels in found.values() for label, use in labels.items())
    table = outcome(read_table, labelled, photos, labels_map=tmp_path / "map.csv")
    if table is None: return
    for attribute, labels in found.items():
        replaced = {label for label, use in labels.items() if use != label and label not in labels.values()}
        if attribute in table.attributes: assert not replaced & set(table.rows[attribute].dropna())


ANSWERS = mostly(st.sampled_from(["polo", "", "solid", "dots"]), LABELS, 20)


@examples(200)
@given(content=small_files(["filename", "neck", "pattern"], NAMES, ANSWERS, ANSWERS), new_classes=st.booleans())
def test_any_corrections_are_used_or_refused(labelled, photos, tmp_path, content, new_classes):
    (tmp_path / "corrections.csv").write_bytes(content)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        table = read_table(labelled, photos)
    corrected = outcome(correct_table, table, tmp_path / "corrections.csv", new_classes=new_classes)
    if corrected is None: return
    assert set(corrected.rows.filename) >= set(table.rows.filename) and not corrected.rows.filename.duplicated().any()
    if not new_classes:
        for a in table.attributes: assert set(corrected.rows[a].dropna()) <= set(table.rows[a].dropna())


# Options

GOOD_WORDS = st.sampled_from(["a", "runs/first", "neck,pattern", "224", "3"])
WORDS = st.one_of(st.sampled_from(["", "a", "runs/first", "neck,pattern", "neck=6,pattern=class", "auto", "224", "480x360", "-1", "0",
                                   "1e9", "nan", "inf", "true", "whole", "int8", "a/b", "..", "1" * 5000, "٣٢", "²"]),
                  st.text(max_size=8), st.text("0123456789.-+exX_ ", max_size=6))
VALUES = st.one_of(st.none(), st.booleans(), st.integers(-3, 300), st.integers(), st.floats(), WORDS, st.lists(WORDS, max_size=3),
                   st.dictionaries(WORDS, WORDS, max_size=2), st.tuples(st.integers(), st.integers()), st.binary(max_size=3))
COMMANDS = {command.name: command for command in cli.COMMANDS}


USUAL = {int: st.integers(0, 300), float: st.floats(0, 1), bool: st.booleans(), dict: st.dictionaries(WORDS, WORDS, max_size=2),
         list: st.lists(st.sampled_from(["neck", "pattern"]), max_size=2), tuple: st.tuples(st.integers(30, 99), st.integers(30, 99))}


def usable(field):
    "Values that a field mostly takes."
    kinds = [kind for kind in typing.get_args(field.annotation) or [field.annotation] if kind is not type(None)]
    kinds = [value for kind in kinds for value in (typing.get_args(kind) if typing.get_origin(kind) is typing.Literal else [kind])]
    text = st.text(string.ascii_letters + "-_", min_size=1)
    usual = [st.just(kind) if isinstance(kind, str) else USUAL.get(typing.get_origin(kind) or kind, text) for kind in kinds]
    return mostly(st.one_of(*usual), VALUES, 20)


def likely(settings_type):
    "Values for all that has to be given, and for some of the rest."
    fields = settings_type.model_fields
    required = {name: usable(field) for name, field in fields.items() if field.is_required()}
    return st.fixed_dictionaries(required, optional={name: usable(field) for name, field in fields.items() if name not in required})


@pytest.mark.parametrize("name", COMMANDS)
@examples(80)
@given(data=st.data())
def test_any_values_are_settings_or_refused(tmp_path, name, data):
    settings_type = COMMANDS[name].settings
    values = {**data.draw(likely(settings_type)), **data.draw(st.sampled_from([{}] * 9 + [{"x": 1}, {"epoch": 3}]))}
    found = outcome(settings_type, **values)
    if found is None: return
    kept = {name: value for name, value in found.model_dump(exclude_unset=True).items() if value is not None}
    saved = {name: value for name, value in kept.items() if settings_type.model_fields[name].json_schema_extra["saved"]}
    (tmp_path / "settings.toml").write_text(as_toml(settings_type, saved), encoding="utf-8")
    assert settings_type(**{**kept, **settings_type.read(tmp_path / "settings.toml")}) == found.model_copy()
    assert {name: plain_value(value) for name, value in saved.items()} == tomllib.loads((tmp_path / "settings.toml").read_text("utf-8"))


@pytest.fixture
def harmless(monkeypatch):
    "The command line without the work: commands keep their settings."
    seen = []
    monkeypatch.setattr(cli, "COMMANDS", [command._replace(run=lambda settings: seen.append(settings)) for command in cli.COMMANDS])
    return seen


@st.composite
def command_lines(draw):
    "Words of a command line: a command, mostly with what it needs, and options with any values."
    name = draw(st.sampled_from(list(COMMANDS)))
    fields, words = COMMANDS[name].settings.model_fields, [name]
    for option in [*(o for o in fields if fields[o].is_required()), *draw(st.lists(st.sampled_from([*fields, "x", "config"]), max_size=4))]:
        odd = st.sampled_from([[f"--{option}={draw(WORDS)}"], [f"--no-{option}"], [f"--{option}"]])
        value = draw(mostly(GOOD_WORDS, WORDS, 8))
        words += draw(mostly(st.just([value] if option in COMMANDS[name].arguments else [f"--{option}", value]), odd, 8))
    return [word.replace("\0", "") for word in draw(mostly(st.just(words), st.one_of(st.lists(WORDS, max_size=4), st.permutations(words))))]


@examples(250)
@given(words=command_lines())
def test_any_command_line_runs_or_is_refused(command, harmless, words):
    if {"-h", "--help", "--version"} & {*words}: return
    result = command(*words)
    assert result.status in (0, 2) and "Traceback" not in result.err, result.err
    if result.status == 2: assert len([line for line in result.err.splitlines() if line.strip()]) == 1, result.err


ODD_LINES = st.sampled_from(["[labels]", "a = ", "= 3", "size = [1, 2", "epochs = 1979-05-27", "epochs = inf", "size = 0x40",
                             "[catch_all]\nneck = 'class'", "catch_all.neck = 6", "# a comment", "'' = 1", "a.b.c = 1"])


@st.composite
def configurations(draw):
    "Text that is a configuration file, or nearly."
    values = draw(likely(Settings))
    lines = [f"{draw(st.sampled_from([name] * 99 + ['x']))} = {json.dumps(value, default=str)}" for name, value in values.items()]
    lines += draw(st.lists(ODD_LINES, max_size=1))
    return mutated(draw, "\n".join(lines).encode("utf-8", "replace"))


@examples(250)
@given(content=configurations())
def test_any_configuration_is_read_or_refused(tmp_path, content):
    (tmp_path / "settings.toml").write_bytes(content)
    values = outcome(Settings.read, tmp_path / "settings.toml")
    if values is not None: outcome(Settings, **values)


# Photos

def drawn(mode):
    "A small photo that is not of one colour."
    values = np.random.default_rng(0).integers(0, 256, (24, 20, 4), dtype=np.uint8)
    values[..., :3] //= 3
    return Image.fromarray(values, "RGBA").convert({"I;16": "L"}.get(mode, mode)).convert(mode)


def photo_files():
    "Name -> bytes of a photo, in every format that Pillow writes here, in several modes and ways."
    Image.init()
    ways = [dict(format="JPEG", progressive=True), dict(format="TIFF", compression="tiff_lzw"), dict(format="WEBP", lossless=True)]
    found = {}
    for way in [*(dict(format=name) for name in sorted(Image.SAVE)), *ways]:
        for mode in ("RGB", "RGBA", "L", "P", "1", "CMYK", "I;16", "F"):
            stream = io.BytesIO()
            try: drawn(mode).save(stream, **way)
            except (OSError, ValueError, KeyError, RuntimeError, AttributeError): continue
            found["-".join([*map(str, way.values()), mode])[:40]] = stream.getvalue()
    return found


EXTREMES = [b"\0\0", b"\xff\xff", b"\x7f\xff", b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\0\0\xff\xff", b"\xff\xff\0\0"]


def damaged(data, chance):
    "`data` with one kind of damage, or several."
    i, j = sorted(chance.randrange(len(data)) for _ in range(2))
    head = chance.randrange(min(len(data), 120))
    kinds = [lambda: data[:i], lambda: data[i:], lambda: data[:i] + data[j:], lambda: data[:j] + data[i:], lambda: data + data,
             lambda: data[:i] + bytes(j - i) + data[j:], lambda: data[:i] + chance.randbytes(j - i) + data[j:],
             lambda: data[:i] + bytes([data[i] ^ 1 << chance.randrange(8)]) + data[i + 1:],
             lambda: data[:head] + bytes([chance.randrange(256)]) + data[head + 1:],
             *[lambda: data[:head] + (extreme := chance.choice(EXTREMES)) + data[head + len(extreme):]] * 3]
    data = chance.choice(kinds)()
    return damaged(data, chance) if data and chance.random() < .3 else data


def peak_memory(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def test_any_damaged_photo_is_opened_or_refused(tmp_path):
    chance, names = random.Random(0), ["a.jpg", "a.png", "a", "a.tif", "a.heic", "a.txt"]
    found, before = {True: 0, False: 0}, peak_memory()
    for data in photo_files().values():
        for _ in range(12):
            path = tmp_path / chance.choice(names)
            path.write_bytes(damaged(data, chance))
            image, fault = outcome(open_photo, path), outcome(photo_fault, path)
            found[image is not None] += 1
            assert (image is None) == (fault is not None), fault
            if image is not None: assert image.mode == "RGB" and min(image.size) > 0
            else: assert fault.strip() and len(fault.splitlines()) == 1
    assert min(found.values()) > 100 and peak_memory() - before < 2**29


# Files of a run

def changed(value, chance):
    "Content of JSON, with one part of it lost or replaced."
    if isinstance(value, (dict, list)) and value and chance.random() < .9:
        key = chance.choice(list(value) if isinstance(value, dict) else range(len(value)))
        value = value.copy()
        if chance.random() < .2: del value[key]
        else: value[key] = changed(value[key], chance)
        return value
    return chance.choice([None, 0, -1, 1e308, "x", "", [], {}, True, [1], {"a": 1}, "٣"])


def audited(run):
    "Labels that contradict the predictions of a run, as `analyze --run` finds them."
    rows = pd.DataFrame(dict(filename=[f"shirt-{i:05}-1.jpg" for i in range(1, 40)], neck="1", pattern="solid"))
    found = match_predictions(checked_predictions(run.predictions, ["neck", "pattern"]), rows, ["neck", "pattern"])
    return label_errors(found, ["neck", "pattern"])


READERS = dict(metrics=lambda run: (run.metrics, run.scores), config=lambda run: (run.config, run.settings), predictions=audited,
               history=lambda run: run.history, batches=lambda run: run.batches,
               settings=lambda run: Settings(**Settings.read(run.file("settings"))))


@pytest.mark.parametrize("content", READERS)
def test_any_damaged_file_of_a_run_is_read_or_refused(trained, tmp_path, content):
    chance, run, data = random.Random(0), Run(tmp_path / "run"), Run(trained).file(content).read_bytes()
    run.path.mkdir()
    for _ in range(100):
        is_parsed = RUN_FILES[content][0].endswith(".json") and chance.random() < .7
        run.file(content).write_bytes(json.dumps(changed(json.loads(data), chance)).encode() if is_parsed else damaged(data, chance))
        outcome(READERS[content], run)


def test_an_audit_refuses_damaged_predictions(command, trained, samples, tmp_path):
    chance, run, statuses = random.Random(0), Run(tmp_path / "run"), set()
    run.path.mkdir()
    for i in range(6):
        run.file("predictions").write_bytes(damaged(Run(trained).file("predictions").read_bytes(), chance))
        result = command("analyze", "--csv_path", samples.csv, "--img_dir", samples.images, "--run", run.path, "--out", f"out{i}")
        assert result.status in (0, 2) and "Traceback" not in result.err, result.err
        statuses.add(result.status)
    assert 2 in statuses
