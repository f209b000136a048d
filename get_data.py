"""Fetch MAMe: download and unpack both archives, check every file.

python get_data.py
python get_data.py --url https://mirror.example/mame
"""

import os
import shutil
import zipfile
from pathlib import Path

from transfer import flags
from transfer.console import BadInput, print_next, run_script

MAME_URL = "https://storage.hpai.bsc.es/mame-dataset"
# name -> md5 where it is known
ARCHIVES = {"MAMe_metadata.zip": "0bca980978e3883f753f01ccad955981", "MAMe_data_256.zip": None}


def fetch_archive(name, url, root):
    """Download one of MAMe's archives and unpack it below `root`; returns the folder unpacked to.
    `keras.utils.get_file` shows progress and checks the md5; `zipfile` writes nothing outside the
    folder. BadInput where either fails."""
    from transfer.backend import keras

    archive = root / "download" / name
    folder = archive.with_suffix("")
    try:
        keras.utils.get_file(
            name,
            f"{url.rstrip('/')}/{name}",
            cache_dir=root,
            cache_subdir="download",
            file_hash=ARCHIVES[name],
            # a killed download leaves a part of the archive; without an md5 only this tells
            force_download=not zipfile.is_zipfile(archive),
        )
        with zipfile.ZipFile(archive) as opened:
            opened.extractall(folder)
    except Exception as error:  # get_file raises bare Exception where the network fails
        raise BadInput(
            f"{name} could not be downloaded from {url} ({error}); try again, or name a mirror with"
            " --url."
        ) from None
    return folder


def place(unpacked, target):
    """Move the file or folder of the name of `target`, wherever it was unpacked, to `target`."""
    found = sorted(unpacked.rglob(target.name))
    if not found:
        raise BadInput(
            f"The archive has no {target.name}, so it is not MAMe's; name another with --url."
        )
    target.parent.mkdir(exist_ok=True)
    os.replace(found[0], target)


def fetch_mame(root, url):
    """Download and unpack what of MAMe is not in `root` yet."""
    root.mkdir(parents=True, exist_ok=True)  # else get_file would download to another place
    metadata = root / "MAMe_metadata"
    images = root / "data_256"
    if not any((folder / "MAMe_dataset.csv").exists() for folder in (root, metadata)):
        unpacked = fetch_archive("MAMe_metadata.zip", url, root)
        for file in ("MAMe_labels.csv", "MAMe_dataset.csv"):  # the second says that both are there
            place(unpacked, metadata / file)
    if not images.exists():
        place(fetch_archive("MAMe_data_256.zip", url, root), images)
    shutil.rmtree(root / "download", ignore_errors=True)


def parse_args(argv=None):
    parser = flags.script_parser(__doc__)
    parser.add_argument(
        "--data",
        default="data/mame",
        metavar="DIR",
        help="folder that MAMe goes to (default: %(default)s)",
    )
    parser.add_argument(
        "--url", default=MAME_URL, help="where MAMe's archives lie (default: %(default)s)"
    )
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    from transfer.data import load_dataset
    from transfer.files import locked

    # fetch what is missing, one process at a time
    root = Path(args.data)
    with locked(root):
        fetch_mame(root, args.url)

    # check that every image of the metadata is there
    dataset = load_dataset(root)
    missing = [
        file for split in dataset.splits.values() for file in split.files[split.digests == ""]
    ]
    if missing:
        listed = "\n  ".join(missing)
        raise BadInput(
            f"{len(missing)} images of the metadata are missing in {dataset.image_folder}; delete"
            f" that folder and run get_data.py again:\n  {listed}"
        )
    print(f"Every image listed is in {dataset.image_folder}; {len(dataset.labels)} mediums.\n")
    print_next("finetune.py", head="iii", unfreeze="stepped", data=root)


if __name__ == "__main__":
    run_script(main)
