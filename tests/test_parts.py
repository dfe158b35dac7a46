"A folder of results in parts, whatever else is in it and whoever else writes to it; lists as they come."
import http.server
import json
import threading
from functools import partial
from pathlib import Path

import pandas as pd
import pytest

from deep_fashion.data.csv_dialect import CsvFormat
from deep_fashion.predict.listing import ListedPhotos
from deep_fashion.predict.output_parts import OutputParts, done_name, finished_part, join_parts, list_name, read_list, tags_name, write_part
from deep_fashion.predict.storage import Storage, below, read_place


class Photos(list):
    "A stand-in for `ListedPhotos`."
    columns = []
    def find(self, name): return (name, f"/photos/{name}", None) if name != "absent" else (None, None, "no such image")


def photos(*names): return Photos([pd.DataFrame(dict(filename=names))])


def tag_part(output, part):
    listed = read_list(output.storage, part, output.owner)
    content = "".join(row[0] + "\n" for row in listed["rows"]).encode()
    facts = dict(photos=len(listed["rows"]), errors=[], review=[], tagged=[len(listed["rows"])], known=0)
    write_part(output.storage, part, ("csv", content), facts, output.owner)


def planned(folder, *names, model="1"):
    output = OutputParts(folder, dict(model=model), 2)
    output.plan(photos(*names))
    return output


def files_of(folder): return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_another_command_is_refused_before_anything_is_written(tmp_path):
    first = planned(tmp_path, *"abcd")
    before = files_of(tmp_path)
    with pytest.raises(ValueError, match="with other model"): planned(tmp_path, *"abcd", model="2")
    other = OutputParts(tmp_path, dict(model="1"), 2)
    with pytest.raises(ValueError, match="for other photos"): other.plan(photos(*"efgh"))
    assert not other.keep_finished() and files_of(tmp_path) == before
    for part in first.missing: tag_part(first, part)
    assert join_parts(first, ["neck"])["photos"] == 4


def test_two_commands_that_begin_at_once_mix_nothing(tmp_path):
    first, second = (OutputParts(tmp_path, dict(model=model), 2) for model in "12")
    first.plan(photos(*"abcd"))
    with pytest.raises(ValueError, match="another command has begun"): second.plan(photos(*"efgh"))
    assert not second.keep_finished()
    tag_part(first, 0)
    # In a bucket, the second may not have seen the first.
    second.write_manifest("planned", second.digest)
    facts = dict(photos=2, errors=[], review=[], tagged=[2], known=0)
    with pytest.raises(ValueError, match="another command has written"): write_part(first.storage, 1, ("csv", b""), facts, first.owner)
    with pytest.raises(ValueError, match="another command has written"): join_parts(first, ["neck"])
    with pytest.raises(ValueError, match="is gone, or was changed"): read_list(second.storage, 0, second.owner)
    assert finished_part(second.storage, 0, second.owner) is None
    before = files_of(tmp_path)
    first.keep_finished()
    assert files_of(tmp_path) == before


def test_a_file_that_is_gone_is_one_line(tmp_path):
    output = planned(tmp_path, *"abcd")
    (tmp_path / list_name(1)).unlink()
    with pytest.raises(ValueError, match="list-000001.json: is gone"): tag_part(output, 1)
    with pytest.raises(ValueError, match="part 0 is gone"): join_parts(output, ["neck"])


@pytest.mark.parametrize("harm", [Path.unlink, lambda path: path.write_bytes(b"a"), lambda path: path.write_bytes(b"x\ny\n")])
def test_a_part_that_was_harmed_is_made_again(tmp_path, harm):
    output = planned(tmp_path, *"abcd")
    for part in output.missing: tag_part(output, part)
    harm(tmp_path / tags_name(0, "csv"))
    with pytest.raises(ValueError, match="part 0 is gone, or was changed"): join_parts(output, ["neck"])
    again = planned(tmp_path, *"abcd")
    assert again.missing == [0]
    tag_part(again, 0)
    join_parts(again, ["neck"])
    assert (tmp_path / tags_name(0, "csv")).read_text() == "a\nb\n"
    assert not (tmp_path / done_name(0)).exists() and json.loads((tmp_path / "manifest.json").read_text())["state"] == "complete"


@pytest.mark.parametrize("name", ["notes.txt", "tags/mine.csv", "more/photo.jpg"])
def test_files_of_others_are_kept(tmp_path, name):
    output = planned(tmp_path, *"abcd")
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("mine")
    with pytest.raises(ValueError, match="is kept"): planned(tmp_path, *"abcd")
    assert not output.keep_finished()
    assert list(files_of(tmp_path)) == [tmp_path / name]


def test_names_without_a_place_keep_their_position(tmp_path):
    output = planned(tmp_path, "absent", "a", "b", "absent")
    first, second = (read_list(output.storage, part, output.owner) for part in (0, 1))
    assert (first["positions"], second["positions"]) == ([1], [0])
    assert (first["faults"], second["faults"]) == ([[0, "absent", "no such image"]], [[1, "absent", "no such image"]])


def test_a_relative_name_is_that_of_a_file(tmp_path):
    names = ["p%20q.jpg", "p q.jpg", "h#ash.jpg", "q?x.jpg", "a::b.jpg", "s:t&u.jpg", "ü.jpg"]
    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_): pass
    for name in names: (tmp_path / name).write_text(name)
    (tmp_path / "keys").mkdir()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=tmp_path))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    web = f"http://127.0.0.1:{server.server_port}"
    assert [read_place(below(web, name)).decode() for name in names] == names
    assert read_place(f"{web}/p%20q.jpg").decode() == "p q.jpg" # a whole URL is taken as given
    server.shutdown()
    assert [read_place(below(tmp_path.as_uri(), name)).decode() for name in names] == names
    # By fsspec, as a bucket is.
    bucket = Storage(f"local://{tmp_path}/keys")
    for name in names: bucket.write(name, name.encode())
    assert bucket.names() == sorted(names)
    assert [read_place(below(bucket.place, name)).decode() for name in names] == names
    assert ListedPhotos(bucket.place).find(f"{bucket.place}/h#ash.jpg") == ("h#ash.jpg", f"{bucket.place}/h#ash.jpg", None)


def listed(path, *given):
    "The names in a table, as tagging reads them."
    return [name for rows in ListedPhotos("s3://shop/new", path, [], CsvFormat(*given)) for name in rows.filename]


def test_a_parquet_list_is_read_as_by_training(tmp_path):
    pytest.importorskip("pyarrow", reason="the extra parquet is not installed")
    import pyarrow as pa
    import pyarrow.parquet as pq
    path = tmp_path / "list.parquet"
    def write(**columns): pq.write_table(pa.table(columns), path)
    write(filename=[101, None, 103], vector=[[1.], [2.], None])
    assert listed(path) == ["101", "", "103"]
    write(filename=[" a.jpg", "b.jpg "])
    assert listed(path) == ["a.jpg", "b.jpg"]
    with pytest.raises(ValueError, match="has no delimiter"): listed(path, None, ";")
    pd.DataFrame(dict(sku=[1]), index=pd.Index(["a.jpg"], name="filename")).to_parquet(path)
    assert listed(path) == ["a.jpg"]
    write(filename=[b"a.jpg"])
    with pytest.raises(ValueError, match="'filename' holds binary"): listed(path)
    pq.write_table(pa.table([pa.array(["a.jpg"]), pa.array(["x"]), pa.array(["y"])], names=["filename", "t", "t"]), path)
    with pytest.raises(ValueError, match="'t' occurs twice"): listed(path)


def test_a_damaged_parquet_list_is_one_line_with_its_own_name(tmp_path):
    pytest.importorskip("pyarrow", reason="the extra parquet is not installed")
    path = tmp_path / "list.parquet"
    pd.DataFrame(dict(filename=[f"{i}.jpg" for i in range(5000)])).to_parquet(path)
    content = bytearray(path.read_bytes())
    content[len(content) // 2:len(content) // 2 + 600] = bytes(600)
    path.write_bytes(content)
    place = f"local://{path}"
    with pytest.raises(ValueError, match="is a Parquet file that is damaged") as caught: listed(place)
    assert str(caught.value).startswith(f"{place}: ")
