"""The demo dataset in MAMe's layout: 29 classes under the names of its mediums, each a seeded mix
of stripes, blobs and noise. No figure measured on it says anything about MAMe."""

import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from PIL import Image

from transfer.console import progress
from transfer.files import locked, write_atomically, write_csv, write_json
from transfer.recipes import DEMO_DEFAULTS

SIZE = 256  # pixels a side, as MAMe's
TRAIN_IMAGES = 16  # a class
MEDIUMS = """\
Albumen photograph
Bronze
Ceramic
Clay
Engraving
Etching
Faience
Glass
Gold
Graphite
Hand-colored engraving
Hand-colored etching
Iron
Ivory
Limestone
Lithograph
Marble
Oil on canvas
Pen and brown ink
Polychromed wood
Porcelain
Silk and metal thread
Silver
Steel
Wood
Wood engraving
Woodblock
Woodcut
Woven fabric
""".splitlines()


def blobs(rng, cells):
    """Smooth noise float32 (256, 256), about standard normal, `cells` blobs across."""
    grid = Image.fromarray(rng.normal(size=(cells, cells)).astype("float32"))
    return np.asarray(grid.resize((SIZE, SIZE), Image.Resampling.BICUBIC)) / 0.75


def render_texture(medium, seed):
    """One picture of a medium, uint8 (256, 256, 3), the same for the same (medium, seed). seed: a
    tuple of ints."""
    index = MEDIUMS.index(medium)

    # what the pictures of a class have in common
    kind = np.random.default_rng(index)
    colour = kind.uniform(60, 200, 3)
    mix = kind.dirichlet((2, 2, 1))  # of stripes, blobs and grain
    spacing = kind.uniform(6, 40)
    cells = kind.integers(3, 40)
    angle, wave = kind.uniform(0, 3, 2)

    # stripes, turned, stretched and bent by each picture in its own way
    rng = np.random.default_rng([index, *seed])
    angle += rng.normal(0, 0.35)
    y, x = np.mgrid[:SIZE, :SIZE]
    across = (x * np.cos(angle) + y * np.sin(angle)) / (spacing * rng.uniform(0.75, 1.33))
    stripes = np.sin(2 * np.pi * across + wave * blobs(rng, 5) + rng.uniform(0, 6.3))

    # the surface
    grain = rng.normal(size=(SIZE, SIZE))
    layers = [stripes, blobs(rng, cells), grain]
    surface = np.tensordot(mix, layers, axes=1)[..., None] / np.linalg.norm(mix)

    # its colour and light
    tint = colour * rng.uniform(0.65, 1.4) * rng.uniform(0.8, 1.2, 3)
    picture = tint + rng.uniform(14, 50) * surface
    return np.clip(picture, 0, 255).astype("uint8")


def demo_rows():
    """The rows of MAMe_dataset.csv as dicts; museums vary as MAMe's do, most of a medium being one
    museum's."""
    rows = []
    for index, medium in enumerate(MEDIUMS):
        # the test split has rare classes and common ones, as MAMe's
        counts = {"train": TRAIN_IMAGES, "val": 6, "test": 3 + 7 * index % 6}
        for number, (split, images) in enumerate(counts.items(), 1):
            for row in range(images):
                museum = "ABC"[index % 3 if row % 4 else row // 4 % 3]
                rows.append(
                    {
                        "Image file": f"{number}{index:02d}{row:04d}.jpg",
                        "Medium": medium.replace("fabric", "fabric "),  # as MAMe
                        "Museum": f"Demo museum {museum}",
                        "Subset": split,
                    }
                )
    return rows


def write_demo(root):
    """Render the demo dataset into the folder `root`, unless it is there already."""
    with locked(root):
        if root.exists():  # another command has just rendered it
            return
        part = root.with_name(f"{root.name}.part")
        folder = part / "data_256"
        folder.mkdir(parents=True, exist_ok=True)

        # the pictures
        rows = demo_rows()

        def render(number, row):
            picture = Image.fromarray(render_texture(row["Medium"].strip(), (0, number)))
            picture.save(folder / row["Image file"], "JPEG", quality=90)

        with ThreadPoolExecutor() as pool:
            rendered = pool.map(render, range(len(rows)), rows)
            list(progress(rendered, "rendering the demo dataset", len(rows), " images"))

        # what is said of them
        write_csv(part / "MAMe_dataset.csv", rows)
        labels = "".join(f"{index},{medium}\n" for index, medium in enumerate(MEDIUMS))
        write_atomically(part / "MAMe_labels.csv", labels)
        write_json(part / "defaults.json", DEMO_DEFAULTS)
        os.replace(part, root)
