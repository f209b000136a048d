"""MAMe's metadata, and folders of one's own pictures: data.py."""

import json
import shutil

import numpy as np
import pytest
from conftest import COUNTS, MEDIUMS, read_rows, supports, write_csv
from PIL import Image

from transfer.data import load_dataset
from transfer.images import load_images
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
CLASSES = ["brick", "linen", "slate"]
COLOURS = {"brick": (180, 60, 40), "linen": (220, 210, 180), "slate": (70, 80, 90)}


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
        ("defaults.json", b"{", "damaged"),
        ("defaults.json", b'{"speed": 9}', "and no others"),
        ("defaults.json", b"[1]", "and no others"),
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


def write_picture(path, label, number):
    noise = np.random.default_rng([number, len(label)]).integers(-40, 40, (40, 48, 3))
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray((np.array(COLOURS[label]) + noise).clip(0, 255).astype("uint8")).save(path)


@pytest.fixture
def classes(tmp_path):
    """DIR/CLASS/*: ten pictures a class, some a folder deeper, and files that are no pictures."""
    root = tmp_path / "walls"
    for label in CLASSES:
        for number in range(10):
            below = root / label / ("2024" if number > 7 else "")
            write_picture(below / f"{number}.{'JPG' if number % 2 else 'png'}", label, number)
        (root / label / ".hidden.jpg").write_bytes(b"")
        (root / label / "notes.txt").write_text("none")
    (root / "__MACOSX").mkdir()
    (root / "__MACOSX" / "x.jpg").write_bytes(b"")
    return root


def files_of(dataset):
    return {split: dataset.splits[split].files.tolist() for split in dataset.splits}


def test_classes_are_split_one_by_one_and_recorded(classes, capsys):
    dataset = load_dataset(classes, seed=5)
    assert (dataset.labels, dataset.name, dataset.in_folders) == (CLASSES, "walls", True)
    assert supports(dataset, "train") == dict.fromkeys(CLASSES, 7)
    assert supports(dataset, "val") == dict.fromkeys(CLASSES, 1)
    assert supports(dataset, "test") == dict.fromkeys(CLASSES, 2)
    out = capsys.readouterr().out
    assert "Split 30 pictures class by class with seed 5" in out
    assert "3 .txt" in out
    rows = read_rows(classes / "split.csv")
    assert {row["seed"] for row in rows} == {"5"}
    for split, files in files_of(dataset).items():
        assert files == sorted(row["file"] for row in rows if row["split"] == split)
        labels = dataset.splits[split].labels
        assert [file.split("/")[0] for file in files] == [CLASSES[label] for label in labels]
    assert "slate/2024/9.JPG" in sum(files_of(dataset).values(), [])


def test_the_record_holds_whatever_the_seed_and_new_pictures_join_it(classes, capsys):
    before = load_dataset(classes, seed=5)
    capsys.readouterr()
    assert load_dataset(classes, seed=6).fingerprint == before.fingerprint
    assert "Split" not in capsys.readouterr().out
    for number in range(10, 20):
        write_picture(classes / "linen" / f"{number}.png", "linen", number)
    after = load_dataset(classes, seed=6)
    for split, files in files_of(before).items():
        assert set(files) <= set(files_of(after)[split])  # nothing that was trained on is tested now
    assert [supports(after, split)["linen"] for split in ("train", "val", "test")] == [14, 2, 4]


def test_the_split_follows_the_seed_alone(classes, tmp_path):
    shutil.copytree(classes, tmp_path / "again" / "walls")
    shutil.copytree(classes, tmp_path / "other" / "walls")
    one, again, other = (
        files_of(load_dataset(path / "walls", seed))
        for path, seed in ((tmp_path, 1), (tmp_path / "again", 1), (tmp_path / "other", 2))
    )
    assert one == again != other


def test_folders_of_splits_are_taken_as_they_are(tmp_path, capsys):
    root = tmp_path / "walls"
    for split, count in (("train", 4), ("val", 2), ("test", 3)):
        for label in CLASSES:
            for number in range(count):
                write_picture(root / split / label / f"{number}.png", label, number)
    dataset = load_images(load_dataset(root), ("test",), 32, "none")
    assert supports(dataset, "test") == dict.fromkeys(CLASSES, 3)
    assert dataset.splits["test"].files[0] == "test/brick/0.png"
    assert dataset.name == "walls"
    found = dataset.splits["test"].images[np.arange(9)].mean(axis=(1, 2))
    expected = np.array([COLOURS[dataset.labels[label]] for label in dataset.splits["test"].labels])
    assert np.abs(found - expected).max() < 12
    assert not (root / "split.csv").exists()
    assert "Split" not in capsys.readouterr().out


def test_what_cannot_be_split_is_named(classes):
    shutil.rmtree(classes / "slate")
    write_picture(classes / "slate" / "0.png", "slate", 0)
    with pytest.raises(BadInput, match="'slate' .* has 1 pictures"):
        load_dataset(classes)
    shutil.rmtree(classes / "slate")
    shutil.rmtree(classes / "linen")
    with pytest.raises(BadInput, match="1 folders with pictures"):
        load_dataset(classes)


def test_a_split_or_a_class_that_is_missing_is_named(tmp_path):
    for split in ("train", "test"):
        for label in CLASSES:
            write_picture(tmp_path / split / label / "0.png", label, 0)
    with pytest.raises(BadInput, match="none named val"):
        load_dataset(tmp_path)
    for label in CLASSES[1:]:
        write_picture(tmp_path / "val" / label / "0.png", label, 0)
    with pytest.raises(BadInput, match="'brick' has no picture in the val split"):
        load_dataset(tmp_path)


@pytest.mark.parametrize(
    "record",
    [
        "file,split\nbrick/0.png,train\n",
        "file,split,seed\nbrick/0.png,dev,0\n",
        "file,split,seed\n../brick/0.png,train,0\n",
        "file,split,seed\nbrick/0.png,train,0\nbrick/0.png,test,0\n",
    ],
)
def test_a_damaged_record_is_refused_and_kept(classes, record):
    (classes / "split.csv").write_text(record)
    with pytest.raises(BadInput, match="split.csv, row"):
        load_dataset(classes)
    assert (classes / "split.csv").read_text() == record


def test_a_picture_that_is_gone_is_named(classes, tmp_path):
    load_dataset(classes)
    gone = files_of(load_dataset(classes))["val"][0]
    (classes / gone).unlink()
    with pytest.raises(BadInput, match=gone):
        load_images(load_dataset(classes), ("val",), 32, tmp_path / "cache")


@pytest.mark.parametrize(
    "command",
    [
        ("random_forest", "--layers", "block3_conv3", "--classifier", "linear"),
        ("random_forest", "--layers", "block3_conv3", "--trees", "3"),
        ("finetune", "--recipe", "strong", "--epochs", "1", "--fine-tune-epochs", "1"),
    ],
    ids=["linear", "forest", "network"],
)
def test_two_classes_are_enough(classes, workdir, narrow, script, capsys, command):
    shutil.rmtree(classes / "slate")
    name, *flags = command
    small = ("--image-size", "32", "--weights", "none")
    script(name, *flags, *small, "--data", classes, "--out", "run")
    script("test_model", "--run", "run", "--explain")
    metrics = json.loads((workdir / "run" / "test" / "metrics.json").read_text())
    assert list(metrics["classes"]) == ["brick", "linen"]
    assert not any(key.startswith("top") for key in metrics)  # every answer is among the first two
    assert "top-" not in capsys.readouterr().out


def test_no_lock_is_left_among_the_pictures(classes):
    load_dataset(classes)
    assert {path.name for path in classes.iterdir()} == {*CLASSES, "__MACOSX", "split.csv"}
