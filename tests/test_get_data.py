"""get_data.py: the demo dataset, and MAMe from a local server in its real layout."""

import hashlib
import threading
import zipfile
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from conftest import COUNTS, supports

import get_data
from transfer.console import BadInput
from transfer.data import load_dataset
from transfer.demo import MEDIUMS, render_texture, write_demo


@pytest.fixture
def server(tmp_path, tiny, monkeypatch):
    """A local server with both archives, made from the tiny dataset; yields (url, its folder)."""
    folder = tmp_path / "served"
    folder.mkdir()
    with zipfile.ZipFile(folder / "MAMe_metadata.zip", "w") as archive:
        for name in ("MAMe_dataset.csv", "MAMe_labels.csv"):
            archive.write(tiny / name, name)
    with zipfile.ZipFile(folder / "MAMe_data_256.zip", "w") as archive:
        for path in sorted((tiny / "data_256").iterdir()):
            archive.write(path, f"data_256/{path.name}")
        archive.writestr("../outside.txt", "must not be written")
    md5 = hashlib.md5((folder / "MAMe_metadata.zip").read_bytes()).hexdigest()
    monkeypatch.setitem(get_data.ARCHIVES, "MAMe_metadata.zip", md5)

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    httpd = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=folder))
    threading.Thread(target=httpd.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{httpd.server_port}", folder
    httpd.shutdown()
    httpd.server_close()


def test_fetches_unpacks_and_checks(server, tmp_path, tiny, script, capsys):
    url, _ = server
    root = tmp_path / "data" / "mame"
    script("get_data", "mame", "--data", root, "--url", url)
    assert "Every image listed" in capsys.readouterr().out
    fetched = load_dataset(root)
    assert fetched.fingerprint == load_dataset(tiny).fingerprint
    assert supports(fetched, "train")["Bronze"] == COUNTS["train"]
    assert sorted(path.name for path in root.iterdir()) == ["MAMe_metadata", "data_256"]
    assert not list(tmp_path.rglob("outside.txt"))


def test_fetching_again_downloads_nothing_and_names_missing_images(
    server, tmp_path, script, monkeypatch
):
    url, _ = server
    root = tmp_path / "mame"
    script("get_data", "mame", "--data", root, "--url", url)
    (root / "data_256" / "val.1.0.jpeg").unlink()
    monkeypatch.setattr(get_data, "fetch_archive", None)
    with pytest.raises(BadInput, match=r"(?s)1 images.*val\.1\.0\.jpeg"):
        script("get_data", "mame", "--data", root, "--url", url)


def test_another_md5_is_refused(server, tmp_path, script):
    url, folder = server
    with zipfile.ZipFile(folder / "MAMe_metadata.zip", "a") as archive:
        archive.writestr("more.txt", "changed after its md5 was taken")
    with pytest.raises(BadInput, match="MAMe_metadata.zip"):
        script("get_data", "mame", "--data", tmp_path / "mame", "--url", url)
    assert not (tmp_path / "mame" / "MAMe_metadata").exists()


def test_an_archive_that_is_none_is_refused_and_not_kept(server, tmp_path, script):
    url, folder = server
    (folder / "MAMe_data_256.zip").write_bytes(b"<html>moved</html>")
    with pytest.raises(BadInput, match="not a zip archive"):
        script("get_data", "mame", "--data", tmp_path / "mame", "--url", url)
    assert not list(tmp_path.glob("mame/**/MAMe_data_256.zip"))


def test_an_absent_server_is_named(tmp_path, script):
    with pytest.raises(BadInput, match="127.0.0.1:9"):
        script("get_data", "mame", "--data", tmp_path / "mame", "--url", "http://127.0.0.1:9")


def test_demo_has_mames_layout_and_says_what_it_is(tmp_path):
    root = write_demo(tmp_path / "demo", per_class=2)
    dataset = load_dataset(root)
    assert len(dataset.labels) == 29
    assert dataset.labels == sorted(dataset.labels)
    assert set(supports(dataset, "train").values()) == {2}
    assert len(set(supports(dataset, "val").values())) == 1
    assert dataset.defaults["weights"] == "none"
    assert "DEMO DATASET" in dataset.notice
    assert "Woven fabric ," in (root / "MAMe_dataset.csv").read_text()
    with pytest.raises(BadInput, match="there already"):
        write_demo(root)


@pytest.mark.parametrize("medium", sorted(MEDIUMS))
def test_demo_pictures_follow_their_seed(medium):
    picture = render_texture(medium, (0, 1))
    assert picture.shape == (256, 256, 3)
    assert picture.dtype == np.uint8
    assert picture.std() > 8  # not blank
    np.testing.assert_array_equal(picture, render_texture(medium, (0, 1)))
    assert np.any(picture != render_texture(medium, (0, 2)))
