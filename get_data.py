"""Fetch MAMe: download and unpack both archives, check every file.

python get_data.py mame
"""

import os
import shutil
import warnings
import zipfile
from pathlib import Path

from transfer import flags
from transfer.console import BadInput, run_script

MAME_URL = "https://storage.hpai.bsc.es/mame-dataset"
# name -> md5 where it is known
ARCHIVES = {"MAMe_metadata.zip": "0bca980978e3883f753f01ccad955981", "MAMe_data_256.zip": None}


def fetch_archive(name, md5, url, root):
    """Download one archive of MAMe and unpack it below `root`; returns the folder unpacked to.
    `keras.utils.get_file` shows progress, checks the md5 and unpacks nothing outside its folder."""
    from common import keras

    folder = root / "download"
    archive = folder / name
    # A download that was killed leaves a part of the archive; without an md5 only this tells.
    whole = archive.exists() and zipfile.is_zipfile(archive)
    settings = {"cache_dir": str(root), "cache_subdir": "download", "file_hash": md5}
    settings |= {"extract": True, "archive_format": "zip", "force_download": not whole}
    try:
        with warnings.catch_warnings(
            action="ignore"
        ):  # what it skipped or could not unpack is found below
            keras.utils.get_file(name, f"{url.rstrip('/')}/{name}", **settings)
    except Exception as error:  # get_file raises bare Exception where the network fails
        archive.unlink(missing_ok=True)
        raise BadInput(
            f"{name} is not to be had from {url} ({error}); name a mirror with --url."
        ) from None
    unpacked = folder / f"{name.removesuffix('.zip')}_extracted"
    if not unpacked.is_dir():
        archive.unlink(missing_ok=True)
        raise BadInput(
            f"{name} from {url} is not a zip archive; try again, or name a mirror with --url."
        )
    return unpacked


def place(unpacked, name, target):
    """Move the file or folder `name`, wherever it was unpacked, to `target`."""
    found = sorted(unpacked.rglob(name))
    if not found:
        raise BadInput(f"The archive has no {name}, so it is not MAMe's; name another with --url.")
    target.parent.mkdir(parents=True, exist_ok=True)
    os.replace(found[0], target)


def fetch_mame(root, url):
    """Download and unpack what of MAMe is not in `root` yet."""
    root.mkdir(parents=True, exist_ok=True)
    metadata = root / "MAMe_metadata"
    if not any((folder / "MAMe_dataset.csv").exists() for folder in (root, metadata)):
        unpacked = fetch_archive("MAMe_metadata.zip", ARCHIVES["MAMe_metadata.zip"], url, root)
        for file in ("MAMe_labels.csv", "MAMe_dataset.csv"):  # the second says that both are there
            place(unpacked, file, metadata / file)
    if not (root / "data_256").exists():
        unpacked = fetch_archive("MAMe_data_256.zip", ARCHIVES["MAMe_data_256.zip"], url, root)
        place(unpacked, "data_256", root / "data_256")
    shutil.rmtree(root / "download", ignore_errors=True)


def parse_args(argv=None):
    parser = flags.script_parser(__doc__)
    parser.add_argument("what", choices=("mame",))
    parser.add_argument("--data", default="data/mame", metavar="DIR", help="default: %(default)s")
    parser.add_argument(
        "--url", default=MAME_URL, help="where MAMe's archives lie (default: %(default)s)"
    )
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    from transfer.data import DEFAULT_DATA, load_dataset
    from transfer.files import locked

    root, missing = Path(args.data), []
    with locked(root):
        fetch_mame(root, args.url)
    dataset = load_dataset(root)
    for name, split in dataset.splits.items():
        print(f"  {name:<6}{len(split.files):>7} images")
        missing += split.files[split.stamps[:, 0] < 0].tolist()
    folder, data = dataset.image_folder, "" if root == DEFAULT_DATA else f" --data {root}"
    if missing:
        advice = "\n  ".join(["delete that folder and run get_data.py again:", *missing])
        raise BadInput(f"{len(missing)} images of the metadata are missing in {folder}; {advice}")
    print(f"Every image listed is in {folder}; {len(dataset.labels)} mediums.")
    print(f"\nNext: python finetune.py --head iii --unfreeze stepped{data}")


if __name__ == "__main__":
    run_script(main)
