"""Pictures of any kind as arrays: images.py."""

import io
import struct
import zlib
from dataclasses import replace

import numpy as np
import pillow_heif
import pytest
from conftest import COUNTS, write_csv
from PIL import Image, ImageDraw, ImageOps

from transfer.console import BadInput
from transfer.data import load_dataset
from transfer.features import load_features
from transfer.folders import walk_pictures
from transfer.images import decode_all, decode_image, load_images


def test_images_equal_pillow_and_come_from_the_cache(tiny, tmp_path, monkeypatch):
    dataset = load_images(load_dataset(tiny), ("val",), 32, tmp_path)
    assert dataset.skipped == []
    images = dataset.splits["val"].images
    assert images.dtype == np.uint8
    assert images.shape == (len(dataset.splits["val"].files), 32, 32, 3)
    for row, file in enumerate(dataset.splits["val"].files):
        with Image.open(tiny / "data_256" / file) as image:
            expected = np.asarray(image.convert("RGB").resize((32, 32), Image.Resampling.BILINEAR))
        np.testing.assert_array_equal(images[row], expected)
    in_memory = load_images(dataset, ("val",), 32, "none").splits["val"].images
    np.testing.assert_array_equal(in_memory, images)
    monkeypatch.setattr("transfer.images.decode_image", None)  # the cache decodes nothing again
    again = load_images(load_dataset(tiny), ("val",), 32, tmp_path).splits["val"].images
    np.testing.assert_array_equal(again, images)


@pytest.mark.parametrize("cache", ["cache", "none"])
def test_unreadable_images_are_all_named_at_once_or_skipped(own_tiny, tmp_path, cache):
    root, _ = own_tiny
    cache = str(tmp_path / cache) if cache == "cache" else cache
    bad = ["train.0.0.jpeg", "train.1.1.jpg", "val.2.0.jpeg"]
    (root / "data_256" / bad[0]).unlink()
    path = root / "data_256" / bad[1]
    path.write_bytes(path.read_bytes()[:300])
    (root / "data_256" / bad[2]).write_bytes(b"")
    dataset = load_dataset(root)
    with pytest.raises(BadInput) as error:
        load_images(dataset, ("train", "val"), 32, cache)
    assert all(file in str(error.value) for file in bad)
    assert "--skip-unreadable" in str(error.value)
    kept = load_images(dataset, ("train", "val"), 32, cache, skip_unreadable=True)
    assert sorted(kept.skipped) == sorted(bad)
    assert kept.fingerprint == dataset.fingerprint
    train = kept.splits["train"]
    assert len(train.images) == len(train.files) == 4 * COUNTS["train"] - 2
    row = train.files.tolist().index("train.3.2.jpeg")
    np.testing.assert_array_equal(
        train.images[[row]][0], decode_image(root / "data_256" / "train.3.2.jpeg", 32)
    )


@pytest.mark.parametrize("mode", ["L", "CMYK", "RGB", "P", "RGBA", "1"])
def test_decoding_gives_rgb_whatever_the_file_holds(tmp_path, mode):
    picture = Image.new("RGB", (20, 30), (204, 204, 204)).convert(mode)
    path = tmp_path / ("a.png" if mode in ("P", "RGBA", "1") else "a.jpg")
    picture.save(path)
    decoded = decode_image(path, 32)
    assert decoded.shape == (32, 32, 3)
    if mode != "1":
        assert np.abs(decoded.astype(int) - 204).max() <= 8


def test_exif_rotation_is_applied(tmp_path):
    picture = Image.new("RGB", (40, 40), "black")
    picture.paste("white", (0, 0, 40, 20))  # the upper half
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    stream = io.BytesIO()
    picture.save(stream, "JPEG", exif=exif)
    (tmp_path / "a.jpg").write_bytes(stream.getvalue())
    decoded = decode_image(tmp_path / "a.jpg", 40)
    assert decoded[:15].mean() < 20
    assert decoded[25:].mean() > 235


def test_too_little_space_is_said_before_anything_is_written(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("usage", (), {"free": 1000}))
    with pytest.raises(BadInput, match="--cache none"):
        load_images(load_dataset(tiny), ("val",), 32, tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("cache", ["cache", "none"])
def test_a_split_without_any_image_is_an_error(tiny, workdir, cache):
    dataset = load_dataset(tiny)
    split = dataset.splits["val"]
    stamps = np.full_like(split.stamps, -1)
    dataset = replace(dataset, splits={**dataset.splits, "val": split._replace(stamps=stamps)})
    with pytest.raises(BadInput, match="No val image of the class 'Bronze' can be read"):
        load_images(dataset, ("val",), 32, cache, skip_unreadable=True)


def test_sixteen_bits_of_grey_are_not_cut_off(tmp_path):
    ramp = np.linspace(0, 65535, 64 * 64).reshape(64, 64).astype("uint16")
    Image.fromarray(ramp).save(tmp_path / "a.png")
    decoded = decode_image(tmp_path / "a.png", 64)
    np.testing.assert_array_equal(decoded[..., 0], np.rint(ramp / 257))
    np.testing.assert_array_equal(decoded[..., 1], decoded[..., 0])


def test_of_an_animation_the_first_picture_is_taken(tmp_path):
    frames = [Image.new("RGB", (40, 40), colour) for colour in ("white", "black", "black")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert decode_image(tmp_path / "a.gif", 40).min() > 250


def damage(path):
    """Every kind of file that is no picture, as {name: how it is written}."""
    content = path.read_bytes()
    return {
        "truncated.jpg": lambda file: file.write_bytes(content[: len(content) // 2]),
        "text.jpg": lambda file: file.write_text("not a picture"),
        "empty.jpg": lambda file: file.touch(),
        "folder.jpg": lambda file: file.mkdir(),
        "loop.jpg": lambda file: file.symlink_to(file),
        "nowhere.jpg": lambda file: file.symlink_to("gone.jpg"),
    }


@pytest.mark.parametrize("cache", ["data/cache", "none"])
def test_files_that_are_no_pictures_are_all_named(own_tiny, workdir, cache):
    root, rows = own_tiny
    first, *_ = (file for file, _, _, split in rows if split == "train")
    kinds = damage(root / "data_256" / first)
    for name, write in kinds.items():
        write(root / "data_256" / name)
    write_csv(root, [*rows, *((name, "Bronze", "M", "val") for name in kinds)])
    with pytest.raises(BadInput) as error:
        load_images(load_dataset(root), ("train", "val"), 32, cache)
    named = {line.strip().split(":")[0] for line in str(error.value).splitlines()[1:]}
    assert named == set(kinds)
    dataset = load_images(load_dataset(root), ("val",), 32, cache, skip_unreadable=True)
    assert set(dataset.skipped) == set(kinds)
    assert len(dataset.splits["val"].images) == sum(split == "val" for *_, split in rows)


def test_names_with_spaces_and_letters_of_any_script(own_tiny, workdir, narrow, script):
    root, rows = own_tiny
    names = ["a b.jpg", "Ölgemälde.v2.jpeg", "浮世絵.jpg", "-rf.jpg", "'quoted', twice.jpg"]
    renamed = dict(zip((file for file, _, _, split in rows if split == "train"), names))
    for old, new in renamed.items():
        (root / "data_256" / old).rename(root / "data_256" / new)
    quoted = [(renamed.get(file, file), *rest) for file, *rest in rows]
    write_csv(root, [(f'"{file}"', *rest) for file, *rest in quoted])
    script("extract_features", "--data", root, "--layers", "block1_conv1")
    (folder,) = (workdir / "features").glob("[!.]*")
    _, _, files = load_features(folder, load_dataset(root), "train", "all")
    assert set(names) <= set(files.tolist())


RED, WHITE = (200, 40, 40), (255, 255, 255)


def disc(hidden):
    """A red disc on a transparent ground, whose invisible pixels have the colour `hidden`."""
    picture = Image.new("RGBA", (64, 64), (*hidden, 0))
    ImageDraw.Draw(picture).ellipse((16, 16, 48, 48), (*RED, 255))
    return picture


@pytest.mark.parametrize("hidden", [(0, 0, 0), (255, 255, 255), (10, 200, 30)])
@pytest.mark.parametrize("kind", ["RGBA.png", "RGBA.webp", "RGBA.tif", "P.png", "RGB.png", "P.gif"])
def test_transparent_places_are_white(tmp_path, hidden, kind):
    mode, path, given = kind.split(".")[0], tmp_path / kind, {}
    picture = disc(hidden)
    if mode != "RGBA":
        given["transparency"] = hidden  # tRNS
        picture = picture.convert("RGB")
        if mode == "P":
            picture = picture.quantize(2, dither=Image.Dither.NONE)
            given["transparency"] = picture.getpixel((0, 0))
    picture.save(
        path, **given, **({"lossless": True, "exact": True} if kind.endswith("webp") else {})
    )
    decoded = decode_image(path, 64)
    assert tuple(decoded[32, 32]) == RED and tuple(decoded[2, 2]) == WHITE


def test_a_black_drawing_on_a_transparent_ground_is_seen(tmp_path):
    picture = Image.new("LA", (64, 64), (0, 0))
    picture.paste((0, 255), (16, 16, 48, 48))
    picture.save(tmp_path / "logo.png")
    assert decode_image(tmp_path / "logo.png", 64)[[2, 32], [2, 32], 0].tolist() == [255, 0]


@pytest.mark.parametrize(
    ("dtype", "top"),
    [
        ("float32", 1),
        ("float32", 255),
        ("float32", 4095),
        *(("uint16", 2**n - 1) for n in (8, 10, 12, 14, 16)),
    ],
)
def test_a_range_is_the_smallest_usual_one(tmp_path, dtype, top):
    ramp = np.linspace(0, top, 32 * 32).reshape(32, 32).astype(dtype)
    Image.fromarray(ramp).save(tmp_path / "a.tif")
    expected = np.rint(ramp.astype("float64") * 255 / top)
    assert np.abs(decode_image(tmp_path / "a.tif", 32)[..., 0] - expected).max() <= 1
    assert decode_image(tmp_path / "a.tif", 32).max() == 255
    Image.fromarray(ramp // 2 if dtype == "uint16" else ramp * 0.6).save(tmp_path / "dim.tif")
    assert decode_image(tmp_path / "dim.tif", 32).max() >= 126  # not the picture's own maximum


@pytest.mark.parametrize("value", [np.nan, np.inf, -1.0, 70_000.0])
def test_values_that_are_no_grey_are_named(tmp_path, value):
    pixels = np.full((8, 8), 0.5, "float32")
    pixels[0, 0] = value
    Image.fromarray(pixels).save(tmp_path / "a.tif")
    _, bad = decode_all([str(tmp_path / "a.tif")], 32)
    assert bad == {0: "it has values that are negative, above 16 bits, or no numbers"}


def write_png(path, pixels, more=b""):
    """A PNG of 16 bits a channel, which Pillow cannot write. pixels: uint16 (h, w, 3 or 4)."""

    def chunk(kind, content):
        checksum = zlib.crc32(kind + content)
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)

    height, width, channels = pixels.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    header = struct.pack(">IIBBBBB", width, height, 16, {3: 2, 4: 6}[channels], 0, 0, 0)
    chunks = (
        chunk(b"IHDR", header) + more + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    )
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunks)


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
@pytest.mark.parametrize("channels", [3, 4])
def test_sixteen_bits_of_colour_are_read_whole(tmp_path, bits, channels):
    pixels = np.random.default_rng(bits).integers(0, 2**bits, (32, 32, channels)).astype("uint16")
    pixels[0, 0, :3] = 2**bits - 1
    if channels == 4:
        pixels[..., 3] = 65535
    write_png(tmp_path / "scan.png", pixels)
    expected = np.rint(pixels[..., :3].astype("float64") * 255 / (2**bits - 1))
    assert np.abs(decode_image(tmp_path / "scan.png", 32) - expected).max() <= 1


def test_large_pictures_are_read_where_they_fit(tmp_path, monkeypatch):
    picture = Image.new("RGB", (900, 600), (90, 140, 60))
    for name, given in {"a.jpg": {}, "b.jpg": {"progressive": True}, "c.png": {}}.items():
        picture.save(tmp_path / name, **given)
    paths = [str(tmp_path / name) for name in ("a.jpg", "b.jpg", "c.png")]
    whole, bad = decode_all(paths, 32)
    assert bad == {}
    monkeypatch.setattr("transfer.images.LARGE_PIXELS", 100 * 100)
    assert decode_all(paths, 32)[1] == {}
    memory = 10 * 4 * 900 * 600 - 1  # a byte less than the PNG needs
    monkeypatch.setattr("os.sysconf", lambda name: 1 if name == "SC_PAGE_SIZE" else memory)
    images, bad = decode_all(paths, 32)
    assert np.abs(images[0].astype(int) - whole[0]).max() <= 3  # reduced by the decoder
    assert (
        set(bad) == {1, 2} and "its 900 x 600 pixels would take 0.0 GB, more than a tenth" in bad[2]
    )


def test_kinds_of_phones_and_of_museums_servers(tmp_path):
    picture = Image.new("RGB", (64, 64), (40, 80, 160))
    pillow_heif.from_pillow(picture).save(tmp_path / "a.heic", quality=95)
    picture.save(tmp_path / "b.jp2")
    picture.save(tmp_path / "c.jpe", "JPEG")
    for path in sorted(tmp_path.iterdir()):
        assert np.abs(decode_image(path, 32).astype(int) - (40, 80, 160)).max() < 6
    assert len(walk_pictures(tmp_path)) == 3


def test_what_is_stored_is_keyed_by_the_times_and_the_rules(own_tiny, tmp_path, monkeypatch):
    root, _ = own_tiny
    path = root / "data_256" / "val.0.0.jpeg"

    def first():
        return load_images(load_dataset(root), ("val",), 32, tmp_path).splits["val"].images[[0]]

    row = load_dataset(root).splits["val"].files.tolist().index("val.0.0.jpeg")
    before = (
        load_images(load_dataset(root), ("val",), 32, tmp_path).splits["val"].images[row].copy()
    )
    size = path.stat().st_size
    negative = ImageOps.invert(Image.open(path))
    negative.save(path, "JPEG", quality=60)
    path.write_bytes(path.read_bytes().ljust(size, b"\0"))
    assert path.stat().st_size == size
    after = load_images(load_dataset(root), ("val",), 32, tmp_path).splits["val"].images[row]
    assert np.abs(after.astype(int) - before).mean() > 20
    stored = len(list(tmp_path.glob("*.npy")))
    monkeypatch.setattr("transfer.images.DECODING", 99)
    first()
    assert len(list(tmp_path.glob("*.npy"))) == stored + 1


def test_an_unreadable_file_is_tried_again(own_tiny, workdir, narrow, script, monkeypatch):
    """As after chmod, which changes neither the size nor the time of a file."""
    root, _ = own_tiny
    opened = Image.open

    def refuse(path, *given):
        if str(path).endswith("train.1.1.jpg"):
            raise PermissionError(13, "Permission denied", str(path))
        return opened(path, *given)

    flags = ("--data", root, "--weights", "none", "--layers", "conv", "--trees", "2")
    with monkeypatch.context() as patch:
        patch.setattr(Image, "open", refuse)
        with pytest.raises(BadInput, match="train.1.1.jpg: Permission denied"):
            load_images(load_dataset(root), ("train",), 32, "cache")
        kept = load_images(load_dataset(root), ("train",), 32, "cache", skip_unreadable=True)
        assert len(kept.splits["train"].images) == 31
        script("random_forest", *flags, "--skip-unreadable")
    assert (
        len(load_images(load_dataset(root), ("train",), 32, "cache").splits["train"].images) == 32
    )
    with monkeypatch.context() as patch:
        patch.setattr("transfer.images.decode_image", None)  # from then on the cache is whole
        load_images(load_dataset(root), ("train",), 32, "cache")
    with pytest.raises(BadInput, match="1 pictures that the features in .* can be read now"):
        script("random_forest", *flags, "--skip-unreadable")
