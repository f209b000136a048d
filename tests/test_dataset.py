"""Metadata and images: dataset.py."""

import io
from dataclasses import replace

import numpy as np
import pytest
from conftest import COUNTS, MEDIUMS, write_csv
from PIL import Image

from transfer.dataset import load_dataset, supports
from transfer.images import decode_image, load_images
from transfer.screen import BadInput

TEST_SUPPORTS = {  # MAMe's test split, as the study's report lists them
    "Albumen photograph": 700,
    "Clay": 313,
    "Hand-colored engraving": 328,
    "Hand-colored etching": 584,
    "Marble": 257,
    "Silk and metal thread": 95,
    "Steel": 133,
    "Woven fabric": 700,
}


def test_reads_labels_in_official_order_and_strips_the_trailing_space(tiny):
    dataset = load_dataset(tiny)
    assert dataset.labels == MEDIUMS
    assert supports(dataset, "train") == dict.fromkeys(MEDIUMS, COUNTS["train"])
    assert supports(dataset, "test")["Bronze"] == COUNTS["test"] + 2
    assert supports(dataset, "test")["Woven fabric"] == COUNTS["test"]
    for split in dataset.splits.values():
        for file, label in zip(split.files, split.labels):
            assert file.split(".")[1] == str(label)


@pytest.mark.real
def test_real_metadata(shared, tmp_path):
    (tmp_path / "data_256").mkdir()
    folder = tmp_path / "MAMe_metadata"
    folder.mkdir()
    for name in ("MAMe_dataset.csv", "MAMe_labels.csv"):
        (folder / name).write_bytes((shared / "mame" / name).read_bytes())
    dataset = load_dataset(tmp_path)
    sizes = {name: len(split.files) for name, split in dataset.splits.items()}
    assert sizes == {"train": 20300, "val": 1450, "test": 15657}
    assert len(dataset.labels) == 29
    assert dataset.labels[0] == "Albumen photograph"
    assert dataset.labels[28] == "Woven fabric"
    assert set(supports(dataset, "train").values()) == {700}
    assert set(supports(dataset, "val").values()) == {50}
    test = supports(dataset, "test")
    assert {name: test[name] for name in TEST_SUPPORTS} == TEST_SUPPORTS
    assert dataset.defaults["image_size"] == 224
    assert dataset.defaults["weights"] == "imagenet"
    assert dataset.notice is None


def test_metadata_in_subfolder_with_bom_and_windows_line_ends(own_tiny):
    root, _ = own_tiny
    plain = load_dataset(root)
    folder = root / "MAMe_metadata"
    folder.mkdir()
    for name in ("MAMe_dataset.csv", "MAMe_labels.csv"):
        content = (root / name).read_text().replace("\n", "\r\n")
        (folder / name).write_text("\ufeff" + content, encoding="utf-8", newline="")
        (root / name).unlink()
    moved = load_dataset(root)
    assert moved.labels == plain.labels
    assert moved.fingerprint == plain.fingerprint


def test_fingerprint_follows_labels_and_files(own_tiny):
    root, rows = own_tiny
    before = load_dataset(root).fingerprint
    file, medium, museum, split = rows[0]
    write_csv(root, [(file, "Woodcut", museum, split), *rows[1:]])
    assert load_dataset(root).fingerprint != before


@pytest.mark.parametrize(
    ("row", "names"),
    [
        (("a.jpg", "Marble", "M", "train"), "Marble"),
        (("a.jpg", "Bronze", "M", "training"), "training"),
        (("../a.jpg", "Bronze", "M", "train"), "../a.jpg"),
        (("/etc/passwd", "Bronze", "M", "train"), "/etc/passwd"),
        (("train.0.0.jpeg", "Bronze", "M", "test"), "listed twice"),
        (("", "Bronze", "M", "train"), "not the name of a file"),
    ],
)
def test_a_bad_row_is_named(own_tiny, row, names):
    root, rows = own_tiny
    write_csv(root, [*rows, row])
    with pytest.raises(BadInput, match=f"(?s)row {len(rows) + 2}.*{names}"):
        load_dataset(root)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("MAMe_dataset.csv", b"", "lacks the column 'Image file'"),
        ("MAMe_dataset.csv", b"Image file,Museum,Subset\n", "lacks the column 'Medium'"),
        ("MAMe_dataset.csv", b"\xff\xfe\x00\x01", "not a CSV file"),
        ("MAMe_labels.csv", b"0,Bronze\n2,Woodcut\n", "without a gap"),
        ("MAMe_labels.csv", b"0,Bronze\n1,Bronze\n", "repetition"),
        ("MAMe_labels.csv", b"Bronze\n", "row 1"),
        ("defaults.json", b"{", "not JSON"),
        ("defaults.json", b'{"speed": 9}', "speed"),
        ("defaults.json", b'{"image_size": "big"}', "image_size"),
        ("defaults.json", b'{"batch_size": 0}', "batch_size"),
        ("defaults.json", b'{"learning_rate": NaN}', "learning_rate"),
        ("defaults.json", b"[1]", "not an object"),
    ],
)
def test_a_malformed_file_is_named(own_tiny, name, content, message):
    root, _ = own_tiny
    (root / name).write_bytes(content)
    with pytest.raises(BadInput, match=message):
        load_dataset(root)


def test_missing_folder_and_metadata_are_named(own_tiny):
    root, _ = own_tiny
    with pytest.raises(BadInput, match="nowhere"):
        load_dataset(root / "nowhere")
    (root / "MAMe_labels.csv").unlink()
    with pytest.raises(BadInput, match="MAMe_labels.csv"):
        load_dataset(root)


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
    on_demand = load_images(dataset, ("val",), 32, "none").splits["val"].images
    np.testing.assert_array_equal(on_demand[np.arange(5)], images[:5])
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
