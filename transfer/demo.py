"""The demo dataset: 29 classes under the names of MAMe's mediums, drawn in MAMe's layout.

They are procedural textures: marks on paper (hatching, dots, crayon), cloth (weave) and lit objects
(grain, veins, gloss). No picture of it shows a museum object, and no figure measured on it says anything
about MAMe.
"""

import csv
import io
import json
import multiprocessing
import os
import shutil
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np

from transfer.files import lock_of, locked
from transfer.folders import SPLITS
from transfer.screen import BadInput, progress

SIZE = 256
DEMO_DEFAULTS = {
    "name": "demo",
    "image_size": 48,
    "weights": "none",
    "batch_size": 32,
    "learning_rate": 1e-3,
    "fine_tune_learning_rate": 2e-6,
    "pretrain_learning_rate": 1e-4,
    "epochs": 20,
    "fine_tune_epochs": 2,
    "pretrain_epochs": 6,
    "notice": "DEMO DATASET: textures drawn by this project, not MAMe. No figure here is MAMe's.",
}
DEMO_MUSEUMS = ("Demo museum A", "Demo museum B", "Demo museum C")
DEMO_TRAIN, DEMO_VAL = 24, 8  # images a class, times --scale; the test split is not balanced

# Each medium: how it is drawn, the colour it is drawn with (R, G, B), and what else that needs.
# prints: mark, spacing in pixels, colour wash. objects: surface, gloss, strength of the surface.
PAPER, SEPIA, BLACK = (232, 222, 200), (92, 60, 36), (38, 36, 38)
MEDIUMS = {
    "Albumen photograph": ("print", SEPIA, ("tone", 1, 0.0)),
    "Bronze": ("object", (96, 74, 40), ("patina", 0.7, 0.5)),
    "Ceramic": ("object", (176, 120, 78), ("bands", 0.35, 0.8)),
    "Clay": ("object", (164, 112, 80), ("grit", 0.05, 0.7)),
    "Engraving": ("print", BLACK, ("hatch", 5, 0.0)),
    "Etching": ("print", BLACK, ("scratch", 6, 0.0)),
    "Faience": ("object", (70, 150, 160), ("grit", 0.5, 0.4)),
    "Glass": ("object", (150, 190, 176), ("clear", 1.0, 0.5)),
    "Gold": ("object", (206, 160, 60), ("hammer", 0.9, 0.4)),
    "Graphite": ("print", (110, 108, 110), ("crayon", 4, 0.0)),
    "Hand-colored engraving": ("print", BLACK, ("hatch", 5, 0.8)),
    "Hand-colored etching": ("print", BLACK, ("scratch", 6, 0.8)),
    "Iron": ("object", (70, 62, 58), ("patina", 0.2, 0.9)),
    "Ivory": ("object", (222, 206, 170), ("grain", 0.3, 0.25)),
    "Limestone": ("object", (192, 176, 146), ("grit", 0.0, 1.0)),
    "Lithograph": ("print", BLACK, ("crayon", 3, 0.0)),
    "Marble": ("object", (220, 218, 212), ("veins", 0.25, 0.6)),
    "Oil on canvas": ("paint", (120, 90, 60), (9, 2.0)),
    "Pen and brown ink": ("print", (110, 70, 34), ("pen", 16, 0.0)),
    "Polychromed wood": ("object", (150, 70, 50), ("paint", 0.2, 0.8)),
    "Porcelain": ("object", (226, 230, 236), ("blue", 0.8, 0.8)),
    "Silk and metal thread": ("cloth", (170, 120, 60), (5, 0.9)),
    "Silver": ("object", (184, 186, 190), ("hammer", 0.95, 0.3)),
    "Steel": ("object", (120, 126, 134), ("brushed", 0.8, 0.4)),
    "Wood": ("object", (134, 90, 52), ("grain", 0.15, 0.9)),
    "Wood engraving": ("print", BLACK, ("hatch", 4, 0.0)),
    "Woodblock": ("print", (60, 60, 90), ("flat", 20, 1.0)),
    "Woodcut": ("print", BLACK, ("gouge", 11, 0.0)),
    "Woven fabric": ("cloth", (140, 60, 56), (8, 0.3)),
}


def noise(rng, cells, stretch=1.0):
    """Smooth noise float32 (256, 256), about standard normal; `cells` blobs across, and down
    `stretch` times as many."""
    from PIL import Image

    grid = rng.normal(size=(max(2, round(cells * stretch)), max(2, round(cells)))).astype("float32")
    field = Image.fromarray(grid).resize((SIZE, SIZE), Image.Resampling.BICUBIC)
    return np.asarray(field) / 0.75


def cloud(rng, cells):
    """Three octaves of noise."""
    return (noise(rng, cells) + noise(rng, 2 * cells) / 2 + noise(rng, 4 * cells) / 4) / 1.15


def lines(rng, spacing, angle, wobble):
    """Parallel wavy lines as a field in -1 .. 1, `spacing` pixels apart."""
    y, x = np.mgrid[:SIZE, :SIZE].astype("float32")
    across = x * np.cos(angle) + y * np.sin(angle)
    return np.sin(2 * np.pi * across / spacing + wobble * noise(rng, 6) + rng.uniform(0, 6.3))


def silhouette(rng):
    """A random vase-like body: mask (256, 256) bool, its height field 0 .. 1, as float32."""
    y = np.linspace(-1.2, 1.2, SIZE, dtype="float32")[:, None]
    x = np.linspace(-1.2, 1.2, SIZE, dtype="float32")[None, :] + rng.uniform(-0.1, 0.1)
    profile = rng.uniform(0.45, 0.8) + 0.18 * np.sin(rng.uniform(1, 5) * y + rng.uniform(0, 6.3))
    height = 1 - (x / profile) ** 2 - np.clip(np.abs(y) - rng.uniform(0.6, 0.95), 0, None) * 8
    return height > 0, np.sqrt(np.clip(height, 0, 1))


def draw_surface(rng, kind, mask, height):
    """Texture of an object, float32 (256, 256), about -1 .. 1."""
    angle = rng.uniform(-0.3, 0.3)
    if kind == "grain":
        return lines(rng, rng.uniform(9, 16), angle, 2.5) * 0.6 + 0.5 * noise(rng, 60, 0.1)
    if kind == "grit":
        return 0.7 * noise(rng, 90) + 0.4 * cloud(rng, 6)
    if kind == "veins":
        return -np.exp(-np.abs(cloud(rng, 3)) * 7) * 1.6 + 0.2 * cloud(rng, 8)
    if kind == "patina":
        return cloud(rng, 7) * 0.8 + 0.3 * noise(rng, 50)
    if kind == "hammer":
        return np.abs(noise(rng, 22)) - 0.6
    if kind == "brushed":
        return noise(rng, 8, 14) * 0.8
    if kind == "bands":
        return np.sign(lines(rng, rng.uniform(24, 50), np.pi / 2 + angle, 0.6)) * 0.7
    if kind in ("paint", "blue"):
        return np.sign(cloud(rng, 5) - 0.4)
    return height * 1.2 - 0.8 + 0.5 * lines(rng, rng.uniform(30, 60), np.pi / 2, 2.0)  # clear


def draw_object(rng, colour, kind, gloss, strength):
    """A lit body of one material before a plain ground."""
    mask, height = silhouette(rng)
    surface = draw_surface(rng, kind, mask, height)
    slope_y, slope_x = np.gradient(height * 60 + surface * strength * 1.5)
    direction = rng.uniform(-1, 1)
    light = 0.62 - 0.3 * np.tanh(slope_x * direction + slope_y * 0.6)
    shine = np.exp(-((slope_x - direction * 0.6) ** 2 + (slope_y - 0.3) ** 2) * 6) * gloss
    body = np.array(colour, "float32") * light[..., None]
    body = body * (1 + 0.35 * strength * surface[..., None])
    if kind == "blue":  # cobalt painting
        body = np.where((surface > 0)[..., None], body * [0.4, 0.5, 0.95], body)
    if kind == "paint":
        other = rng.uniform(60, 210, 3)
        body = np.where((surface > 0)[..., None], other * light[..., None], body)
    if kind == "clear":
        body = 0.55 * body + 90
    body = body + 190 * shine[..., None]
    ground = rng.uniform(40, 225) + np.linspace(-25, 25, SIZE)[:, None, None]
    return np.where(mask[..., None], body, ground + 4 * noise(rng, 40)[..., None])


def draw_marks(rng, kind, spacing, tone):
    """Share of ink 0 .. 1 at each pixel, for a tone 0 (white) .. 1 (black)."""
    spacing = spacing * rng.uniform(0.85, 1.25)
    angle = rng.uniform(0, np.pi)
    if kind == "tone":
        return tone + 0.02 * noise(rng, 120)
    if kind == "crayon":
        return np.clip((tone - 0.5) * 1.6 + 0.45 + 0.35 * noise(rng, SIZE / spacing), 0, 1)
    if kind == "flat":
        return 0.85 * (lines(rng, 60, angle, 3) > 1.3 - 1.6 * tone) + 0.15 * (tone > 0.5)
    if kind == "pen":
        contour = np.abs((tone * 5) % 1 - 0.5)
        return np.clip(1.15 - contour * 9, 0, 1) + 0.6 * (
            (lines(rng, spacing, angle, 1.5) > 0.75) & (tone > 0.62)
        )
    if kind == "scratch":
        loose = lines(rng, spacing, angle, 2.6) > 1.25 - 1.5 * tone
        cross = lines(rng, spacing, angle + rng.uniform(0.5, 1.6), 2.6) > 1.7 - 1.6 * tone
        return 0.8 * np.clip(loose + 0.7 * cross + 0.25 * noise(rng, 100), 0, 1)
    if kind == "gouge":
        return np.tanh(5 * (lines(rng, spacing, angle, 1.8) - 1 + 2 * tone)) / 2 + 0.5
    fine = lines(rng, spacing, angle, 0.5) > 1.05 - 1.7 * tone  # hatch
    cross = lines(rng, spacing, angle + 1.1, 0.5) > 1.5 - 1.7 * tone
    return np.clip(fine + 0.8 * cross, 0, 1).astype("float32")


def draw_print(rng, colour, kind, spacing, wash):
    """A subject of soft tones in one kind of mark on paper, perhaps washed with colours."""
    tone = 1 / (1 + np.exp(-2.2 * cloud(rng, rng.uniform(2, 4))))
    ink = draw_marks(rng, kind, spacing, tone)[..., None]
    paper = np.array(PAPER) * rng.uniform(0.88, 1.05) + 4 * noise(rng, 80)[..., None]
    if wash:
        fields = np.stack([noise(rng, 3) for _ in range(3)], axis=-1)
        paper = paper * (1 - wash * 0.35 * (1 + np.tanh(2 * fields)) / 2)
    return paper * (1 - np.clip(ink, 0, 1)) + np.array(colour) * np.clip(ink, 0, 1)


def draw_paint(rng, colour, strokes, contrast):
    """Brush strokes: coloured noise, stretched along a direction that varies."""
    field = np.stack([cloud(rng, 3) for _ in range(3)], axis=-1)
    stroke = noise(rng, 14, 4) * 0.5 + noise(rng, 50, 0.25) * 0.5
    canvas = np.sin(np.arange(SIZE) * 2.1)[:, None] * np.sin(np.arange(SIZE) * 2.1)[None, :]
    texture = stroke * strokes * contrast + 5 * canvas
    return np.array(colour) + 42 * field + texture[..., None]


def draw_cloth(rng, colour, spacing, metal):
    """A plain weave with a coloured pattern; metal threads shine."""
    spacing = spacing * rng.uniform(0.8, 1.3)
    angle = rng.uniform(-0.2, 0.2)
    warp = lines(rng, spacing, angle, 0.4)
    weft = lines(rng, spacing, angle + np.pi / 2, 0.4)
    weave = np.maximum(warp, weft) * 0.5 + 0.3 * warp * weft
    pattern = np.sign(lines(rng, 70, angle + 0.78, 1.2) * lines(rng, 70, angle - 0.78, 1.2))
    other = rng.uniform(40, 200, 3)
    cloth = np.where((pattern > 0)[..., None], np.array(colour) * 1.0, other)
    shine = metal * 120 * np.clip(warp - 0.4, 0, 1) * (pattern > 0)
    return cloth * (0.75 + 0.35 * weave[..., None]) + shine[..., None]


DRAW = {"print": draw_print, "object": draw_object, "paint": draw_paint, "cloth": draw_cloth}


def draw_image(medium, seed):
    """One picture of a medium, uint8 (256, 256, 3), the same for the same (medium, seed)."""
    rng = np.random.default_rng([list(MEDIUMS).index(medium), *np.atleast_1d(seed)])
    how, colour, settings = MEDIUMS[medium]
    colour = np.array(colour) * rng.uniform(0.82, 1.18) * rng.uniform(0.86, 1.14, 3)
    picture = DRAW[how](rng, colour, *settings)
    picture = (picture - 128) * rng.uniform(0.75, 1.15) + 128 + rng.uniform(-22, 22)
    picture = picture + rng.normal(scale=rng.uniform(2, 9), size=picture.shape)
    return np.clip(picture, 0, 255).astype("uint8")


def demo_rows(scale):
    """[(file name, medium, museum, split)] of the demo; names and museums vary as MAMe's do."""
    rows = []
    for index, medium in enumerate(MEDIUMS):
        test = 3 + (7 * index) % 10  # 3 to 12: rare and common classes, as in MAMe
        counts = {"train": DEMO_TRAIN, "val": DEMO_VAL, "test": test}
        for split in SPLITS:
            for number in range(max(2, round(counts[split] * scale))):
                # a medium mostly comes from one museum: the confound that MAMe has as well
                museum = DEMO_MUSEUMS[index % 3 if number % 4 else number // 4 % 3]
                file = f"{SPLITS.index(split) + 1}{index:02d}{number:04d}.jpg"
                if museum == DEMO_MUSEUMS[1]:
                    file = f"19{index:02d}.{SPLITS.index(split) + 1}.{number}.jpeg"
                rows.append((file, medium, museum, split))
    return rows


def draw_file(task):
    """Draw one image and write it as JPEG (in a worker process)."""
    from PIL import Image

    path, medium, seed = task
    Image.fromarray(draw_image(medium, seed)).save(path, "JPEG", quality=90)


def write_demo(root, seed=0, scale=1.0):
    """Draw the demo dataset into the new folder `root`; BadInput where it is there already."""
    root = Path(root)
    part = root.with_name(f"{root.name}.part")
    with locked(lock_of(root)):
        if root.exists():
            raise BadInput(f"{root} is there already; delete it, or name another folder with --data.")
        shutil.rmtree(part, ignore_errors=True)  # of a drawing that was interrupted
        (part / "data_256").mkdir(parents=True)
        rows = demo_rows(scale)
        tasks = [
            (part / "data_256" / file, medium, (seed, number))
            for number, (file, medium, _, _) in enumerate(rows)
        ]
        # spawned: a fork of a process in which an engine runs threads may hang
        with ProcessPoolExecutor(os.cpu_count(), multiprocessing.get_context("spawn")) as pool:
            done = pool.map(draw_file, tasks, chunksize=16)
            list(progress(done, "drawing the demo dataset", len(tasks), " images"))
        write_metadata(part, rows)
        os.replace(part, root)
    return root


def write_metadata(folder, rows):
    """Write the three metadata files of the demo, with MAMe's columns and its trailing space."""
    stream = io.StringIO(newline="")
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(
        ["Image file", "Medium", "Museum", "Museum-based instance ID", "Subset"]
        + ["Width", "Height", "Product size", "Aspect ratio"]
    )
    for file, medium, museum, split in rows:
        medium = "Woven fabric " if medium == "Woven fabric" else medium
        instance = file.rsplit(".", 1)[0]
        size = [float(SIZE), float(SIZE), float(SIZE * SIZE), 1.0]
        writer.writerow([file, medium, museum, instance, split, *size])
    labels = "".join(f"{index},{medium}\n" for index, medium in enumerate(MEDIUMS))
    for name, content in (
        ("MAMe_dataset.csv", stream.getvalue()),
        ("MAMe_labels.csv", labels),
        ("defaults.json", json.dumps(DEMO_DEFAULTS, indent=2) + "\n"),
    ):
        (folder / name).write_text(content, encoding="utf-8", newline="")
