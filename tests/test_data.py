"""MAMe's metadata, and folders of one's own pictures: data.py."""

import json
import os
import shutil
import sys
import unicodedata
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from conftest import COUNTS, MEDIUMS, read_rows, supports, write_csv
from PIL import Image

from transfer.console import BadInput
from transfer.data import load_dataset
from transfer.images import load_images

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
        (("a.jpg", "Bronze", "M", "holdout"), "holdout"),
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
        assert set(files) <= set(
            files_of(after)[split]
        )  # nothing that was trained on is tested now
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
    with pytest.raises(BadInput, match=r"named like splits \(test, train\)"):
        load_dataset(tmp_path)
    for label in CLASSES[1:]:
        write_picture(tmp_path / "val" / label / "0.png", label, 0)
    with pytest.raises(BadInput, match="'brick' has no picture in the val split"):
        load_dataset(tmp_path)


@pytest.mark.parametrize(
    "record",
    [
        "file,class\nbrick/0.png,brick\n",
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


@pytest.mark.parametrize("names", ["train valid test", "train validation test", "Train Val TEST"])
def test_splits_by_hand_are_known_by_their_usual_names(tmp_path, names, capsys):
    for number, (split, label) in enumerate(product(names.split(), CLASSES)):
        write_picture(tmp_path / split / label / f"{number}.png", label, number)
    write_picture(tmp_path / names.split()[0] / "loose.png", "brick", 99)
    dataset = load_dataset(tmp_path)
    assert (dataset.labels, [len(split.files) for split in dataset.splits.values()]) == (
        CLASSES,
        [3, 3, 3],
    )
    assert "1 pictures that lie in no class's folder" in capsys.readouterr().out
    (tmp_path / names.split()[1]).rename(tmp_path / "wood")
    with pytest.raises(
        BadInput, match="named like splits"
    ):  # of which wood would be a class, and so they
        load_dataset(tmp_path)


def test_links_are_followed_and_end(classes, tmp_path):
    (classes / "slate").rename(tmp_path / "elsewhere")
    (classes / "slate").symlink_to(tmp_path / "elsewhere")
    (classes / "brick" / "up").symlink_to(classes)
    assert len(files_of(load_dataset(classes))["train"]) == 21
    (classes / "brick" / "up").unlink()
    (classes / "granite").symlink_to(tmp_path / "nowhere")
    with pytest.raises(BadInput, match=r"The link .*granite leads nowhere"):
        load_dataset(classes)


def test_a_folder_that_cannot_be_listed_is_named(classes, monkeypatch):
    listed = os.listdir  # root may list everything, so its rights are no test

    def refuse(folder):
        if Path(folder).name == "slate":
            raise PermissionError(13, "Permission denied")
        return listed(folder)

    monkeypatch.setattr("os.listdir", refuse)
    with pytest.raises(BadInput, match=r"slate cannot be listed: Permission denied"):
        load_dataset(classes)


def test_results_among_the_pictures_are_no_class(classes, script, capsys):
    shutil.copytree(classes / "slate", classes / "results")
    (classes / "results" / "config.json").write_text('{"script": "finetune.py", "arguments": {}}')
    assert load_dataset(classes).labels == CLASSES
    assert "results, which holds a run of these scripts" in capsys.readouterr().out
    for name in ("finetune", "random_forest", "extract_features", "train_pretrained"):
        with pytest.raises(BadInput, match=r"--out .*run lies among the pictures"):
            script(name, "--data", classes, "--weights", "none", "--out", classes / "run")


def test_edited_and_copied_pictures_are_told_apart(classes, tmp_path):
    before = load_dataset(classes)
    shutil.copytree(classes, tmp_path / "copy" / "walls")  # with the times
    assert load_dataset(tmp_path / "copy" / "walls").content_key == before.content_key
    path = classes / "brick" / "0.png"
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))  # what a tool leaves that keeps the size
    after = load_dataset(classes)
    assert after.fingerprint == before.fingerprint and after.content_key != before.content_key


def test_views_of_one_object_stay_together(tmp_path, capsys):
    for label, item, view in product(CLASSES, range(10), "ab"):
        number = item + 100 * (view == "b")
        write_picture(tmp_path / "objects" / label / f"chair {item}" / f"{view}.png", label, number)
        write_picture(tmp_path / "names" / label / f"chair{item}_{view}.png", label, number)
    dataset = load_dataset(tmp_path / "objects")
    place = {
        file.rpartition("/")[0]: split
        for split, files in files_of(dataset).items()
        for file in files
    }
    assert sum(map(len, files_of(dataset).values())) == 2 * len(place)
    for split, files in files_of(dataset).items():
        assert len(files) == {"train": 42, "val": 6, "test": 12}[split]
        assert {place[file.rpartition("/")[0]] for file in files} == {split}
    write_picture(tmp_path / "objects" / "brick" / "chair 3" / "new.png", "brick", 999)
    joined = next(
        s for s, f in files_of(load_dataset(tmp_path / "objects")).items() for x in f if "new" in x
    )
    assert joined == place["brick/chair 3"]
    assert "look like views" not in capsys.readouterr().out
    load_dataset(tmp_path / "names")
    assert "look like views of one object" in capsys.readouterr().out
    for item in range(2, 10):
        shutil.rmtree(tmp_path / "objects" / "slate" / f"chair {item}")
    (tmp_path / "objects" / "split.csv").unlink()
    with pytest.raises(BadInput, match="'slate' .* has 2 pictures or objects"):
        load_dataset(tmp_path / "objects")


@pytest.mark.parametrize("seed", range(4))
def test_a_large_object_leaves_no_split_empty(tmp_path, seed):
    for label in CLASSES:
        for number in range(23):
            below = "big" if number > 2 else f"small {number}"
            write_picture(tmp_path / label / below / f"{number}.png", label, number)
    dataset = load_dataset(tmp_path, seed)
    assert all(supports(dataset, "train")[label] >= 20 for label in CLASSES)
    assert all(supports(dataset, split)[label] for split in ("val", "test") for label in CLASSES)


def test_copies_stay_together_and_are_named(classes, capsys):
    for number in range(4):
        shutil.copy(classes / "brick" / "0.png", classes / "brick" / f"copy{number}.png")
        shutil.copy(
            classes / "linen" / f"{2 * number}.png", classes / "slate" / f"linen{number}.png"
        )
    place = {
        file: split for split, files in files_of(load_dataset(classes)).items() for file in files
    }
    assert (
        len({place["brick/0.png"], *(place[f"brick/copy{number}.png"] for number in range(4))}) == 1
    )
    for number in range(4):
        assert place[f"linen/{2 * number}.png"] == place[f"slate/linen{number}.png"]
    out = capsys.readouterr().out
    assert (
        "Warning: 4 pictures lie in several classes" in out
        and "linen/0.png = slate/linen0.png" in out
    )
    assert "several splits" not in out
    shutil.copytree(classes / "slate", classes.parent / "by hand" / "train" / "slate")
    shutil.copytree(classes / "brick", classes.parent / "by hand" / "train" / "brick")
    for split in ("val", "test"):
        shutil.copytree(classes.parent / "by hand" / "train", classes.parent / "by hand" / split)
    load_dataset(classes.parent / "by hand")
    assert "several splits, byte for byte: test/brick/" in capsys.readouterr().out


@pytest.mark.skipif(sys.platform != "linux", reason="other systems know no such names")
def test_names_that_are_not_utf8(classes, workdir, narrow, script):
    sys.stdout.reconfigure(errors="backslashreplace")  # as `run_script` does
    for label in CLASSES:  # in all three splits, whichever picture it is
        for path in sorted((classes / label).glob("[0-9].*")):
            os.rename(path, os.fsencode(path.parent) + b"/K\xf6ln" + os.fsencode(path.name))
    flags = ("--image-size", "32", "--weights", "none")
    script(
        "random_forest",
        "--data",
        classes,
        *flags,
        "--layers",
        "conv",
        "--trees",
        "2",
        "--out",
        "run",
    )
    script("test_model", "--run", "run")
    script("test_model", "--run", "run", "--predict", classes / "brick")
    assert "K\\udcf6ln0.png" in (classes / "split.csv").read_text(encoding="utf-8")
    lines = (
        (workdir / "run" / "predicted" / "predictions.jsonl")
        .read_text(encoding="utf-8")
        .splitlines()
    )
    assert {Path(json.loads(line)["file"]).exists() for line in lines} == {True}
    assert len(lines) == 10 and len(read_rows(workdir / "run" / "test" / "predictions.csv")) == 6


def test_two_forms_of_one_letter_are_one_class(classes):
    (classes / "slate").rename(classes / unicodedata.normalize("NFD", "Möbel"))
    labels = load_dataset(classes).labels
    assert labels == ["Möbel", "brick", "linen"]
    (classes / unicodedata.normalize("NFD", "Möbel")).rename(
        classes / "Möbel"
    )  # as a zip leaves it
    again = load_dataset(classes)
    assert again.labels == labels and sum(len(split.files) for split in again.splits.values()) == 30
    for number in range(5):
        picture = classes / unicodedata.normalize("NFD", "Möbel") / f"new{number}.png"
        write_picture(picture, "slate", 100 + number)
    assert load_dataset(classes).labels == labels


def test_a_record_that_a_spreadsheet_wrote_is_read(classes):
    before = files_of(load_dataset(classes))
    text = (classes / "split.csv").read_text().replace(",", ";").replace("/", "\\")
    text = text.replace(";train;", ";Train;").replace("\n", "\r\n") + ";;\r\n"
    (classes / "split.csv").write_text("\ufeff" + text, encoding="utf-8", newline="")
    assert files_of(load_dataset(classes)) == before
    assert (
        (classes / "split.csv").read_text(encoding="utf-8").startswith("\ufeff")
    )  # nothing was drawn


def test_kinds_of_pictures_that_are_not_read_are_named(classes, capsys):
    (classes / "brick" / "raw.CR2").write_bytes(b"II")
    (classes / "granite").mkdir()
    load_dataset(classes)
    out = capsys.readouterr().out
    assert "as they hold no pictures of a class: granite" in out
    assert "pictures of kinds that are not read (save them as JPEG, PNG or TIFF): 1 .CR2" in out
    assert "not pictures by their name: 3 .txt" in out


def test_what_of_any_split_cannot_be_read_is_said_before_training(classes, workdir, narrow, script):
    bad = files_of(load_dataset(classes))["test"][0]
    (classes / bad).write_bytes(b"GIF89a")
    small = ("--image-size", "32", "--weights", "none", "--data", classes)
    for command in (
        ("finetune", "--head", "i"),
        ("train_pretrained",),
        ("random_forest", "--trees", "2"),
    ):
        with pytest.raises(BadInput, match=f"(?s)1 images .*{bad}: it is not a picture"):
            script(*command, *small)
    assert not (workdir / "runs").exists()
    (classes / bad).unlink()
    with pytest.raises(
        BadInput, match=r"(?s)delete the rows of the 1 that are gone in split.csv.*no such"
    ):
        script("finetune", "--head", "i", *small)
    for path in (classes / "slate").rglob("*.*"):
        path.write_bytes(b"")
    with pytest.raises(BadInput, match="No train image of the class 'slate' can be read"):
        script("finetune", "--head", "i", *small, "--skip-unreadable")


def test_an_old_run_is_tested_on_pictures_that_came_and_went(
    classes, workdir, narrow, script, capsys
):
    small = ("--image-size", "32", "--weights", "none", "--data", classes)
    command = (
        "random_forest",
        *small,
        "--layers",
        "conv",
        "--classifier",
        "linear",
        "--alpha",
        "100",
    )
    script(*command)
    gone = files_of(load_dataset(classes))["train"][0]
    (classes / gone).unlink()
    for number in range(50, 60):
        write_picture(classes / "linen" / f"{number}.png", "linen", number)
    capsys.readouterr()
    script("test_model")  # bare: the best run there is, and no demo
    out = capsys.readouterr().out
    assert "the test split" in out and "study" not in out
    (report,) = workdir.glob("runs/*/test-*/metrics.json")
    assert json.loads(report.read_text())["images"] == 8
    folder = next(path.parent for path in workdir.glob("features/*/train.csv"))
    with pytest.raises(BadInput, match=r"split.csv.*\(1 are gone, \d+ new"):
        script(*command, "--features", folder, "--out", "new")
