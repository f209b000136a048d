"""Fetch MAMe, or draw the demo dataset in MAMe's layout.

python get_data.py mame          download and unpack both archives, check every file
python get_data.py demo          draw the demo dataset (no network, some seconds)
"""

import os
import shutil
import warnings
import zipfile
from pathlib import Path

from transfer import flags
from transfer.screen import BadInput, print_notice, run_script

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
        with warnings.catch_warnings(action="ignore"):  # what it skipped or could not unpack is found below
            keras.utils.get_file(name, f"{url.rstrip('/')}/{name}", **settings)
    except Exception as error:  # get_file raises bare Exception where the network fails
        archive.unlink(missing_ok=True)
        reason = f"could not be fetched from {url} ({error})"
        raise BadInput(f"{name} {reason}; try again, or name a mirror with --url.") from None
    unpacked = folder / f"{name.removesuffix('.zip')}_extracted"
    if not unpacked.is_dir():
        archive.unlink(missing_ok=True)
        raise BadInput(f"{name} from {url} is not a zip archive; try again, or name a mirror with --url.")
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
    if not os.access(root, os.W_OK):
        raise BadInput(f"{root} cannot be written to; name another folder with --data.")
    metadata = root / "MAMe_metadata"
    if not any((folder / "MAMe_dataset.csv").exists() for folder in (root, metadata)):
        unpacked = fetch_archive("MAMe_metadata.zip", ARCHIVES["MAMe_metadata.zip"], url, root)
        for file in ("MAMe_labels.csv", "MAMe_dataset.csv"):  # the second says that both are there
            place(unpacked, file, metadata / file)
    if not (root / "data_256").exists():
        unpacked = fetch_archive("MAMe_data_256.zip", ARCHIVES["MAMe_data_256.zip"], url, root)
        place(unpacked, "data_256", root / "data_256")
    shutil.rmtree(root / "download", ignore_errors=True)


def check_files(dataset):
    """Print what the dataset holds; BadInput that names every image that is missing."""
    missing, folder = [], dataset.image_folder
    for name, split in dataset.splits.items():
        print(f"  {name:<6}{len(split.files):>7} images")
        missing += split.files[split.stamps[:, 0] < 0].tolist()
    if missing:
        found = f"{len(missing)} images listed in the metadata are missing in {folder}"
        files = "\n  ".join(missing)
        raise BadInput(f"{found}; delete that folder and run get_data.py again:\n  {files}")
    print(f"Every image listed is in {folder}; {len(dataset.labels)} mediums.")


def parse_args(argv=None):
    parser = flags.script_parser(__doc__)
    parser.add_argument("what", choices=("mame", "demo"))
    parser.add_argument("--data", metavar="DIR", help="where to put it (default: data/mame, data/demo)")
    parser.add_argument("--url", default=MAME_URL, help="where MAMe's archives lie (default: %(default)s)")
    parser.add_argument("--seed", type=flags.natural, default=0, help="of the demo (default: %(default)s)")
    text = "the demo's train images a class; the other splits in proportion (default: %(default)s)"
    parser.add_argument("--per-class", type=flags.positive, default=24, metavar="N", help=text)
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    from transfer.data import DEFAULT_DATA, DEMO_DATA, load_dataset
    from transfer.demo import write_demo
    from transfer.store import locked

    if args.what == "mame":
        root = Path(args.data or DEFAULT_DATA)
        with locked(root):
            fetch_mame(root, args.url)
    else:
        root = write_demo(args.data or DEMO_DATA, args.seed, args.per_class)
    dataset = load_dataset(root)
    print_notice(dataset.notice)
    check_files(dataset)
    data = "" if root == DEFAULT_DATA else f" --data {root}"
    print(f"\nNext: python finetune.py --head iii --unfreeze stepped{data}")


if __name__ == "__main__":
    run_script(main)
