"Image files as users have them: each is opened correctly, or reported with a reason while the others are processed."
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from deep_fashion.predict.tagger import load_tagger


@pytest.fixture(scope="module")
def tagger(trained): return load_tagger(trained / "learn.pkl")


@pytest.fixture
def shirt(samples): return Image.open(samples.images / "shirt-00001-1.jpg").convert("RGB")


def probabilities(tagger, item): return np.concatenate([p.numpy() for p in tagger.predict(item)[2].values()])


def test_lossless_modes_are_the_same_photo(tagger, shirt, tmp_path):
    expected = probabilities(tagger, shirt)
    shirt.save(tmp_path / "rgb.png")
    shirt.convert("RGBA").save(tmp_path / "rgba.png")
    shirt.save(tmp_path / "animated.png", save_all=True, append_images=[Image.new("RGB", shirt.size, "red")])
    for name in ("rgb.png", "rgba.png", "animated.png"):
        np.testing.assert_allclose(probabilities(tagger, tmp_path / name), expected, atol=1e-5, err_msg=name)


def test_grey_is_the_same_in_8_and_16_bits(tagger, shirt, tmp_path):
    grey = shirt.convert("L")
    grey.save(tmp_path / "grey.png")
    Image.fromarray(np.asarray(grey).astype(np.uint16) * 257).save(tmp_path / "sixteen.png")
    np.testing.assert_allclose(probabilities(tagger, tmp_path / "sixteen.png"), probabilities(tagger, tmp_path / "grey.png"), atol=1e-5)


def test_palette_cmyk_and_animation_come_close(tagger, shirt, tmp_path):
    expected = np.asarray(shirt, dtype=float)
    from deep_fashion.data.photo import open_photo
    shirt.convert("P", palette=Image.Palette.ADAPTIVE).save(tmp_path / "palette.png")
    shirt.convert("CMYK").save(tmp_path / "cmyk.jpg", quality=95)
    shirt.save(tmp_path / "animated.gif", save_all=True, append_images=[Image.new("RGB", shirt.size, "red")])
    for name in ("palette.png", "cmyk.jpg", "animated.gif"):
        opened = np.asarray(open_photo(tmp_path / name), dtype=float)
        assert np.abs(opened - expected).mean() < 8, name
        assert tagger.predict(tmp_path / name)[0].keys() == {"neck", "sleeve_length", "pattern"}


def test_a_turned_phone_picture_is_upright(tagger, shirt, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    shirt.rotate(90, expand=True).save(tmp_path / "phone.png", exif=exif)
    np.testing.assert_allclose(probabilities(tagger, tmp_path / "phone.png"), probabilities(tagger, shirt), atol=1e-5)


@pytest.mark.parametrize("size", [(1, 1), (20_000, 1), (20_000, 3_000)])
def test_extreme_sizes(tagger, tmp_path, size):
    Image.new("RGB", size, "teal").save(tmp_path / "extreme.png")
    assert len(tagger.predict(tmp_path / "extreme.png")[0]) == 3


def test_too_many_pixels_are_refused(refused, trained, tmp_path):
    Image.new("1", (20_000, 20_000)).save(tmp_path / "huge.png")
    refused("test", "--model", trained / "learn.pkl", "-i", tmp_path / "huge.png", says=["huge.png", "400000000 pixels"])


@pytest.fixture
def broken(samples, tmp_path):
    "A folder with one good photo and every kind of broken one."
    good = (samples.images / "shirt-00001-1.jpg").read_bytes()
    folder = tmp_path / "photos"
    folder.mkdir()
    contents = {"good.jpg": good, "truncated.jpg": good[: len(good) // 2], "empty.jpg": b"",
                "text.jpg": b"no picture at all", "header.png": b"\x89PNG\r\n\x1a\n"}
    for name, content in contents.items(): (folder / name).write_bytes(content)
    return folder


def test_broken_photos_do_not_stop_the_others(command, trained, broken, tmp_path):
    result = command("tag", "--model", trained / "learn.pkl", "--img_dir", broken, "--out_csv", tmp_path / "tags.csv")
    assert result.status == 1
    assert pd.read_csv(tmp_path / "tags.csv").filename.tolist() == ["good.jpg"]
    errors = pd.read_csv(tmp_path / "tags.errors.csv").set_index("filename").reason
    assert set(errors.index) == {"truncated.jpg", "empty.jpg", "text.jpg", "header.png"}
    assert "truncated" in errors["truncated.jpg"] and "empty" in errors["empty.jpg"] and "no known image format" in errors["text.jpg"]


@pytest.mark.parametrize("name", ["truncated.jpg", "empty.jpg", "text.jpg", "header.png", "absent.jpg"])
def test_one_broken_photo(refused, trained, broken, name):
    refused("test", "--model", trained / "learn.pkl", "-i", broken / name, says=[name])


def test_broken_photos_are_dropped_from_a_table(broken, tmp_path):
    from deep_fashion.data.table import read_table
    (tmp_path / "t.csv").write_text("filename,neck\n" + "".join(f"{path.name},1\n" for path in broken.iterdir()))
    table = read_table(tmp_path / "t.csv", broken)
    assert list(table.rows.filename) == ["good.jpg"]
    assert table.dropped.reason.str.startswith("unreadable image").all() and len(table.dropped) == 4
