"""Own pictures in folders: folders.py."""

import json
import os
import shutil
import sys
import unicodedata
from collections import Counter
from itertools import count, product
from pathlib import Path
from unittest.mock import Mock

import pytest
from conftest import read_rows, supports
from PIL import Image

from transfer.console import BadInput
from transfer.data import load_dataset
from transfer.files import read_json
from transfer.folders import group_files, grouped, make_split, warn_of_look_alikes, warn_of_views
from transfer.study import SPLITS

CLASSES = ["brick", "linen", "slate"]
COLOURS = count(0, 9973)  # of the pictures, one after the other
SMALL = ("--image-size", "32", "--weights", "none")
LINEAR = ("random_forest", "--layers", "conv", "--classifier", "linear", "--alpha", "100", *SMALL)


def write_pictures(folder, *names):
    """Pictures of one colour each, none like another."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (48, 40), next(COLOURS)).save(path)


def numbered(start, stop):
    return [f"{number}.png" for number in range(start, stop)]


@pytest.fixture
def classes(tmp_path):
    """DIR/CLASS/*: ten pictures a class, some a folder deeper, and files that are no pictures."""
    root = tmp_path / "walls"
    for label in CLASSES:
        deeper = ("2024/8.JPG", "2024/9.png")
        write_pictures(root / label, ".hidden.jpg", "0.JPG", *numbered(1, 8), *deeper)
        (root / label / "notes.txt").touch()
    write_pictures(root / "__MACOSX", "x.jpg")
    return root


def counts_of(dataset):
    """{class name: numbers of its pictures in SPLITS}."""
    counts = [supports(dataset, split) for split in SPLITS]
    return {label: [count[label] for count in counts] for label in dataset.labels}


def split_of(dataset):
    """{file: its split}."""
    return {file: name for name, split in dataset.splits.items() for file in split.files.tolist()}


def split_names(files, recorded, seed):
    """{file: split} that new files of these names get."""
    return make_split("walls", dict(zip(files, files)), recorded, [], seed)


def test_classes_are_split_one_by_one_and_recorded(classes, capsys):
    dataset = load_dataset(classes, seed=1)
    assert counts_of(dataset) == dict.fromkeys(CLASSES, [7, 1, 2])
    assert "Split 30 pictures class by class with seed 1" in capsys.readouterr().out

    rows = read_rows(classes / "split.csv")
    assert {row["file"]: row["split"] for row in rows} == split_of(dataset)

    # by the seed and the names alone, the same on every machine and in every version
    assert dataset.splits["val"].files.tolist() == ["brick/0.JPG", "linen/5.png", "slate/7.png"]
    (classes / "split.csv").unlink()
    assert split_of(load_dataset(classes, seed=2)) != split_of(dataset)


def test_the_record_holds_whatever_the_seed_and_new_pictures_join_it(classes):
    before = load_dataset(classes, seed=5)
    assert load_dataset(classes, seed=6).fingerprint == before.fingerprint

    write_pictures(classes / "linen", *numbered(10, 20))
    after = load_dataset(classes, seed=6)
    assert split_of(after).items() >= split_of(before).items()  # what trained is not tested now
    assert counts_of(after)["linen"] == [14, 2, 4]


@pytest.mark.parametrize("seed", range(4))
def test_a_large_object_leaves_no_split_empty(seed):
    """Nor do those that hold more pictures than a split's share."""
    small = [f"brick/small {item}/{view}.png" for item, view in product("abc", "1234")]
    large = [f"brick/large/{view}.png" for view in range(20)]

    added = split_names(small + large, {}, seed)
    assert Counter(added.values()) == {"train": 24, "val": 4, "test": 4}


@pytest.mark.parametrize(
    "places",
    [
        "train/{} val/{} test/{}",
        "train/{} validation/{} test/{}",
        "Train/{} Valid/{} TEST/{}",
        "{}/Training {}/val {}/test",
    ],
)
def test_splits_by_hand_are_taken_as_they_are(tmp_path, places, capsys):
    for place, label in product(places.split(), CLASSES):
        write_pictures(tmp_path / place.format(label), "0.png", "1.png")
    outside = places.split("/")[0].format("brick")
    write_pictures(tmp_path, f"{outside}/loose.png", "wood/oak/0.png")

    dataset = load_dataset(tmp_path)
    assert counts_of(dataset) == dict.fromkeys(CLASSES, [2, 2, 2])
    assert dataset.splits["test"].labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert not (tmp_path / "split.csv").exists()

    out = capsys.readouterr().out
    assert "pictures that lie in no class's folder: 2" in out
    assert "folders without pictures of a class: wood" in out


def test_a_recorded_split_holds_against_one_by_hand_within_classes(tmp_path):
    """As earlier versions took such folders for objects."""
    for label, split in product(CLASSES, SPLITS):
        write_pictures(tmp_path / label / split, "0.png")
    (tmp_path / "split.csv").write_text("file,split\nbrick/train/0.png,test\n")

    assert split_of(load_dataset(tmp_path))["brick/train/0.png"] == "test"


@pytest.mark.parametrize(
    ("folders", "message"),
    [
        ("brick brick linen", "'brick' in .* has 2 pictures or objects"),
        ("brick/a brick/a brick/b brick/b", "'brick' in .* has 2 pictures or objects"),
        ("brick brick brick", "pictures of 1 classes and two are needed"),
        ("train/brick train/linen test/brick test/linen", r"named like splits \(test, train\)"),
        ("train/brick test/brick wood/brick", r"named like splits \(test, train\)"),
        ("brick linen slate test", r"named like splits \(test\)"),
        ("brick/train brick/test linen/train linen/test", r"named like splits \(test, train\)"),
        ("train/brick train/linen test/brick test/linen val/linen", "'brick' has no .* val split"),
    ],
)
def test_what_cannot_be_split_is_named(tmp_path, folders, message):
    for number, folder in enumerate(folders.split()):
        write_pictures(tmp_path / folder, f"{number}.png")

    with pytest.raises(BadInput, match=message):
        load_dataset(tmp_path)


@pytest.mark.parametrize(
    "record",
    [
        "file,class\nbrick/1.png,brick\n",
        "file,split\nbrick/1.png,dev\n",
        "file,split\n1.png,train\n",
        "file,split\nbrick/1.png,train\nbrick/1.png,test\n",
    ],
)
def test_a_damaged_record_is_refused_and_kept(classes, record):
    (classes / "split.csv").write_text(record)

    with pytest.raises(BadInput, match="split.csv, row .: expected file,split with"):
        load_dataset(classes)
    assert (classes / "split.csv").read_text() == record


def test_a_record_that_a_spreadsheet_wrote_is_read(classes):
    before = split_of(load_dataset(classes))
    record = classes / "split.csv"
    text = record.read_text().replace(",", ";").replace("/", "\\").replace(";train;", ";Train;")
    record.write_text("\ufeff" + text + ";;\n", encoding="utf-8", newline="\r\n")
    assert split_of(load_dataset(classes, seed=1)) == before


def test_two_classes_are_enough(classes, workdir, narrow, script):
    shutil.rmtree(classes / "slate")
    script(*LINEAR, "--data", classes, "--out", "run")
    script("test_model", "--run", "run", "--explain")

    assert list(read_json("run/test/metrics.json")["classes"]) == ["brick", "linen"]


def test_links_are_followed_and_end(classes, tmp_path):
    """Also one that leads back to a folder above it; one to nowhere is named."""
    (classes / "slate").rename(tmp_path / "elsewhere")
    (classes / "slate").symlink_to(tmp_path / "elsewhere")
    (classes / "brick/up").symlink_to(classes)

    assert counts_of(load_dataset(classes)) == dict.fromkeys(CLASSES, [7, 1, 2])

    (classes / "granite").symlink_to(tmp_path / "nowhere")
    with pytest.raises(BadInput, match="The link .*granite leads nowhere"):
        load_dataset(classes)


def test_a_folder_that_cannot_be_listed_is_named(classes, monkeypatch):
    """By the error itself, which nothing on its way may swallow."""
    # root may list everything, so its rights are no test
    error = PermissionError(13, "Permission denied")
    monkeypatch.setattr(os, "scandir", Mock(side_effect=error))

    with pytest.raises(PermissionError, match="denied"):
        load_dataset(classes)


def test_results_among_the_pictures_are_no_class(classes, script, capsys):
    shutil.copytree(classes / "slate", classes / "results")
    (classes / "results/config.json").write_text('{"script": "finetune.py", "arguments": {}}')
    assert load_dataset(classes).labels == CLASSES
    assert "results, which holds a run of these scripts" in capsys.readouterr().out

    with pytest.raises(BadInput, match="--out .*run lies among the pictures"):
        script("finetune", *SMALL, "--data", classes, "--out", classes / "run")


def test_a_copy_with_other_times_is_the_same_dataset(classes, tmp_path):
    copy = tmp_path / "copy/walls"
    shutil.copytree(classes, copy, copy_function=shutil.copy)
    assert load_dataset(copy).fingerprint == load_dataset(classes).fingerprint


def test_a_renamed_class_is_named_before_anything_is_recorded(classes):
    load_dataset(classes)
    recorded = (classes / "split.csv").read_bytes()
    (classes / "slate").rename(classes / "granite")

    with pytest.raises(BadInput, match=r"split\.csv \(gone: slate; new: granite\); name"):
        load_dataset(classes)
    assert (classes / "split.csv").read_bytes() == recorded


def test_views_of_one_object_stay_together():
    """Each in a folder of its own below the class."""
    views = [f"brick/chair {item}/{view}.png" for item, view in product(range(10), "ab")]
    added = split_names(views, {}, seed=0)
    splits = list(added.values())
    assert splits[::2] == splits[1::2]
    assert Counter(splits) == {"train": 14, "val": 2, "test": 4}

    # a new view joins the others, whatever the seed
    joined = split_names([*views, "brick/chair 3/new.png"], added, seed=1)
    assert joined == {"brick/chair 3/new.png": "test"}


@pytest.mark.parametrize(
    "groups",
    [
        "1.HEIC 1.jpg 1.TIF | 2.jpg | Oak.JPG oak.png",
        # thumbnails, of one that is gone too; images and masks
        "1.jpg small/1.jpg | 2.jpg small/2.jpg | 3.jpg small/3.jpg | small/4.jpg",
        "images/1.jpg masks/1.png | images/2.jpg masks/2.png",
        # one level more
        "images/1.jpg | images/2.jpg | images/3.jpg",
        "images/chair/1.jpg images/chair/2.jpg | images/table/1.jpg images/table/back/3.jpg",
        # views that are called alike in each object's folder
        "chair/1.jpg chair/2.jpg | stool/1.jpg stool/2.jpg | table/1.jpg table/2.jpg",
        "1.jpg | 2.jpg | 3.jpg | 4.jpg | chair/1.jpg chair/2.jpg",
        "1.jpg | 1/2.jpg 1/3.jpg",
    ],
)
def test_pictures_of_one_name_stay_together_but_objects_stay_apart(groups):
    expected = [group.split() for group in groups.split("|")]
    names = {file: f"wood/{file}" for file in sum(expected, [])}
    group_of = group_files(names, [])
    assert list(grouped(names, group_of.get).values()) == expected


def test_names_that_look_like_views_are_named(tmp_path, capsys):
    views = product(CLASSES, range(3), "ab")
    write_pictures(tmp_path, *(f"{label}/oak_{item}-{view}.png" for label, item, view in views))
    load_dataset(tmp_path)
    out = capsys.readouterr().out
    assert "brick/oak_0-a.png and brick/oak_0-b.png look like views of one object" in out

    # not so where pictures are numbered
    warn_of_views([f"brick/oak_{item}.png" for item in range(8)])
    assert capsys.readouterr().out == ""


def test_copies_stay_together_and_are_named(classes, capsys):
    for name in ("a.png", "b.png"):
        shutil.copy(classes / "linen/1.png", classes / "slate" / name)

    place = split_of(load_dataset(classes))
    assert place["linen/1.png"] == place["slate/a.png"] == place["slate/b.png"]
    assert "byte for byte: linen/1.png = slate/a.png = slate/b.png" in capsys.readouterr().out

    # also with one that has its split
    tested = load_dataset(classes).splits["test"].files[0]
    shutil.copy(classes / tested, classes / "slate/new.png")
    assert split_of(load_dataset(classes))["slate/new.png"] == "test"


@pytest.mark.skipif(sys.platform != "linux", reason="other systems know no such names")
def test_names_that_are_not_utf8(classes, workdir, narrow, script):
    sys.stdout.reconfigure(errors="backslashreplace")  # as `run_script` does
    for path in classes.glob("*/?.png"):
        path.rename(path.with_name(f"K\udcf6ln{path.name}"))

    script(*LINEAR, "--data", classes, "--out", "run")
    script("test_model", "--run", "run")
    script("test_model", "--run", "run", "--predict", classes / "brick")

    # such a byte is written as its escape, by which the file is found again
    assert "K\\udcf6ln1.png" in (classes / "split.csv").read_text(encoding="utf-8")
    text = Path("run/predicted/predictions.jsonl").read_text(encoding="utf-8")
    found = [os.path.exists(json.loads(line)["file"]) for line in text.splitlines()]
    assert found == [True] * 10


@pytest.mark.skipif(sys.platform == "win32", reason="it has no such names")
def test_whatever_a_name_holds_the_record_is_read(classes):
    names = ["a\rb", "a\nb", "a\r\nb", "a\x85b", "a\u2028b", ' "a", b', " 'a;b'\t", "\\"]
    write_pictures(classes, *(f"br\rick /{name}.png" for name in names))
    before = load_dataset(classes)
    assert load_dataset(classes, seed=1).fingerprint == before.fingerprint
    assert counts_of(before)["br\rick "] == [5, 1, 2]


def test_classes_that_look_alike_are_named(capsys):
    warn_of_look_alikes(["wood", "Wood", "wood ", "w\u03bf\u043ed", "wo\u200bod", "word", "woods"])
    out = capsys.readouterr().out
    assert r"'wood', 'Wood', 'wood ', 'w\u03bf\u043ed', 'wo\u200bod'; " in out


def test_a_folder_that_cannot_be_written_is_split_all_the_same(classes, workdir, capsys):
    lock = classes / ".split.csv.lock"
    lock.mkdir()  # in the place of the file
    before = load_dataset(classes)
    (record,) = Path("data/splits").glob("*.csv")
    assert f"recorded in {record}" in capsys.readouterr().out

    # it is found again, by the folder's place, and moves once that can be written
    assert load_dataset(os.path.relpath(classes), seed=1).fingerprint == before.fingerprint
    lock.rmdir()
    write_pictures(classes / "linen", "10.png")
    assert split_of(load_dataset(classes)).items() > split_of(before).items()
    assert len(read_rows(classes / "split.csv")) == 31
    assert not record.exists()


def test_two_forms_of_one_letter_are_one_class(classes):
    decomposed = classes / unicodedata.normalize("NFD", "Möbel")
    (classes / "slate").rename(decomposed)
    before = load_dataset(classes)

    decomposed.rename(classes / "Möbel")  # as a zip leaves it
    assert load_dataset(classes).fingerprint == before.fingerprint

    # a folder in each form
    write_pictures(decomposed, *numbered(10, 15))
    both = load_dataset(classes)
    assert both.labels == ["Möbel", "brick", "linen"]
    assert len(split_of(both)) == 35


def test_what_systems_keep_among_the_pictures_is_passed_over_and_said(classes, capsys):
    write_pictures(classes / "System Volume Information", "x.png")
    write_pictures(classes, "brick/@eaDir/1.png/x.png", "#recycle/x.png", "lost+found/x.png")
    write_pictures(classes / "__background__", "__x.png", *numbered(1, 4))
    (classes / "brick/raw.CR2").touch()
    (classes / "granite").mkdir()

    dataset = load_dataset(classes)
    assert dataset.labels == ["__background__", *CLASSES]
    assert len(split_of(dataset)) == 34

    expected = "3 .jpg, 1 #recycle, 1 System Volume Information, 1 __MACOSX, 1 @eaDir\n"
    out = capsys.readouterr().out
    assert f"hidden, or of systems and programs: {expected}" in out
    assert "pictures of kinds that are not read (save them as JPEG, PNG or TIFF): 1 .CR2" in out
    assert "not pictures by their name: 3 .txt" in out
    assert "folders without pictures of a class: granite" in out


def test_what_of_any_split_cannot_be_read_is_said_before_training(classes, workdir, narrow, script):
    bad = load_dataset(classes).splits["test"].files[0]
    (classes / bad).write_bytes(b"GIF89a")
    for command in (("finetune", *SMALL), LINEAR):
        with pytest.raises(BadInput, match=f"(?s)1 images .*{bad}: it is not a picture"):
            script(*command, "--data", classes)
    assert not Path("runs").exists()

    # where it is gone, the record is named too
    (classes / bad).unlink()
    with pytest.raises(BadInput, match=rf"(?s)\(1\) from split.csv.*{bad}: there is no such file"):
        script(*LINEAR, "--data", classes)

    # no class may vanish
    for path in (classes / "slate").rglob("*.*"):
        path.write_bytes(b"")
    with pytest.raises(BadInput, match="No train image of the class 'slate' can be read"):
        script(*LINEAR, "--data", classes, "--skip-unreadable")


def test_an_old_run_is_tested_on_pictures_that_came_and_went(
    classes, workdir, narrow, script, capsys
):
    """One picture of train is gone, and ten of one class are new, two of them in test."""
    script(*LINEAR, "--data", classes)
    (classes / load_dataset(classes).splits["train"].files[0]).unlink()
    write_pictures(classes / "linen", *numbered(50, 60))
    capsys.readouterr()

    # a bare test takes the best run there is, and no demo
    script("test_model")
    assert "study" not in capsys.readouterr().out
    (report,) = Path("runs").glob("*/test-*/metrics.json")
    assert read_json(report)["images"] == 8
