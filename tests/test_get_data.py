"""get_data.py: MAMe in its real layout, from a local server; and the demo dataset."""

import hashlib
import shutil
import threading
import zipfile
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from conftest import next_command, supports

import get_data
from transfer.console import BadInput
from transfer.data import load_dataset
from transfer.demo import MEDIUMS, render_texture, write_demo


@pytest.fixture
def served(tmp_path, tiny, monkeypatch):
    """Folder with both archives, made from the tiny dataset."""
    folder = tmp_path / "served"
    shutil.make_archive(folder / "MAMe_data_256", "zip", tiny, "data_256")
    with zipfile.ZipFile(folder / "MAMe_data_256.zip", "a") as archive:
        archive.writestr("../outside.txt", "must not be written")

    metadata = shutil.make_archive(folder / "MAMe_metadata", "zip", tiny)
    md5 = hashlib.md5(Path(metadata).read_bytes()).hexdigest()
    monkeypatch.setitem(get_data.ARCHIVES, "MAMe_metadata.zip", md5)
    return folder


@pytest.fixture
def fetch(served, tmp_path, script):
    """Runs the script on a server of the archives; gives the folder that MAMe goes to."""
    root = tmp_path / "data" / "mame"
    handler = partial(SimpleHTTPRequestHandler, directory=served)
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()

    def call():
        script("get_data", "--data", root, "--url", f"http://127.0.0.1:{server.server_port}/")
        return root

    yield call
    server.shutdown()
    server.server_close()


def test_fetches_unpacks_and_checks(fetch, tmp_path, tiny, capsys, monkeypatch):
    root = fetch()

    # only what is needed, and nothing outside the folder
    assert next_command(capsys.readouterr().out)[-1] == str(root)
    assert load_dataset(root).fingerprint == load_dataset(tiny).fingerprint
    assert {path.name for path in root.iterdir()} == {"MAMe_metadata", "data_256"}
    assert not list(tmp_path.rglob("outside.txt"))

    # again it downloads nothing, and names missing images
    (root / "data_256" / "val.1.0.jpeg").unlink()
    monkeypatch.setattr(get_data, "fetch_archive", None)
    with pytest.raises(BadInput, match=r"(?s)^1 images.*val\.1\.0\.jpeg$"):
        fetch()


def test_an_archive_with_another_md5_is_refused(fetch, served, tmp_path):
    with zipfile.ZipFile(served / "MAMe_metadata.zip", "a") as archive:
        archive.writestr("more.txt", "changed after its md5 was taken")

    with pytest.raises(BadInput, match="MAMe_metadata.zip could not be downloaded from http:"):
        fetch()
    assert not list(tmp_path.rglob("MAMe_dataset.csv"))


def test_an_archive_that_is_none_is_refused_and_downloaded_anew(fetch, served):
    archive = served / "MAMe_data_256.zip"
    content = archive.read_bytes()
    archive.write_bytes(b"<html>moved</html>")

    with pytest.raises(BadInput, match="MAMe_data_256.zip .* is not a zip file"):
        fetch()

    archive.write_bytes(content)
    assert all(load_dataset(fetch()).splits["val"].digests)


def test_demo_has_mames_layout_and_says_what_it_is(tmp_path, monkeypatch):
    monkeypatch.setattr("transfer.demo.SIZE", 8)  # pixels a side, which take less time
    monkeypatch.setattr("transfer.demo.TRAIN_IMAGES", 2)
    root = tmp_path / "demo"
    write_demo(root)
    dataset = load_dataset(root)
    assert dataset.labels == MEDIUMS

    # as many of each class to train on
    assert supports(dataset, "train") == dict.fromkeys(MEDIUMS, 2)

    # no figure of it is MAMe's
    assert dataset.defaults["weights"] == "none"
    assert "DEMO DATASET" in dataset.notice

    # rendered once
    monkeypatch.setattr("transfer.demo.render_texture", None)
    write_demo(root)


def test_demo_pictures_follow_their_seed():
    picture = render_texture("Clay", (0, 1))
    assert picture.shape == (256, 256, 3)
    np.testing.assert_array_equal(picture, render_texture("Clay", (0, 1)))
    assert np.any(picture != render_texture("Clay", (0, 2)))
