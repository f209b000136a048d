"""The demo dataset in MAMe's layout: 29 classes under the names of its mediums, each a seeded mix of
stripes, blobs and noise. No figure measured on it says anything about MAMe."""

import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from transfer.console import BadInput, progress
from transfer.files import locked, write_atomically, write_csv, write_json
from transfer.recipes import DEMO_DEFAULTS
from transfer.study import SPLITS

SIZE = 256
COLUMNS = "Image file,Medium,Museum,Museum-based instance ID,Subset,Width,Height,Product size,Aspect ratio"
MUSEUMS = ("Demo museum A", "Demo museum B", "Demo museum C")
PER_CLASS = {"train": 24, "val": 8}  # images; the test split is not balanced
MEDIUMS = (
    *(
        "Albumen photograph",
        "Bronze",
        "Ceramic",
        "Clay",
        "Engraving",
        "Etching",
        "Faience",
        "Glass",
    ),
    *(
        "Gold",
        "Graphite",
        "Hand-colored engraving",
        "Hand-colored etching",
        "Iron",
        "Ivory",
        "Limestone",
    ),
    *(
        "Lithograph",
        "Marble",
        "Oil on canvas",
        "Pen and brown ink",
        "Polychromed wood",
        "Porcelain",
    ),
    *("Silk and metal thread", "Silver", "Steel", "Wood", "Wood engraving", "Woodblock", "Woodcut"),
    "Woven fabric",
)


def blobs(rng, cells):
    """Smooth noise float32 (256, 256), about standard normal, `cells` blobs across."""
    grid = Image.fromarray(rng.normal(size=(cells, cells)).astype("float32"))
    return np.asarray(grid.resize((SIZE, SIZE), Image.Resampling.BICUBIC)) / 0.75


def render_texture(medium, seed):
    """One picture of a medium, uint8 (256, 256, 3), the same for the same (medium, seed)."""
    kind = np.random.default_rng(
        MEDIUMS.index(medium)
    )  # what the pictures of a class have in common
    rng = np.random.default_rng([MEDIUMS.index(medium), *np.atleast_1d(seed)])
    colour, mix = kind.uniform(60, 200, 3), kind.dirichlet((2, 2, 1))
    spacing, cells = kind.uniform(6, 40), kind.integers(3, 40)
    angle, wave = kind.uniform(0, 3, 2) + (rng.normal(0, 0.35), 0)
    y, x = np.mgrid[:SIZE, :SIZE]
    across = (x * np.cos(angle) + y * np.sin(angle)) / (spacing * rng.uniform(0.75, 1.33))
    stripes = np.sin(2 * np.pi * across + wave * blobs(rng, 5) + rng.uniform(0, 6.3))
    grain = rng.normal(size=(SIZE, SIZE))
    surface = mix @ np.stack([stripes, blobs(rng, cells), grain]).reshape(3, -1)
    surface = surface.reshape(SIZE, SIZE, 1) / np.linalg.norm(mix)
    tint = colour * rng.uniform(0.65, 1.4) * rng.uniform(0.8, 1.2, 3)
    picture = tint + rng.uniform(14, 50) * surface + 20 * blobs(rng, 2)[..., None]
    return np.clip(picture + rng.normal(0, rng.uniform(4, 16), picture.shape), 0, 255).astype(
        "uint8"
    )


def demo_rows(per_class):
    """[(file name, medium, museum, split)] of the demo, with so many train images a class and the others in
    proportion; names and museums vary as MAMe's do, most of a medium being one museum's."""
    rows = []
    for index, medium in enumerate(MEDIUMS):
        counts = PER_CLASS | {"test": 3 + (7 * index) % 10}  # rare and common classes, as in MAMe
        for number, split in enumerate(SPLITS, 1):
            for row in range(max(2, round(counts[split] * per_class / PER_CLASS["train"]))):
                museum = MUSEUMS[index % 3 if row % 4 else row // 4 % 3]
                file = f"{number}{index:02d}{row:04d}." + (
                    "jpeg" if museum == MUSEUMS[1] else "jpg"
                )
                rows.append((file, medium, museum, split))
    return rows


def write_demo(root, seed=0, per_class=PER_CLASS["train"]):
    """Draw the demo dataset into the new folder `root`; BadInput where it is there already."""
    root = Path(root)
    part = root.with_name(f"{root.name}.part")
    with locked(root):
        if root.exists():
            raise BadInput(
                f"{root} is there already; delete it, or name another folder with --data."
            )
        shutil.rmtree(part, ignore_errors=True)  # of a drawing that was interrupted
        (part / "data_256").mkdir(parents=True)
        rows = demo_rows(per_class)

        def draw(number):
            file, medium, *_ = rows[number]
            picture = Image.fromarray(render_texture(medium, (seed, number)))
            picture.save(part / "data_256" / file, "JPEG", quality=90)

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            done = pool.map(draw, range(len(rows)))
            list(progress(done, "drawing the demo dataset", len(rows), " images"))
        columns, size = COLUMNS.split(","), (float(SIZE), float(SIZE), float(SIZE * SIZE), 1.0)
        cells = []
        for file, medium, museum, split in rows:
            medium += " " * (medium == "Woven fabric")  # as MAMe has it
            cells.append((file, medium, museum, Path(file).stem, split, *size))
        write_csv(part / "MAMe_dataset.csv", [dict(zip(columns, row)) for row in cells])
        labels = "".join(f"{index},{medium}\n" for index, medium in enumerate(MEDIUMS))
        write_atomically(part / "MAMe_labels.csv", labels)
        write_json(part / "defaults.json", DEMO_DEFAULTS)
        os.replace(part, root)
    return root
