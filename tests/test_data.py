"""MAMe's layout: data.py."""

import re
import shutil
from pathlib import Path

import pytest
from conftest import MEDIUMS, supports, tiny_rows, write_csv

from transfer.console import BadInput
from transfer.data import load_dataset

TEST_SUPPORTS = {  # MAMe's test split, as the study's report lists them
    "Albumen photograph": 700,
    "Clay": 313,
    "Silk and metal thread": 95,
    "Steel": 133,
    "Woven fabric": 700,
}


def test_reads_labels_in_official_order_and_strips_the_trailing_space(tiny):
    dataset = load_dataset(tiny)
    assert dataset.labels == MEDIUMS
    found = [
        (file, MEDIUMS[label], museum, name)
        for name, split in dataset.splits.items()
        for file, label, museum in zip(split.files, split.labels, split.museums)
    ]
    assert sorted(found) == sorted(tiny_rows())


@pytest.mark.real
def test_real_metadata(shared, tmp_path):
    shutil.copytree(shared / "mame", tmp_path / "MAMe_metadata")
    (tmp_path / "data_256").mkdir()
    dataset = load_dataset(tmp_path)
    assert len(dataset.labels) == 29
    assert [len(split.files) for split in dataset.splits.values()] == [20300, 1450, 15657]
    assert supports(dataset, "test").items() >= TEST_SUPPORTS.items()


def test_metadata_in_subfolder_with_bom_and_windows_line_ends(own_tiny):
    root, _ = own_tiny
    plain = load_dataset(root)

    (root / "MAMe_metadata").mkdir()
    for path in root.glob("*.csv"):
        moved = path.rename(root / "MAMe_metadata" / path.name)
        content = "\ufeff" + moved.read_text()
        moved.write_text(content, encoding="utf-8", newline="\r\n")

    assert load_dataset(root).fingerprint == plain.fingerprint


def test_names_with_spaces_and_letters_of_any_script(own_tiny):
    root, rows = own_tiny
    names = ["a b.jpg", "Ölgemälde.v2.jpeg", "浮世絵.jpg", "-rf.jpg", "'quoted', twice.jpg"]
    rows += [(f'"{name}"', "Bronze", "M", "train") for name in names]
    write_csv(root, rows)
    assert set(names) <= set(load_dataset(root).splits["train"].files)


@pytest.mark.parametrize(
    "row",
    [
        "a.jpg,Marble,M,train",
        "a.jpg,Bronze,M,holdout",
        "../a.jpg,Bronze,M,train",
        "/etc/passwd,Bronze,M,train",
        "train.0.0.jpeg,Bronze,M,test",  # listed twice
        ",Bronze,M,train",
        "a\0.jpg,Bronze,M,train",
    ],
)
def test_a_bad_row_is_named(own_tiny, row):
    root, rows = own_tiny
    cells = row.split(",")
    write_csv(root, [*rows, cells])

    message = f"row {len(rows) + 2}: expected the name .*{re.escape(str(cells))}"
    with pytest.raises(BadInput, match=message):
        load_dataset(root)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("MAMe_dataset.csv", b"", "'Bronze' has no picture in the train split"),
        ("MAMe_dataset.csv", b"Image file,Museum,Subset\na.jpg,M,train\n", "row 2: .*'a.jpg', ''"),
        ("MAMe_dataset.csv", b"\xff\xfe\x00\x01", "not a CSV file"),
        ("MAMe_labels.csv", b"0,Bronze\n2,Woodcut\n", "csv must number"),
        ("MAMe_labels.csv", b"0,Bronze\n1,Bronze\n", "csv must number"),
        ("MAMe_labels.csv", b"", "dataset.csv, row 2"),
        ("defaults.json", b"{", "damaged"),
        ("defaults.json", b'{"speed": 9}', "and no others"),
        ("defaults.json", b"[]", "and no others"),
    ],
)
def test_a_malformed_file_is_named(own_tiny, name, content, message):
    root, _ = own_tiny
    (root / name).write_bytes(content)
    with pytest.raises(BadInput, match=message):
        load_dataset(root)


@pytest.mark.parametrize("name", ["MAMe_labels.csv", "data_256", ""])
def test_what_is_missing_is_named(own_tiny, name):
    root, _ = own_tiny
    (root / name).rename(root.parent / "moved")
    with pytest.raises(BadInput, match=str(root / name)):
        load_dataset(root)


def test_the_demo_stands_in_for_mame_until_that_is_there(tiny, workdir, capsys):
    shutil.copytree(tiny, "data/demo")
    assert load_dataset(None).root == Path("data/demo")
    assert "There is no MAMe in data/mame" in capsys.readouterr().out

    shutil.copytree(tiny, "data/mame")
    assert load_dataset(None).root == Path("data/mame")
