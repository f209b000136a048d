"""Pictures of any kind as arrays: images.py."""

import io
from dataclasses import replace

import numpy as np
import pytest
from conftest import COUNTS, write_csv
from PIL import Image

from transfer.data import load_dataset
from transfer.features import load_features
from transfer.images import decode_image, load_images
from transfer.screen import BadInput


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
    with pytest.raises(BadInput, match="No image of the val split"):
        load_images(dataset, ("val",), 32, cache, skip_unreadable=True)


def test_sixteen_bits_of_grey_are_not_cut_off(tmp_path):
    ramp = np.linspace(0, 65535, 64 * 64).reshape(64, 64).astype("uint16")
    Image.fromarray(ramp).save(tmp_path / "a.png")
    decoded = decode_image(tmp_path / "a.png", 64)
    np.testing.assert_array_equal(decoded[..., 0], ramp >> 8)
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
        "bomb.png": lambda file: Image.new("1", (10_000, 10_000)).save(file),
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
    named = {line.strip() for line in str(error.value).splitlines()[1:]}
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
    script("extract_features", "--data", root, "--layers", "block1_conv1", "--splits", "train")
    (folder,) = (workdir / "features").glob("[!.]*")
    _, _, files = load_features(folder, load_dataset(root), "train", "all")
    assert set(names) <= set(files.tolist())
