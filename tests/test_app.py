"The page as a person uses it in a browser, and its API as a program uses it."
import json
import socket
import sys
from hashlib import sha256
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image

from deep_fashion.data.corrections import correct_table
from deep_fashion.data.table import read_table

gradio_client = pytest.importorskip("gradio_client", reason="the extra 'app' is not installed")
httpx = pytest.importorskip("httpx", reason="the extra 'app' is not installed")


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@pytest.fixture(scope="module")
def served(trained, tmp_path_factory):
    "A running page, its address, and its file of corrections."
    from deep_fashion.app.server import serve_app
    port, corrections = free_port(), tmp_path_factory.mktemp("app") / "corrections.csv"
    page = serve_app(trained / "learn.pkl", port, corrections, wait=False)
    yield page, f"http://127.0.0.1:{port}", corrections
    page.close()


@pytest.fixture(scope="module")
def client(served): return gradio_client.Client(served[1], verbose=False)


def kept_photos(page):
    return [path.name for path in Path(page.folder.name).rglob("*") if path.suffix.lower() in (".jpg", ".png")]


def test_a_person_uploads_looks_corrects_and_downloads(browser, served, samples, tmp_path):
    page, address, corrections = served
    names = ["shirt-00001-1.jpg", "shirt-00002-1.jpg"]
    (tmp_path / "notes.jpg").write_text("not a photo")
    tab = browser(width=1200)
    tab.goto(address)
    tab.set_input_files("input[type=file]", [*(samples.images / name for name in names), tmp_path / "notes.jpg"])
    tab.get_by_role("status").filter(has_text="2 photos tagged, 1 could not be read").wait_for()
    table = tab.get_by_role("table")
    assert all(table.get_by_role("rowheader", name=name).is_visible() for name in names)
    assert table.get_by_text("cannot be read as an image").is_visible()
    # The map is chosen by keyboard.
    tab.get_by_label("the photo alone").focus()
    tab.keyboard.press("Tab")
    tab.keyboard.press("Space")
    tab.get_by_text("where the evidence for neck").wait_for()
    tab.get_by_label("neck is really").click()
    tab.get_by_role("option", name="polo").click()
    tab.get_by_role("button", name="Save corrections").click()
    tab.get_by_role("status").filter(has_text="neck polo").wait_for()
    assert table.get_by_text("polo corrected").is_visible()
    with tab.expect_download() as download: tab.get_by_role("button", name="Download as CSV").click()
    tags = pd.read_csv(download.value.path(), dtype=str, keep_default_na=False).set_index("filename")
    assert list(tags.index) == names and tags.neck[names[0]] == "2" and tags.neck_confidence[names[0]] == "#N/A"
    assert 0 < float(tags.neck_confidence[names[1]]) <= 1
    assert {request.split("/")[2] for request in tab.requests if request.startswith("http")} == {address.removeprefix("http://")}
    assert kept_photos(page) == []
    learned = correct_table(read_table(samples.csv, samples.images), corrections).rows.set_index("filename")
    assert learned.neck[names[0]] == "2"


def test_of_two_photos_with_one_name_only_the_corrected_one_changes(browser, served, samples, tmp_path):
    _, address, corrections = served
    photos = [tmp_path / folder / "same.jpg" for folder in "ab"]
    for i, photo in enumerate(photos, start=1):
        photo.parent.mkdir()
        photo.write_bytes((samples.images / f"shirt-{i:05}-1.jpg").read_bytes())
    tab = browser(width=1200)
    tab.goto(address)
    tab.set_input_files("input[type=file]", photos)
    tab.get_by_role("status").filter(has_text="2 photos tagged").wait_for()
    tab.get_by_label("Photo", exact=True).click()
    tab.get_by_role("option", name="same.jpg (row 2)").click()
    tab.get_by_label("pattern is really").click()
    tab.get_by_role("option", name="dotted").click()
    tab.get_by_role("button", name="Save corrections").click()
    tab.get_by_role("status").filter(has_text="pattern dotted").wait_for()
    first, second = tab.get_by_role("table").get_by_role("row").filter(has_text="same.jpg").all()
    assert "corrected" in second.inner_text() and "corrected" not in first.inner_text()
    stored = pd.read_csv(corrections, dtype=str).set_index("filename")
    assert stored.pattern["same.jpg"] == "3" and tab.errors == []


def test_two_photos_with_one_name_keep_their_own_corrections(browser, served, samples, tmp_path):
    _, address, corrections = served
    photos = [tmp_path / folder / "twice.jpg" for folder in "ab"]
    for i, photo in enumerate(photos, start=1):
        photo.parent.mkdir()
        photo.write_bytes((samples.images / f"shirt-{i:05}-1.jpg").read_bytes())
    tab = browser(width=1200)
    tab.goto(address)
    tab.set_input_files("input[type=file]", photos)
    tab.get_by_role("status").filter(has_text="2 photos tagged").wait_for()
    for row, label in ((1, "dotted"), (2, "striped")):
        tab.get_by_label("Photo", exact=True).click()
        tab.get_by_role("option", name=f"twice.jpg (row {row})").click()
        tab.get_by_label("pattern is really").click()
        tab.get_by_role("option", name=label).click()
        tab.get_by_role("button", name="Save corrections").click()
        tab.get_by_role("status").filter(has_text=f"pattern {label}").wait_for()
    first, second = tab.get_by_role("table").get_by_role("row").filter(has_text="twice.jpg").all()
    assert "dotted corrected" in first.inner_text() and "striped corrected" in second.inner_text()
    with tab.expect_download() as download: tab.get_by_role("button", name="Download as CSV").click()
    assert list(pd.read_csv(download.value.path(), dtype=str).pattern) == ["3", "1"]
    stored = pd.read_csv(corrections, dtype=str).query("filename == 'twice.jpg'").set_index("sha256").pattern
    assert dict(stored) == {sha256(photo.read_bytes()).hexdigest(): label for photo, label in zip(photos, "31")}


def test_on_a_phone_nothing_sticks_out(browser, served, samples):
    tab = browser(width=390, dark=True)
    tab.goto(served[1])
    tab.set_input_files("input[type=file]", samples.images / "shirt-00001-1.jpg")
    tab.get_by_role("status").filter(has_text="1 photo tagged").wait_for()
    assert tab.evaluate("document.documentElement.scrollWidth") <= 390


def test_api_returns_tags(client, served, samples, tmp_path):
    odd = tmp_path / "größe (1) & so.jpg"
    odd.write_bytes((samples.images / "shirt-00001-1.jpg").read_bytes())
    (tmp_path / "cut.jpg").write_bytes(odd.read_bytes()[:900])
    paths = odd, samples.images / "shirt-00002-1.jpg", tmp_path / "cut.jpg"
    first, second, cut = client.predict([gradio_client.handle_file(path) for path in paths], api_name="/tag")
    assert first["filename"] == odd.name and set(first["attributes"]) == {"neck", "sleeve_length", "pattern"}
    assert sum(found["probability"] for found in first["attributes"]["neck"]) == pytest.approx(1, abs=0.01)
    assert "attributes" in second and "cannot be read" in cut["error"]
    assert kept_photos(served[0]) == []


def request_tags(address, paths, **headers):
    "The API's answer to a request that only names paths, without an upload."
    started = httpx.post(f"{address}/gradio_api/call/tag", json={"data": [[{"path": str(path)} for path in paths]]}, headers=headers)
    if started.status_code != 200: return started
    return httpx.get(f"{address}/gradio_api/call/tag/{started.json()['event_id']}", timeout=60)


def test_files_that_were_not_uploaded_are_neither_opened_nor_removed(served, samples, tmp_path):
    page, address, _ = served
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "notes.txt").write_text("mine")
    photo = folder / "photo.jpg"
    photo.write_bytes((samples.images / "shirt-00001-1.jpg").read_bytes())
    inside = Path(page.folder.name) / "linked"
    inside.mkdir()
    (inside / "photo.jpg").symlink_to(photo)
    (Path(page.folder.name) / "door").symlink_to(folder)
    linked = inside / "photo.jpg", Path(page.folder.name) / "door" / "photo.jpg"
    paths = [folder / "notes.txt", photo, folder / "absent.jpg", folder, *linked,
             f"{page.folder.name}/linked/../../{photo.relative_to('/')}", page.folder.name, "/etc/hostname", "", "a\0b"]
    answer = request_tags(address, paths).text
    answers = json.loads(answer.split("data: ", 1)[1].splitlines()[0])[0]
    assert len(answers) == len(paths) and {found["error"] for found in answers} == {"is no file that was uploaded to this page"}
    assert (folder / "notes.txt").read_text() == "mine" and photo.exists() and (inside / "photo.jpg").is_symlink()
    (inside / "photo.jpg").unlink()


@pytest.mark.parametrize("files", [None, "a.jpg", [None], ["a.jpg"], [{}], [{"path": 5}], [{"path": "a.jpg", "orig_name": 5}]])
def test_malformed_requests_are_answered_in_one_line(served, files):
    started = httpx.post(f"{served[1]}/gradio_api/call/tag", json={"data": [files]})
    answer = httpx.get(f"{served[1]}/gradio_api/call/tag/{started.json()['event_id']}", timeout=60).text
    event, data, *_ = answer.splitlines()
    assert event == "event: error" and json.loads(data.removeprefix("data: "))["error"].startswith("expected a ")


def test_other_hosts_are_refused(served):
    assert httpx.get(served[1]).status_code == 200
    assert httpx.get(served[1], headers={"Host": "evil.example"}).status_code == 400
    assert request_tags(served[1], ["/etc/hostname"], Host="evil.example:7860").status_code == 400


def test_uploads_are_bounded(client, served, samples, tmp_path):
    photo = gradio_client.handle_file(samples.images / "shirt-00001-1.jpg")
    with pytest.raises(Exception, match="at most 50"): client.predict([photo] * 51, api_name="/tag")
    Image.effect_noise((5000, 5000), 100).save(tmp_path / "large.png")
    assert (tmp_path / "large.png").stat().st_size > 20 * 2**20
    with pytest.raises(ValueError, match="maximum file size"):
        client.predict([gradio_client.handle_file(tmp_path / "large.png")], api_name="/tag")
    # Other clients do not check the size themselves.
    with (tmp_path / "large.png").open("rb") as photo:
        assert httpx.post(f"{served[1]}/gradio_api/upload", files={"files": photo}).status_code == 413
    assert kept_photos(served[0]) == []


def test_mistakes_are_one_line(refused, trained, samples, tmp_path, served, monkeypatch):
    (tmp_path / "other.csv").write_text("filename,colour\na.jpg,red\n")
    model = trained / "learn.pkl"
    refused("app", "--model", tmp_path / "none.pkl", says=["none.pkl", "no such file"])
    refused("app", "--model", model, "--port", "0", says=["port 0", "65535"])
    refused("app", "--model", model, "--corrections", tmp_path / "other.csv", says=["other.csv", "no column 'neck'"])
    used_port = served[1].rsplit(":", 1)[1]
    refused("app", "--model", model, "--corrections", tmp_path / "c.csv", "--port", used_port, says=["port", "cannot be used"])
    monkeypatch.setitem(sys.modules, "gradio", None)
    refused("app", "--model", model, says=["gradio is not installed", "deep_fashion[app]"])
