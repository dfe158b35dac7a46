"The page as a person uses it in a browser, and its API as a program uses it."
import json
import os
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
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
    page = serve_app(trained / "learn.pkl", port, corrections)
    yield page.url, corrections
    page.close()
    assert not page_folder().exists()


@pytest.fixture(scope="module")
def client(served): return gradio_client.Client(served[0], verbose=False)


def page_folder(): return Path(os.environ["GRADIO_TEMP_DIR"])


def kept_photos(): return [path.name for path in page_folder().rglob("*") if path.is_file() and path.name != "tags.csv"]


def test_a_person_uploads_looks_corrects_and_downloads(browser, served, samples, tmp_path):
    address, corrections = served
    names = ["shirt-00001-1.jpg", "shirt-00002-1.jpg"]
    (tmp_path / "notes.jpg").write_text("not a photo")
    tab = browser(width=1200)
    tab.goto(address)
    tab.set_input_files("input[type=file]", [*(samples.images / name for name in names), tmp_path / "notes.jpg"])
    tab.get_by_role("status").filter(has_text="2 photos tagged, 1 could not be read").wait_for()
    table = tab.get_by_role("table")
    assert all(table.get_by_role("rowheader").filter(has_text=name).get_by_role("button").is_visible() for name in names)
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
    assert "polo 2 corrected" in table.inner_text()
    with tab.expect_download() as download: tab.get_by_role("button", name="Download as CSV").click()
    tags = pd.read_csv(download.value.path(), dtype=str, keep_default_na=False).set_index("filename")
    assert list(tags.index) == names and tags.neck[names[0]] == "2" and tags.neck_confidence[names[0]] == "#N/A"
    assert 0 < float(tags.neck_confidence[names[1]]) <= 1
    assert {request.split("/")[2] for request in tab.requests if request.startswith("http")} == {address.removeprefix("http://")}
    assert kept_photos() == []
    learned = correct_table(read_table(samples.csv, samples.images), corrections).rows.set_index("filename")
    assert learned.neck[names[0]] == "2"


def test_two_photos_with_one_name_keep_their_own_corrections(browser, served, samples, tmp_path):
    address, corrections = served
    photos = [tmp_path / folder / "twice.jpg" for folder in "ab"]
    for i, photo in enumerate(photos, start=1):
        photo.parent.mkdir()
        photo.write_bytes((samples.images / f"shirt-{i:05}-1.jpg").read_bytes())
    tab = browser(width=1200)
    tab.goto(address)
    tab.set_input_files("input[type=file]", photos)
    tab.get_by_role("status").filter(has_text="2 photos tagged").wait_for()
    for row, label in ((1, "dotted"), (2, "striped")):
        tab.get_by_role("table").get_by_role("row").nth(row).click()
        tab.get_by_role("table").get_by_role("row").nth(row).and_(tab.locator(".df-chosen")).wait_for()
        tab.get_by_label("pattern is really").click()
        tab.get_by_role("option", name=label).click()
        tab.get_by_role("button", name="Save corrections").click()
        tab.get_by_role("status").filter(has_text=f"pattern {label}").wait_for()
        first, second = tab.get_by_role("table").get_by_role("row").filter(has_text="twice.jpg").all()
        assert "corrected" in first.inner_text() and ("corrected" in second.inner_text()) == (label == "striped")
    assert "dotted 3 corrected" in first.inner_text() and "striped 1 corrected" in second.inner_text()
    with tab.expect_download() as download: tab.get_by_role("button", name="Download as CSV").click()
    assert list(pd.read_csv(download.value.path(), dtype=str).pattern) == ["3", "1"]
    stored = pd.read_csv(corrections, dtype=str).query("filename == 'twice.jpg'").set_index("sha256").pattern
    assert dict(stored) == {sha256(photo.read_bytes()).hexdigest(): label for photo, label in zip(photos, "31")} and tab.errors == []


def drop(tab, photos, then):
    "Drop photos on the page and wait for its answer."
    tab.set_input_files("input[type=file]", photos)
    tab.get_by_role("status").filter(has_text=then).wait_for()


def test_later_photos_are_added_the_same_once_and_the_page_can_be_cleared(browser, served, samples):
    address, corrections = served
    photos = [samples.images / f"shirt-{i:05}-1.jpg" for i in range(1, 5)]
    tab = browser(width=1280)
    tab.goto(address)
    drop(tab, photos[:2], "2 photos tagged.")
    drop(tab, photos[1:], "2 photos tagged, 1 already on the page.")
    drop(tab, photos[:1], "0 photos tagged, 1 already on the page.")
    rows = tab.get_by_role("table").locator("tbody tr")
    assert [photo.name in row.inner_text() for photo, row in zip(photos, rows.all(), strict=True)] == [True] * 4
    assert rows.first.locator("img").evaluate("image => image.naturalWidth > 20")
    with tab.expect_download() as download: tab.get_by_role("button", name="Download as CSV").click()
    assert list(pd.read_csv(download.value.path()).filename) == [photo.name for photo in photos]
    kept = corrections.read_bytes()
    tab.get_by_role("button", name="Clear the page").click()
    tab.get_by_role("status").filter(has_text="The page is empty").wait_for()
    assert rows.count() == 0 and corrections.read_bytes() == kept and tab.errors == []
    drop(tab, photos[:1], "1 photo tagged.")
    assert rows.count() == 1


def test_a_row_is_chosen_by_keyboard_and_the_table_sorted(browser, served, samples):
    photos = [samples.images / f"shirt-{i:05}-1.jpg" for i in range(1, 6)]
    tab = browser(width=1280)
    tab.goto(served[0])
    drop(tab, photos, "5 photos tagged.")
    table = tab.get_by_role("table")
    table.get_by_role("button", name=photos[3].name).focus()
    tab.keyboard.press("Enter")
    tab.locator(".df-photo figcaption").filter(has_text=photos[3].name).wait_for()
    tab.get_by_role("button", name="next photo").click()
    tab.locator(".df-photo figcaption").filter(has_text=photos[4].name).wait_for()
    assert photos[4].name in table.locator("tr.df-chosen").inner_text()
    head = table.locator("th", has_text="neck").first
    def confidences(): return [int(text.rstrip("%")) for text in table.locator("tbody td:nth-child(2) .df-quiet").all_inner_texts()]
    for direction, is_reversed in (("ascending", False), ("descending", True)):
        head.get_by_role("button").click()
        table.locator(f"th[aria-sort={direction}]", has_text="neck").wait_for()
        assert confidences() == sorted(confidences(), reverse=is_reversed) and len(confidences()) == 5
    # A tint marks what the legend calls unsure, and the tags that are counted.
    counted = tab.locator(".df-tools").inner_text()
    assert f"5 photos, {table.locator('td.df-unsure').count()} of 15 tags unsure" in counted
    assert "unsure: " in tab.locator(".df-legend").inner_text() and tab.errors == []


def test_names_of_files_are_text(browser, served, samples, tmp_path):
    odd = tmp_path / "${1+1}{{value}}<i>&.jpg"
    odd.write_bytes((samples.images / "shirt-00001-1.jpg").read_bytes())
    tab = browser(width=1280)
    tab.goto(served[0])
    drop(tab, odd, "1 photo tagged.")
    assert tab.get_by_role("table").get_by_role("button", name=odd.name, exact=False).count() == 1
    assert odd.name in tab.locator(".df-photo figcaption").inner_text() and tab.errors == []


def test_the_example_for_programs_works_as_it_is(browser, served, samples, tmp_path):
    tab = browser(width=1280)
    tab.goto(served[0])
    tab.get_by_text("Use it from a program").click()
    program = tab.locator(".df-program code")
    program.filter(has_text=served[0]).wait_for()
    (tmp_path / "photo.jpg").write_bytes((samples.images / "shirt-00001-1.jpg").read_bytes())
    command = [sys.executable, "-c", program.inner_text()]
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stderr
    tags = [line.split() for line in ran.stdout.splitlines() if line.split()[0] in ("neck", "sleeve_length", "pattern")]
    assert len(tags) == 3 and all(0 < float(tag[-1]) <= 1 for tag in tags)


def test_on_a_phone_nothing_sticks_out(browser, served, samples):
    tab = browser(width=390, dark=True)
    tab.goto(served[0])
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
    assert kept_photos() == []


def request_tags(address, paths, headers=None, **facts):
    "The API's answer to a request that only names paths, without an upload."
    files = [{"path": str(path), **facts} for path in paths]
    started = httpx.post(f"{address}/gradio_api/call/tag", json={"data": [files]}, headers=headers)
    if started.status_code != 200: return started
    return httpx.get(f"{address}/gradio_api/call/tag/{started.json()['event_id']}", timeout=60)


def test_files_that_were_not_uploaded_are_neither_opened_nor_removed(served, samples, tmp_path):
    address = served[0]
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "notes.txt").write_text("mine")
    photo = folder / "photo.jpg"
    photo.write_bytes((samples.images / "shirt-00001-1.jpg").read_bytes())
    inside = page_folder() / "linked"
    inside.mkdir()
    (inside / "photo.jpg").symlink_to(photo)
    (page_folder() / "door").symlink_to(folder)
    linked = inside / "photo.jpg", page_folder() / "door" / "photo.jpg"
    paths = [folder / "notes.txt", photo, folder / "absent.jpg", folder, *linked,
             f"{page_folder()}/linked/../../{photo.relative_to('/')}", page_folder(), "/etc/hostname", "", "a\0b"]
    answer = request_tags(address, [*paths, "http://127.0.0.1/photo.jpg"]).text
    answers = json.loads(answer.split("data: ", 1)[1].splitlines()[0])[0]
    assert len(answers) == len(paths) + 1 and {found["error"] for found in answers} == {"is no file that was uploaded to this page"}
    # Files that Gradio itself recognises it would copy or download.
    for path in (photo, "http://127.0.0.1/photo.jpg"):
        answer = request_tags(address, [path], meta={"_type": "gradio.FileData"}).text
        assert "not uploaded" in answer or "is no file that was uploaded" in answer
    assert kept_photos() == ["photo.jpg"]
    assert (folder / "notes.txt").read_text() == "mine" and photo.exists() and (inside / "photo.jpg").is_symlink()
    (inside / "photo.jpg").unlink()


@pytest.mark.parametrize("files", [None, "a.jpg", [None], ["a.jpg"], [{}], [{"path": 5}], [{"path": "a.jpg", "orig_name": 5}]])
def test_malformed_requests_are_answered_in_one_line(served, files):
    started = httpx.post(f"{served[0]}/gradio_api/call/tag", json={"data": [files]})
    answer = httpx.get(f"{served[0]}/gradio_api/call/tag/{started.json()['event_id']}", timeout=60).text
    event, data, *_ = answer.splitlines()
    assert event == "event: error" and json.loads(data.removeprefix("data: "))["error"].startswith("expected a ")


def test_other_hosts_are_refused(served):
    assert httpx.get(served[0]).status_code == 200
    assert httpx.get(served[0], headers={"Host": "evil.example"}).status_code == 400
    assert request_tags(served[0], ["/etc/hostname"], {"Host": "evil.example:7860"}).status_code == 400


def test_other_origins_and_what_the_page_does_not_need_are_refused(served):
    address = served[0]
    join = f"{address}/gradio_api/queue/join"
    assert httpx.post(join, json={}, headers={"Origin": "http://evil.example"}).status_code == 403
    for path in ("process_recording", "run/tag", "api/tag", "vibe-edit", "component_server"):
        assert httpx.post(f"{address}/gradio_api/{path}", json={"data": [[]]}).status_code == 404
    for path in ("proxy=http://127.0.0.1/", "file=http://127.0.0.1/", "file=HTTPS://a.example/"):
        assert httpx.get(f"{address}/gradio_api/{path}").status_code == 404
    assert httpx.get(f"{address}/gradio_api/file=/etc/hostname").status_code == 403


def test_visitors_who_send_the_same_file_all_get_answers(served, samples):
    photo = (samples.images / "shirt-00001-1.jpg").read_bytes()
    def visit(_):
        with httpx.Client(base_url=f"{served[0]}/gradio_api", timeout=60) as visitor:
            [path] = visitor.post("/upload", files={"files": ("shirt.jpg", photo)}).json()
            event = visitor.post("/call/tag", json={"data": [[{"path": path, "orig_name": "shirt.jpg"}]]}).json()["event_id"]
            return visitor.get(f"/call/tag/{event}").text
    with ThreadPoolExecutor(12) as visitors: answers = list(visitors.map(visit, range(60)))
    assert len(set(answers)) == 1 and "sleeve_length" in answers[0]
    assert kept_photos() == []


def test_uploads_are_bounded(client, served, samples, tmp_path):
    photo = gradio_client.handle_file(samples.images / "shirt-00001-1.jpg")
    with pytest.raises(Exception, match="at most 50"): client.predict([photo] * 51, api_name="/tag")
    Image.effect_noise((5000, 5000), 100).save(tmp_path / "large.png")
    assert (tmp_path / "large.png").stat().st_size > 20 * 2**20
    with pytest.raises(ValueError, match="maximum file size"):
        client.predict([gradio_client.handle_file(tmp_path / "large.png")], api_name="/tag")
    # Other clients do not check the size themselves.
    with (tmp_path / "large.png").open("rb") as photo:
        assert httpx.post(f"{served[0]}/gradio_api/upload", files={"files": photo}).status_code == 413
    assert kept_photos() == []


def test_mistakes_are_one_line(refused, trained, samples, tmp_path, served, monkeypatch):
    (tmp_path / "other.csv").write_text("filename,colour\na.jpg,red\n")
    model = trained / "learn.pkl"
    refused("app", "--model", tmp_path / "none.pkl", says=["none.pkl", "no such file"])
    refused("app", "--model", model, "--port", "0", says=["port 0", "65535"])
    refused("app", "--model", model, "--corrections", tmp_path / "other.csv", says=["other.csv", "no column 'neck'"])
    used_port = served[0].rsplit(":", 1)[1]
    refused("app", "--model", model, "--corrections", tmp_path / "c.csv", "--port", used_port, says=["port", "cannot be used"])
    monkeypatch.setitem(sys.modules, "gradio", None)
    refused("app", "--model", model, says=["gradio is not installed", "deep_fashion[app]"])
