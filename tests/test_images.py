"""Pictures of any kind as arrays: images.py."""

import base64
import builtins
import shutil
import time
from pathlib import Path

import keras
import numpy as np
import pytest
from conftest import write_csv
from PIL import Image, ImageCms, PngImagePlugin

from transfer import images
from transfer.console import BadInput
from transfer.data import load_dataset
from transfer.folders import walk_pictures
from transfer.images import decode_all, decode_image, load_images

BLACK = (0, 0, 0)
WHITE = (255, 255, 255)
GREEN = (10, 200, 30)
RED = (200, 40, 40)

SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
# red is green in it, and green red
SWAPPED = SRGB.replace(b"rXYZ", b"----").replace(b"gXYZ", b"rXYZ").replace(b"----", b"gXYZ")
# a grey's brightness is in proportion to its value, a little lifted: the curve's exponent is 1
GREY = SRGB.replace(b"RGB XYZ", b"GRAYXYZ").replace(b"rTRC", b"kTRC")
GREY = GREY.replace(b"\0\2\x66\x66", b"\0\1\0\0")


def load(root, cache, split="val", **options):
    """One split of the dataset in `root`, decoded at 32 pixels a side."""
    dataset = load_images(load_dataset(root), (split,), 32, cache, **options)
    return dataset.splits[split]


def saved(picture, path, **options):
    """A picture as this project decodes it, 64 pixels a side, once it was saved at `path`."""
    picture.save(path, **options)
    return decode_image(path, 64).astype(int)


def assert_shows(decoded, expected, atol=5):
    """expected: a picture, or its one colour."""
    np.testing.assert_allclose(decoded, np.broadcast_to(expected, decoded.shape), 0, atol)


# --- files, read or refused ---


def test_images_equal_keras_own_and_come_from_the_cache(tiny, tmp_path, monkeypatch):
    """In colour, resized bilinearly, as README has it done elsewhere."""
    split = load(tiny, tmp_path)
    for file, image in zip(split.files, split.images):
        path = tiny / "data_256" / file
        expected = keras.utils.load_img(path, target_size=(32, 32), interpolation="bilinear")
        np.testing.assert_array_equal(image, expected)

    # in memory, and from the cache, which decodes nothing again
    np.testing.assert_array_equal(load(tiny, "none").images, split.images)
    monkeypatch.setattr(images, "decode_image", None)
    np.testing.assert_array_equal(load(tiny, tmp_path).images, split.images)


@pytest.mark.parametrize("cache", ["data/cache", "none"])
def test_files_that_are_no_pictures_are_all_named_at_once_or_skipped(own_tiny, workdir, cache):
    """Seven kinds of them, whether decoded images are kept on disk or in memory."""
    root, rows = own_tiny
    folder = root / "data_256"
    (folder / "truncated.jpg").write_bytes((folder / "val.0.0.jpeg").read_bytes()[:300])
    (folder / "text.jpg").write_text("not a picture")
    (folder / "empty.jpg").touch()
    (folder / "folder.jpg").mkdir()
    (folder / "loop.jpg").symlink_to("loop.jpg")
    (folder / "nowhere.jpg").symlink_to("absent.jpg")

    # listed before those that can be read
    kinds = ["truncated", "text", "empty", "folder", "loop", "nowhere", "absent"]
    bad = [(f"{kind}.jpg", "Bronze", "M", "val") for kind in kinds]
    write_csv(root, bad + rows)

    named = ".*".join(kinds)
    with pytest.raises(BadInput, match=f"(?s)^7 images .* with --skip-unreadable:.*{named}"):
        load(root, cache)
    split = load(root, cache, skip_unreadable=True)
    expected = [decode_image(folder / file, 32) for file in split.files]
    np.testing.assert_array_equal(split.images[:], expected)


def test_too_little_space_is_said_before_anything_is_written(tiny, tmp_path, monkeypatch):
    """With what is needed, what there is, and what to do."""
    monkeypatch.setattr("transfer.files.free_space", lambda _: 1000)

    message = r"^Not enough disk space for decoding the val images: .* GB needed, .*--cache none\.$"
    with pytest.raises(BadInput, match=message):
        load(tiny, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_an_unreadable_file_is_tried_again(own_tiny, workdir, narrow, script, monkeypatch):
    """As after chmod, which changes neither the size nor the time of a file."""
    root, _ = own_tiny
    opened = open

    def refuse(path, *given, **options):
        if "train.1.1.jpg" in str(path):
            raise PermissionError(13, "Permission denied")
        return opened(path, *given, **options)

    # refused, or left out where that is asked for
    flags = ("--layers", "block1_conv1", "--skip-unreadable", "--out", "stored")
    extract = ("extract_features", "--data", root, *flags)
    with monkeypatch.context() as patch:
        patch.setattr(builtins, "open", refuse)
        with pytest.raises(BadInput, match="train.1.1.jpg: Permission denied"):
            load(root, "data/cache", "train")
        script(*extract)

    # taken in once it can be read, none is left black; features that lack it say so
    train = load(root, "data/cache", "train")
    assert train.images.any((1, 2, 3)).sum() == 32
    with pytest.raises(BadInput, match=r"of other pictures \(names, classes, contents\)"):
        script(*extract)


def test_what_was_unreadable_to_the_process_that_it_waited_for_is_left_out(
    own_tiny, tmp_path, monkeypatch
):
    """Two commands at once: the second one finds the first one's array, and its list beside it."""
    root, _ = own_tiny
    (root / "data_256" / "val.1.1.jpg").write_bytes(b"")

    # the first command runs when the second one asks for the array
    build = images.build_or_load_array

    def build_after_another(*given):
        monkeypatch.setattr(images, "build_or_load_array", build)
        load(root, tmp_path, skip_unreadable=True)
        return build(*given)

    # as many as the second command keeps
    monkeypatch.setattr(images, "build_or_load_array", build_after_another)
    assert len(load(root, tmp_path, skip_unreadable=True).images) == 11


def test_what_is_stored_is_keyed_by_the_bytes_and_the_rules(own_tiny, tmp_path, monkeypatch):
    """A file that is overwritten is decoded anew, and all of them are by a version of this project
    that decodes otherwise."""
    root, _ = own_tiny
    before = load(root, tmp_path)

    # another picture
    shutil.copy(root / "data_256/val.1.1.jpg", root / "data_256/val.0.0.jpeg")
    after = load(root, tmp_path)
    changed = (after.images != before.images).any((1, 2, 3))
    assert after.files[changed].tolist() == ["val.0.0.jpeg"]

    # another version of the rules
    monkeypatch.setattr(images, "DECODING", 99)
    load(root, tmp_path)
    assert len(list(tmp_path.glob("*.npy"))) == 3


# --- kinds of files ---


@pytest.mark.parametrize(
    "kind",
    [
        "L.jpg",
        "CMYK.jpg",
        "RGB.jpg",
        "P.png",
        "RGBA.png",
        "1.png",
        "RGB.heic",
        "RGB.jp2",
        "RGB.jpe",
    ],
)
def test_decoding_gives_rgb_whatever_the_file_holds(tmp_path, kind):
    """Grey, colour of printers, palettes, an alpha channel, black and white; files of phones and
    of museums' servers."""
    picture = Image.new("RGB", (64, 64), RED).convert(Path(kind).stem)
    decoded = saved(picture, tmp_path / kind)
    expected = np.asarray(picture.convert("RGB")).mean((0, 1))
    np.testing.assert_allclose(decoded.mean((0, 1)), expected, atol=5)
    assert len(walk_pictures(tmp_path)) == 1


def test_exif_rotation_is_applied(tmp_path):
    """As phones write it."""
    picture = Image.new("RGB", (64, 64))
    picture.paste(WHITE, (0, 0, 64, 32))  # the upper half
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down

    decoded = saved(picture, tmp_path / "a.jpg", exif=exif)
    assert_shows(decoded, picture.rotate(180))


def test_of_an_animation_the_first_picture_is_taken(tmp_path):
    white = Image.new("L", (64, 64), 255)
    black = Image.new("L", (64, 64))
    decoded = saved(white, tmp_path / "a.gif", save_all=True, append_images=[black])
    assert_shows(decoded, WHITE)


# --- metadata and colours ---


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.webp"])
def test_odd_metadata_of_a_whole_picture_do_not_matter(tmp_path, name):
    """An EXIF block that is none; in a PNG more than a megabyte of text."""
    text = PngImagePlugin.PngInfo()
    text.add_text("Raw profile", "x" * 1_200_000, zip=True)
    picture = Image.new("RGB", (20, 30), RED)
    decoded = saved(picture, tmp_path / name, exif=b"Exif\0\0garbage", pnginfo=text)
    assert_shows(decoded, RED)


@pytest.mark.parametrize(
    ("mode", "colour", "profile", "expected"),
    [
        ("RGB", RED, SRGB, RED),
        ("RGB", RED, SWAPPED, (40, 200, 40)),
        ("P", RED, SWAPPED, (40, 200, 40)),
        ("L", 100, GREY, 174),
        # damaged, or of another kind of picture: ignored
        ("RGB", RED, SWAPPED[:200], RED),
        ("RGB", RED, GREY, RED),
        ("L", 100, SWAPPED, 100),
        ("CMYK", (0, 255, 0, 0), SWAPPED, (255, 0, 255)),
    ],
    ids=range(8),  # a profile says when it was made
)
def test_a_colour_profile_says_what_the_values_mean(tmp_path, mode, colour, profile, expected):
    picture = Image.new(mode, (20, 30), colour)
    decoded = saved(picture, tmp_path / "a.tif", icc_profile=profile)
    assert_shows(decoded, expected, atol=2)


# --- transparency ---


@pytest.mark.parametrize(
    "kind", ["RGBA.png", "RGBA.webp", "RGBA.tif", "LA.png", "P.png", "P.gif", "RGB.png"]
)
def test_transparent_places_are_white(tmp_path, kind):
    """Although the invisible pixels are green."""
    picture = Image.new("RGBA", (64, 64), (*GREEN, 0))
    picture.paste((*BLACK, 255), (0, 0, 64, 32))  # the upper half

    # as files of this kind hold it
    mode = Path(kind).stem
    options = {"lossless": True, "exact": True}  # of WebP
    if mode == "RGB":
        options = {"transparency": GREEN}  # tRNS
    if mode == "P":
        picture = picture.convert("RGB").quantize(2)
        options = {"transparency": picture.getpixel((0, 63))}

    decoded = saved(picture.convert(mode), tmp_path / kind, **options)
    assert_shows(decoded[:32], BLACK)
    assert_shows(decoded[32:], WHITE)


# --- more than eight bits ---


@pytest.mark.parametrize("largest", [1, 0.6])
@pytest.mark.parametrize(
    ("dtype", "top", "name"),
    [
        ("float32", 1, "a.tif"),
        ("float32", 4095, "a.tif"),
        ("uint16", 255, "a.tif"),
        ("uint16", 4095, "a.tif"),
        ("uint16", 65535, "a.png"),
    ],
)
def test_a_range_of_grey_is_the_smallest_usual_one(tmp_path, dtype, top, name, largest):
    """1 for floats, else that of 8, 10, 12, 14 or 16 bits; not the picture's own maximum, which is
    `largest` of it."""
    ramp = np.linspace(0, largest * top, 64 * 64).reshape(64, 64).astype(dtype)
    decoded = saved(Image.fromarray(ramp), tmp_path / name)
    np.testing.assert_allclose(decoded[..., 0], ramp * (255 / top), atol=1.5)


@pytest.mark.parametrize("value", [np.nan, np.inf, -1.0, 70_000.0])
def test_values_that_are_no_grey_are_named(tmp_path, value):
    """Rather than shown as some grey."""
    picture = Image.new("F", (8, 8), 0.5)
    picture.putpixel((0, 0), value)
    with pytest.raises(ValueError, match="negative, above 16 bits, or no numbers"):
        saved(picture, tmp_path / "a.tif")


@pytest.mark.parametrize(
    "content",
    # PNGs of 2 x 2 pixels, which Pillow cannot write: without alpha, and with it
    [
        b"iVBORw0KGgoAAAANSUhEUgAAAAIAAAACEAIAAACtREYwAAAAHklEQVR42mNgYBAy+f+/4f/qswz/gbD+PwPjfzAAAJ9l"
        b"DrORO9n4AAAAAElFTkSuQmCC",
        b"iVBORw0KGgoAAAANSUhEUgAAAAIAAAACEAYAAAAiJtFnAAAAIElEQVR42mNgYBAy+Q8EDf9Xn2UA0gz/Ger/MzD+hwMA"
        b"TtwWq7zsKFkAAAAASUVORK5CYII=",
    ],
)
def test_of_sixteen_bits_of_colour_the_upper_eight_are_read(tmp_path, content):
    """Those of a scanner that fills the lower ten alone come out dark."""
    path = tmp_path / "scan.png"
    path.write_bytes(base64.b64decode(content))
    assert decode_image(path, 2).tobytes().hex() == "0012ff80ab00ff7f00ffffff"


# --- large pictures ---


def test_large_pictures_are_read_where_they_fit(tmp_path, monkeypatch):
    """A JPEG's decoder reduces it, unless it is progressive."""
    picture = Image.new("RGB", (1000, 1000), RED)
    picture.save(tmp_path / "a.jpg")
    picture.save(tmp_path / "b.jpg", progressive=True)
    picture.save(tmp_path / "c.png")
    paths = sorted(tmp_path.iterdir())

    # one at a time
    monkeypatch.setattr(images, "LARGE_PIXELS", 10_000)
    _, bad = decode_all(paths, 32)
    assert bad == {}

    # two do not fit where a tenth of the memory is a byte less than the PNG needs
    monkeypatch.setattr(images, "memory_limit", lambda: 39_999_999)
    decoded, bad = decode_all(paths, 32)
    assert sorted(bad) == [1, 2]
    assert bad[2].startswith("its 1000 x 1000 pixels would take 0.0 GB, more than a tenth")

    # the other one was reduced
    assert_shows(decoded[0], RED)


@pytest.mark.parametrize(
    ("cores", "fitting", "at_once"), [(8, 8, 8), (2, 8, 2), (8, 2.5, 2), (8, 0.1, 1)]
)
def test_so_many_pictures_are_decoded_at_once_as_cores_and_memory_allow(
    tmp_path, monkeypatch, cores, fitting, at_once
):
    """fitting: how many of them a tenth of the memory holds."""
    path = tmp_path / "a.png"
    Image.new("RGB", (100, 100), RED).save(path)
    monkeypatch.setattr("joblib.cpu_count", lambda: cores)
    monkeypatch.setattr(images, "memory_limit", lambda: 400_000 * fitting)
    seen = []

    def look(*_):
        seen.append(len(images.being_decoded))
        time.sleep(0.02)
        return "RGB", None

    monkeypatch.setattr(images, "srgb_transform", look)
    decode_all([path] * 16, 8)
    assert max(seen) == at_once


def test_memory_is_the_machines_or_what_its_container_may_take(tmp_path, monkeypatch):
    path = tmp_path / "memory.max"
    monkeypatch.setattr(images, "CONTAINER_LIMIT", path)
    of_machine = images.memory_limit()  # without such a file
    path.write_text("123456\n")
    assert images.memory_limit() == 123456
    path.write_text("max\n")
    assert images.memory_limit() == of_machine
