"A review as a person does it: by keyboard alone, many at once, undone, continued, killed; and what becomes of the answers."
import os
import signal
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pandas as pd
import pytest
from PIL import Image

from deep_fashion.core import InputError
from deep_fashion.data.corrections import correct_table
from deep_fashion.data.table import read_table

pytest.importorskip("uvicorn", reason="the extra 'serve' is not installed")
httpx = pytest.importorskip("httpx", reason="httpx is not installed")

from deep_fashion.app.review import serve_review  # noqa: E402

PROGRAM = "import sys; from deep_fashion.cli import main; sys.exit(main())"


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def answers(path): return pd.read_csv(path, dtype=str, keep_default_na=False)


@pytest.fixture
def reviewed(tmp_path, samples):
    "Start a review with its page; the servers end with the test."
    started = []
    def start(**settings):
        settings = dict(img_dir=samples.images, out=tmp_path / "corrections.csv", port=free_port(), **settings)
        started.append(serve_review(**settings).serving)
        return started[-1]
    yield start
    for serving in started: serving.close()


@pytest.fixture
def listed(tmp_path, samples):
    "A review list of six photos: five are doubtful, three of them alike, and one file is missing."
    names = sorted(path.name for path in samples.images.glob("shirt-*-1.jpg"))[:5]
    suggested = "00111"
    rows = [dict(filename=name, neck="", neck_suggested=suggested[i], neck_confidence=f"0.{i + 3}") for i, name in enumerate(names)]
    path = tmp_path / "tags.review.csv"
    pd.DataFrame([*rows, dict(rows[0], filename="none.jpg")]).to_csv(path, index=False)
    return path, names


def opened(browser, serving, width=1200, dark=False):
    tab = browser(width, dark)
    tab.goto(serving.url)
    ready(tab)
    return tab


def ready(tab): tab.wait_for_selector("body[data-busy='']")


def press(tab, *keys):
    for key in keys:
        tab.keyboard.press(key)
        ready(tab)


def shown(tab): return tab.locator("#name").inner_text()


def test_one_by_one_by_keyboard_alone(browser, reviewed, listed, samples, tmp_path):
    path, names = listed
    out = tmp_path / "corrections.csv"
    tab = opened(browser, reviewed(csv_path=path, names=samples.names))
    assert shown(tab) == names[0] and tab.locator("#accept").inner_text().startswith("enter")
    press(tab, "Enter")
    assert dict(answers(out)[["filename", "neck"]].values) == {names[0]: "0"} and shown(tab) == names[1]
    press(tab, " ", "2", "x")  # skipped, answered, cannot be seen
    assert dict(answers(out)[["filename", "neck"]].values) == {names[0]: "0", names[2]: "2", names[3]: "not visible"}
    press(tab, "u")
    assert names[3] not in set(answers(out).filename) and shown(tab) == names[3]
    press(tab, "ArrowLeft", "1")
    assert answers(out).set_index("filename").neck[names[2]] == "1" and shown(tab) == names[3]
    press(tab, "n")
    tab.keyboard.type("boat neck")
    press(tab, "Enter")
    assert "boat neck, a new class" in tab.get_by_role("status").inner_text()
    assert "new class" in tab.locator("#classes button", has_text="boat neck").inner_text()
    press(tab, "Control+z")
    assert "boat neck" not in set(answers(out).neck)
    press(tab, "0", "0")
    assert shown(tab) == names[1]  # what was skipped comes last
    press(tab, "0")
    assert tab.locator("#done").is_visible() and f"--corrections {out}" in tab.locator("#command").inner_text()
    assert tab.locator("#counts").inner_text() == "5 of 5 answered" and tab.errors == []
    corrected = correct_table(read_table(samples.csv, samples.images), out).rows.set_index("filename").neck
    assert [corrected[name] for name in names] == ["0", "0", "1", "0", "0"]
    assert {request.split("/")[2] for request in tab.requests if request.startswith("http")} == {tab.url.split("/")[2]}


def test_several_at_once_are_confirmed_and_taken_back(browser, reviewed, listed, tmp_path):
    path, names = listed
    tab = opened(browser, reviewed(csv_path=path))
    press(tab, "b")
    assert tab.locator("#tiles button").count() == 2  # the group of the photo that was shown
    tab.select_option("#group", label="neck: 1 (3)")
    ready(tab)
    press(tab, "ArrowRight", "ArrowRight", " ")
    assert "Confirm 2 as 1" in tab.locator("#confirm").inner_text()
    press(tab, "Enter")
    assert sorted(answers(tmp_path / "corrections.csv").neck) == ["1", "1"]
    press(tab, "u")
    assert answers(tmp_path / "corrections.csv").empty
    press(tab, "b", "Escape")
    assert tab.locator("#photo").is_visible() and tab.errors == []


def test_enter_keeps_labels_in_question_one_by_one_and_together(browser, reviewed, listed, tmp_path):
    _, names = listed
    errors = tmp_path / "label_errors.csv"
    rows = dict(filename=names, attribute="sleeve, length", label="long", predicted="=short", confidence=0.99, quality=0.1)
    pd.DataFrame(rows).to_csv(errors, index=False)
    tab = opened(browser, reviewed(csv_path=errors))
    assert "Keep long, as in the table" in tab.locator("#accept").inner_text()
    predicted = tab.locator("#classes button", has_text="predicted 99 %")
    assert "=short" in predicted.inner_text()
    press(tab, "Enter", predicted.locator("kbd").inner_text(), "b")
    assert "Keep long for 3" in tab.locator("#confirm").inner_text()
    press(tab, "p")
    assert tab.locator("#done").is_visible() and tab.errors == []
    read = answers(tmp_path / "corrections.csv").set_index("filename")["sleeve, length"]
    assert [read[name] for name in names] == ["long", "'=short", "'=short", "'=short", "'=short"]
    press(tab, "u", "b", "Enter")
    read = answers(tmp_path / "corrections.csv").set_index("filename")["sleeve, length"]
    assert [read[name] for name in names] == ["long", "'=short", "long", "long", "long"]


def test_classes_beyond_the_keys_are_typed_and_a_new_one_is_remembered(reviewed, samples, tmp_path):
    table = tmp_path / "list.csv"
    name = sorted(path.name for path in samples.images.glob("*.jpg"))[:3]
    # A review list: its answers are corrections of a table, which has classes.
    table.write_text("filename,neck,neck_suggested\n" + f"{name[0]},,c0\n{name[1]},,c0\n{name[2]},c0,\n", encoding="utf-8")
    settings = dict(csv_path=table, attributes="neck=" + ",".join(f"c{i}" for i in range(40)))
    first = reviewed(**settings)
    one, other = httpx.Client(base_url=first.url), httpx.Client(base_url=first.url)
    classes = one.post("/move", json=dict(way="start")).json()["classes"]
    assert len(classes) == 40 and classes[39]["key"] == "" and len({o["key"] for o in classes}) == 30
    view = one.post("/class", json=dict(task=0, text="c39")).json()
    assert view["answered"] == "c39" and not view["new"] and len(view["classes"]) == 40
    views = [client.post("/class", json=dict(task=1, text="boat neck")).json() for client in (one, other)]
    assert [view["new"] for view in views] == [True, False]
    first.close()
    view = httpx.Client(base_url=reviewed(**settings).url).post("/move", json=dict(task=1, way="start")).json()
    assert [o["name"] for o in view["classes"] if o["new"]] == ["boat neck"] and view["command"].endswith("--new_classes")


def test_zoom_opens_the_upper_middle_or_what_was_clicked(browser, reviewed, listed):
    tab = opened(browser, reviewed(csv_path=listed[0]))
    place = """() => { const o = document.getElementById('frame')
        return [(o.scrollLeft + o.clientWidth/2)/o.scrollWidth, (o.scrollTop + o.clientHeight/2)/o.scrollHeight] }"""
    press(tab, "z")
    assert tab.evaluate(place) == pytest.approx([0.5, 0.3], abs=0.02) and tab.locator("#size").inner_text() == "smaller"
    press(tab, "z")
    assert tab.locator("#size").inner_text() == "larger"
    box = tab.locator("#image").bounding_box()
    tab.locator("#image").click(position=dict(x=box["width"]/2, y=box["height"]*0.6))
    assert tab.evaluate(place) == pytest.approx([0.5, 0.6], abs=0.02)
    press(tab, " ")
    assert tab.locator("#size").inner_text() == "larger" and tab.errors == []


def test_two_pages_answer_at_the_same_time(browser, reviewed, listed, tmp_path):
    path, names = listed
    serving = reviewed(csv_path=path)
    one, other = opened(browser, serving), opened(browser, serving)
    press(one, "0")
    press(other, "b")  # opens the group of a photo that has been answered since
    press(one, "1")
    press(other, "Enter")
    read = answers(tmp_path / "corrections.csv").set_index("filename").neck
    assert read[names[0]] == "0" and read[names[1]] == "1" and one.errors == other.errors == []
    calls = [httpx.Client(base_url=serving.url) for _ in range(2)]
    def work(client): return [client.post(f"/{o}", json=dict(task=i)).status_code for i in range(5) for o in ("move", "group", "undo")]
    with ThreadPoolExecutor(2) as pool: assert {status for found in pool.map(work, calls) for status in found} == {200}


def test_reload_and_the_same_command_continue(browser, reviewed, listed, tmp_path):
    path, names = listed
    first = reviewed(csv_path=path)
    tab = opened(browser, first)
    press(tab, "Enter", " ")
    tab.reload()
    ready(tab)
    assert shown(tab) == names[2]
    first.close()
    press(tab, "Enter")
    assert "does not answer" in tab.get_by_role("status").inner_text() and shown(tab) == names[2]
    tab = opened(browser, reviewed(csv_path=path))
    assert shown(tab) == names[1] and tab.locator("#counts").inner_text() == "1 of 5 answered"


def test_an_answer_that_cannot_be_saved_is_not_shown_as_saved(browser, reviewed, listed, tmp_path):
    path, names = listed
    tab = opened(browser, reviewed(csv_path=path))
    (tmp_path / "corrections.csv").mkdir()
    press(tab, "Enter")
    assert shown(tab) == names[0] and "failed" in tab.get_by_role("status").get_attribute("class")
    (tmp_path / "corrections.csv").rmdir()
    press(tab, "Enter")
    assert list(answers(tmp_path / "corrections.csv").filename) == [names[0]]


def test_on_a_phone_everything_fits_and_buttons_are_large(browser, reviewed, listed):
    tab = opened(browser, reviewed(csv_path=listed[0]), width=390, dark=True)
    assert tab.evaluate("document.documentElement.scrollWidth") <= 390
    heights = [o.bounding_box()["height"] for o in tab.locator("button:visible, select:visible, input:visible").all()]
    assert len(heights) > 6 and min(heights) >= 44
    tab.locator("#bulk").click()
    tab.locator("#tiles button").first.click()
    assert "Confirm 1 as" in tab.locator("#confirm").inner_text()
    assert tab.evaluate("document.documentElement.scrollWidth") <= 390


def test_every_button_has_a_name_and_what_happened_is_read_out(browser, reviewed, listed):
    tab = opened(browser, reviewed(csv_path=listed[0]))
    for button in tab.get_by_role("button").all(): assert button.inner_text().strip()
    assert tab.get_by_role("combobox", name="Question").is_visible() and tab.get_by_role("progressbar").get_attribute("aria-labelledby")
    press(tab, "Enter")
    assert tab.get_by_role("status").inner_text() == "Saved: neck 0"


def test_photos_without_labels_become_a_table_to_train_on(reviewed, samples, tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(12): Image.new("RGB", (40 + i, 60), (20*i, 90, 40)).save(folder / f"größe ({i}) & so.png")
    Image.new("CMYK", (60, 40)).save(folder / "print.jpg")
    turned = Image.new("RGB", (60, 40)).getexif()
    turned[0x0112] = 6
    Image.new("RGB", (60, 40)).save(folder / "turned.jpg", exif=turned)
    (folder / "cut.jpg").write_bytes((folder / "print.jpg").read_bytes()[:300])
    serving = serve_review(img_dir=folder, attributes="neck line=round,v-neck", out=tmp_path / "labels.csv", port=free_port()).serving
    client = httpx.Client(base_url=serving.url)
    token = client.get("/").text.partition('TOKEN = "')[2].partition('"')[0]
    view, n = client.post("/move", json=dict(way="start")).json(), 0
    while view["task"]:
        photo = client.get(f"/photo/{token}/{view['task']['photo']}/large")
        assert photo.status_code == 200
        if view["task"]["name"] == "turned.jpg":
            (tmp_path / "seen.jpg").write_bytes(photo.content)
            assert Image.open(tmp_path / "seen.jpg").size == (40, 60)
        view, n = client.post("/answer", json=dict(task=view["task"]["position"], label=("round", "v-neck")[n % 2])).json(), n + 1
    serving.close()
    assert n == 14 and [o["name"] for o in view["unreadable"]] == ["cut.jpg"]
    table = read_table(tmp_path / "labels.csv", folder)
    assert table.attributes == ["neck line"] and table.rows["neck line"].value_counts().to_dict() == {"round": 7, "v-neck": 7}
    assert "--csv_path" in view["command"] and str(tmp_path / "labels.csv") in view["command"]


def test_a_second_review_of_the_same_file_is_refused_and_a_killed_one_loses_nothing(listed, samples, tmp_path):
    path, names = listed
    words = ["review", str(path), "--img_dir", str(samples.images), "--out", str(tmp_path / "corrections.csv")]
    port = free_port()
    first = subprocess.Popen([sys.executable, "-c", PROGRAM, *words, "--port", str(port)], stdout=subprocess.PIPE, text=True)
    try:
        assert "0 of 5 questions answered" in first.stdout.readline()
        assert httpx.post(f"http://127.0.0.1:{port}/answer", json=dict(task=1, label="1")).status_code == 200
        second = subprocess.run([sys.executable, "-c", PROGRAM, *words, "--port", str(free_port())], capture_output=True, text=True)
        assert second.returncode == 2 and "another review is using it" in second.stderr
    finally: first.kill()
    first.wait()
    assert answers(tmp_path / "corrections.csv")[["filename", "neck"]].values.tolist() == [[names[1], "1"]]
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    again = subprocess.Popen([sys.executable, "-c", PROGRAM, *words, "--port", str(port)], **pipes)
    assert "1 of 5 questions answered" in again.stdout.readline()
    os.kill(again.pid, signal.SIGINT)
    assert "the same command continues" in again.communicate()[1] and again.returncode == 130


@pytest.mark.parametrize(
    "settings, says",
    [
        (dict(), "name what is to be labelled there"),
        (dict(attributes="sha256=a"), "rename the attribute"),
        (dict(csv_path="nowhere.csv"), "nowhere.csv"),
        (dict(attributes="neck=a", host="0.0.0.0"), "a password is required"),
        (dict(attributes="neck=a", model="nowhere"), "nowhere"),
    ],
)
def test_what_cannot_be_reviewed_is_refused_in_a_line(settings, says, samples, tmp_path):
    with pytest.raises(InputError, match=says) as error:
        serve_review(**{**dict(img_dir=samples.images, out=tmp_path / "out.csv", port=free_port()), **settings})
    assert "\n" not in str(error.value) and not (tmp_path / "out.csv").exists() and not list(tmp_path.glob(".out*"))


def test_classes_and_names_of_a_tagger_are_offered(trained, reviewed, listed):
    client = httpx.Client(base_url=reviewed(csv_path=listed[0], model=trained).url)
    classes = client.post("/move", json=dict(way="start")).json()["classes"]
    assert [o["name"] for o in classes][:3] == ["round", "v-neck", "polo"] and [o["key"] for o in classes][:3] == ["0", "1", "2"]
    # The run knows its table; a review in another folder cannot use it.
    assert f"--config {trained / 'config.toml'} --corrections" in client.post("/move", json=dict(way="start")).json()["command"]
