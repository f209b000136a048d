"""Pictures of any kind as arrays: images.py."""

import base64
import shutil
import time

import numpy as np
import pytest
from conftest import write_csv
from PIL import Image, ImageCms, ImageDraw, PngImagePlugin

from transfer import digests, images
from transfer.console import BadInput
from transfer.data import load_dataset
from transfer.folders import walk_pictures
from transfer.images import decode_all, decode_image, load_images

BLACK = (0, 0, 0)
WHITE = (255, 255, 255)
GREEN = (10, 200, 30)
RED = (200, 40, 40)

# PNGs of 2 x 2 pixels of 16 bits a channel, which Pillow cannot write: without alpha, and with it
SIXTEEN_BITS = [
    b"iVBORw0KGgoAAAANSUhEUgAAAAIAAAACEAIAAACtREYwAAAAHklEQVR42mNgYBAy+f+/4f/qswz/gbD+PwPjfzAAAJ9l"
    b"DrORO9n4AAAAAElFTkSuQmCC",
    b"iVBORw0KGgoAAAANSUhEUgAAAAIAAAACEAYAAAAiJtFnAAAAIElEQVR42mNgYBAy+Q8EDf9Xn2UA0gz/Ger/MzD+hwMA"
    b"TtwWq7zsKFkAAAAASUVORK5CYII=",
]


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


# --- files, read or refused ---


def test_images_equal_pillow_and_come_from_the_cache(tiny, tmp_path, monkeypatch):
    """In colour, resized bilinearly."""
    split = load(tiny, tmp_path)
    expected = []
    for file in split.files:
        with Image.open(tiny / "data_256" / file) as image:
            small = image.convert("RGB").resize((32, 32), Image.Resampling.BILINEAR)
        expected.append(np.asarray(small))
    np.testing.assert_array_equal(split.images, np.stack(expected), strict=True)

    # in memory, and from the cache, which decodes nothing again
    np.testing.assert_array_equal(load(tiny, "none").images, split.images)
    monkeypatch.setattr(images, "decode_image", None)
    np.testing.assert_array_equal(load(tiny, tmp_path).images, split.images)


@pytest.mark.parametrize("cache", ["data/cache", "none"])
def test_files_that_are_no_pictures_are_all_named_at_once_or_skipped(own_tiny, workdir, cache):
    """Seven kinds of them, whether decoded images are kept on disk or in memory."""
    root, rows = own_tiny
    folder = root / "data_256"
    contents = {
        "truncated.jpg": (folder / "val.0.0.jpeg").read_bytes()[:300],
        "text.jpg": b"not a picture",
        "empty.jpg": b"",
    }
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    (folder / "folder.jpg").mkdir()
    (folder / "loop.jpg").symlink_to("loop.jpg")
    (folder / "nowhere.jpg").symlink_to("absent.jpg")

    # listed before those that can be read
    bad = [*contents, "folder.jpg", "loop.jpg", "nowhere.jpg", "absent.jpg"]
    write_csv(root, [*((file, "Bronze", "M", "val") for file in bad), *rows])

    # named
    dataset = load_dataset(root)
    with pytest.raises(BadInput, match="^7 images .* with --skip-unreadable:") as error:
        load_images(dataset, ("train", "val"), 32, cache)
    _, *lines = str(error.value).splitlines()
    assert [line.split(":")[0].strip() for line in lines] == bad

    # or skipped
    kept = load_images(dataset, ("val",), 32, cache, skip_unreadable=True)
    assert kept.skipped == bad
    assert kept.fingerprint == dataset.fingerprint

    # the others as they are
    split = kept.splits["val"]
    assert len(split.files) == 12
    expected, _ = decode_all([folder / file for file in split.files], 32)
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
    bad = root / "data_256" / "train.1.1.jpg"
    decode = images.decode_image
    digest = digests.digest_of

    def refuse(path, size):
        if path == bad:
            raise PermissionError(13, "Permission denied")
        return decode(path, size)

    # refused, or left out where that is asked for
    extract = ("extract_features", "--data", root, "--layers", "block1_conv1", "--skip-unreadable")
    with monkeypatch.context() as patch:
        patch.setattr(images, "decode_image", refuse)
        patch.setattr(digests, "digest_of", lambda path: "" if path == str(bad) else digest(path))
        with pytest.raises(BadInput, match="train.1.1.jpg: Permission denied"):
            load(root, "cache", "train")
        assert len(load(root, "cache", "train", skip_unreadable=True).images) == 31
        script(*extract, "--out", "stored")

    # taken in once it can be read; features that lack it say so
    train = load(root, "cache", "train")
    assert len(train.images) == 32
    assert train.images.any((1, 2, 3)).all()  # none is left black
    with pytest.raises(BadInput, match=r"of other pictures \(names, classes, contents\)"):
        script(*extract, "--out", "stored")

    # from then on the cache is whole
    monkeypatch.setattr(images, "decode_image", None)
    assert len(load(root, "cache", "train").images) == 32


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
    mode = kind.split(".")[0]
    picture = Image.new("RGB", (20, 30), RED).convert(mode)

    decoded = saved(picture, tmp_path / kind)
    assert decoded.shape == (64, 64, 3)
    expected = np.asarray(picture.convert("RGB")).mean((0, 1))
    np.testing.assert_allclose(decoded.mean((0, 1)), expected, atol=5)
    assert len(walk_pictures(tmp_path)) == 1


def test_exif_rotation_is_applied(tmp_path):
    """As phones write it."""
    picture = Image.new("RGB", (64, 64), BLACK)
    picture.paste(WHITE, (0, 0, 64, 32))  # the upper half

    exif = Image.Exif()
    exif[0x0112] = 3  # upside down

    decoded = saved(picture, tmp_path / "a.jpg", exif=exif)
    assert decoded[:24].mean() < 20
    assert decoded[40:].mean() > 235


def test_of_an_animation_the_first_picture_is_taken(tmp_path):
    white = Image.new("L", (64, 64), 255)
    black = Image.new("L", (64, 64))

    decoded = saved(white, tmp_path / "a.gif", save_all=True, append_images=[black, black])
    assert decoded.min() > 250


# --- metadata and colours ---


@pytest.mark.parametrize("kind", ["exif.jpg", "exif.png", "exif.webp", "text.png"])
def test_odd_metadata_of_a_whole_picture_do_not_matter(tmp_path, kind):
    """An EXIF block that is none; more than a megabyte of text."""
    picture = Image.new("RGB", (20, 30), RED)
    text = PngImagePlugin.PngInfo()
    text.add_text("Raw profile", "x" * 1_200_000, zip=True)
    options = {"exif": {"exif": b"Exif\0\0garbage"}, "text": {"pnginfo": text}}

    decoded = saved(picture, tmp_path / kind, **options[kind.split(".")[0]])
    np.testing.assert_allclose(decoded.mean((0, 1)), RED, atol=5)


@pytest.mark.parametrize(
    ("mode", "colour", "profile", "expected"),
    [
        ("RGB", RED, SRGB, RED),
        ("RGB", (200, 40, 40), SWAPPED, (40, 200, 40)),
        ("P", 1, SWAPPED, (40, 200, 40)),
        ("L", 100, GREY, (174, 174, 174)),
        # damaged, or of another kind of picture: ignored
        ("RGB", RED, SWAPPED[:200], RED),
        ("RGB", RED, GREY, RED),
        ("L", 100, SWAPPED, (100, 100, 100)),
        ("CMYK", (0, 255, 0, 0), SWAPPED, (255, 0, 255)),
    ],
    ids=range(8),  # a profile says when it was made
)
def test_a_colour_profile_says_what_the_values_mean(tmp_path, mode, colour, profile, expected):
    picture = Image.new(mode, (20, 30), colour)
    if mode == "P":
        picture.putpalette((*BLACK, *RED))
    decoded = saved(picture, tmp_path / "a.tif", icc_profile=profile)
    np.testing.assert_allclose(decoded.reshape(-1, 3) - expected, 0, atol=2)


# --- transparency ---


@pytest.mark.parametrize(
    "kind", ["RGBA.png", "RGBA.webp", "RGBA.tif", "LA.png", "P.png", "P.gif", "RGB.png"]
)
def test_transparent_places_are_white(tmp_path, kind):
    """Whatever colour the invisible pixels around a red disc have."""
    mode = kind.split(".")[0]
    for hidden in (BLACK, WHITE, GREEN):
        # as files of this kind hold it
        disc = Image.new("RGBA", (64, 64), (*hidden, 0))
        ImageDraw.Draw(disc).ellipse((16, 16, 48, 48), (*RED, 255))
        options = {"lossless": True, "exact": True}  # of WebP
        if mode == "RGB":
            options = {"transparency": hidden}  # tRNS
        if mode == "P":
            disc = disc.convert("RGB").quantize(2, dither=Image.Dither.NONE)
            options = {"transparency": disc.getpixel((0, 0))}
        disc = disc.convert(mode)

        decoded = saved(disc, tmp_path / kind, **options)
        assert tuple(decoded[32, 32]) == disc.convert("RGB").getpixel((32, 32))
        assert tuple(decoded[2, 2]) == WHITE


# --- more than eight bits ---


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
def test_a_range_of_grey_is_the_smallest_usual_one(tmp_path, dtype, top, name):
    """1 for floats, else that of 8, 10, 12, 14 or 16 bits."""
    # from black to white
    ramp = np.linspace(0, top, 64 * 64).reshape(64, 64)
    decoded = saved(Image.fromarray(ramp.astype(dtype)), tmp_path / name)
    np.testing.assert_allclose(decoded[..., 0], ramp * (255 / top), atol=1.5)
    assert decoded.max() == 255

    # not the picture's own maximum
    dim = (0.6 * ramp).astype(dtype)
    assert 126 <= saved(Image.fromarray(dim), tmp_path / name).max() < 255


@pytest.mark.parametrize("value", [np.nan, np.inf, -1.0, 70_000.0])
def test_values_that_are_no_grey_are_named(tmp_path, value):
    """Rather than shown as some grey."""
    pixels = np.full((8, 8), 0.5, "float32")
    pixels[0, 0] = value
    with pytest.raises(ValueError, match="negative, above 16 bits, or no numbers"):
        saved(Image.fromarray(pixels), tmp_path / "a.tif")


@pytest.mark.parametrize("content", SIXTEEN_BITS)
def test_of_sixteen_bits_of_colour_the_upper_eight_are_read(tmp_path, content):
    """Those of a scanner that fills the lower ten alone come out dark."""
    path = tmp_path / "scan.png"
    path.write_bytes(base64.b64decode(content))
    assert decode_image(path, 2).tobytes().hex() == "0012ff80ab00ff7f00ffffff"


# --- large pictures ---


def test_large_pictures_are_read_where_they_fit(tmp_path, monkeypatch):
    """A JPEG's decoder reduces it, unless it is progressive."""
    picture = Image.new("RGB", (900, 600), RED)
    picture.save(tmp_path / "a.jpg")
    picture.save(tmp_path / "b.jpg", progressive=True)
    picture.save(tmp_path / "c.png")
    paths = sorted(tmp_path.iterdir())

    # one at a time
    monkeypatch.setattr(images, "LARGE_PIXELS", 100 * 100)
    _, bad = decode_all(paths, 32)
    assert bad == {}

    # two do not fit where a tenth of the memory is a byte less than the PNG needs
    monkeypatch.setattr(images, "memory_limit", lambda: 10 * 4 * 900 * 600 - 1)
    decoded, bad = decode_all(paths, 32)
    assert sorted(bad) == [1, 2]
    assert bad[2].startswith("its 900 x 600 pixels would take 0.0 GB, more than a tenth")

    # the other one was reduced
    np.testing.assert_allclose(decoded[0].mean((0, 1)), RED, atol=3)


@pytest.mark.parametrize(
    ("cores", "fitting", "at_once"), [(8, 8, 8), (2, 8, 2), (8, 2.5, 2), (8, 0.1, 1)]
)
def test_so_many_pictures_are_decoded_at_once_as_cores_and_memory_allow(
    tmp_path, monkeypatch, cores, fitting, at_once
):
    """fitting: how many of them a tenth of the memory holds."""
    path = tmp_path / "a.png"
    Image.new("RGB", (90, 60), RED).save(path)
    monkeypatch.setattr("joblib.cpu_count", lambda: cores)
    monkeypatch.setattr(images, "memory_limit", lambda: 10 * 4 * 90 * 60 * fitting)
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
    assert of_machine > 2**28

    path.write_text("123456\n")
    assert images.memory_limit() == 123456
    for unlimited in ("max\n", f"{2**62}\n"):
        path.write_text(unlimited)
        assert images.memory_limit() == of_machine
