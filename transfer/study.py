"""The constants and figures of the study "transfer learning on MAMe with VGG16", each once:
accuracies are percentages of MAMe's validation split unless a name says test. Nothing here is
measured by this project."""

SPLITS = ("train", "val", "test")

# Section "Fine-tuning", unfreezing: the stages of a strategy, each with the blocks it trains
# beside the dense layers.
ALL_BLOCKS = ("block1", "block2", "block3", "block4", "block5")
UNFREEZE = {
    "none": (("dense", ()),),
    "all": (("dense", ()), ("all", ALL_BLOCKS)),
    "stepped": (
        ("dense", ()),
        ("dense + block4 + block5", ("block4", "block5")),
        ("all", ALL_BLOCKS),
    ),
}

# Section "Fine-tuning", augmentation, in the sense of Keras' ImageDataGenerator.
AUGMENTATION = {
    "rotation_range": 20,  # degrees
    "width_shift_range": 0.2,  # of the width
    "height_shift_range": 0.2,  # of the height
    "zoom_range": 0.2,  # sampled for each axis
    "horizontal_flip": True,
}

# Section "Feature extraction": thresholds of the full-network embedding
# (Garcia-Gasulla et al. 2018), in standard deviations.
EMBEDDING_THRESHOLDS = (-0.25, 0.15)

FIGURES = ("loss", "accuracy", "val_loss", "val_accuracy")  # by which its tables judge a training
# Section "Fine-tuning", both tables: settings, then validation accuracy (all: docs/study.md).
FINE_TUNING_ROWS = [
    dict(zip(("row", "head", "unfreeze", "augment", "final_augment", "val_accuracy"), row))
    for row in (
        ("head i", "i", "none", False, False, 75.36),
        ("head ii", "ii", "none", False, False, 80.04),
        ("head iii", "iii", "none", False, False, 80.18),
        ("dense, no augmentation", "iii", "none", False, False, 80.03),
        ("dense, augmentation, first run", "iii", "none", True, False, 73.58),
        ("dense, augmentation", "iii", "none", True, False, 77.13),
        ("all unfrozen, augmentation", "iii", "all", True, False, 79.62),
        ("stepwise, no augmentation", "iii", "stepped", False, False, 81.25),
        ("stepwise, then augmentation", "iii", "stepped", False, True, 79.12),
    )
]

# Section "Feature extraction and random forest": the settings that the text names.
# original: VGG16 as it was trained on ImageNet, not a fine-tuned network.
FOREST_SETTINGS = ("original", "layers", "discretize", "n_estimators", "min_samples_leaf")
FOREST_ROWS = [
    dict(zip(("row", *FOREST_SETTINGS, "val_accuracy"), row))
    for row in (
        ("forest, all layers, leaf 2", True, "all", False, 50, 2, 73.0),
        # the text names 73 without; the pair that it belongs to gives 71 with
        ("forest, all layers, leaf 2, discretized", True, "all", True, 50, 2, 71.0),
        ("forest, all layers, leaf 7", True, "all", False, 50, 7, 72.0),
        ("forest, last of each block, leaf 7", True, "last", False, 50, 7, 70.0),
        ("forest, block5_conv3, leaf 7", True, "block5_conv3", False, 50, 7, 60.0),
        ("forest on: all unfrozen, augmentation", False, "all", False, 50, 2, 74.0),
        ("forest on: second fine-tuned model", False, "all", False, 50, 2, 73.0),
    )
]
VAL_ACCURACY = {row["row"]: row["val_accuracy"] for row in (*FINE_TUNING_ROWS, *FOREST_ROWS)}
# What the study concludes from its rows: the one that is ahead, and the one behind.
CLAIMS = (
    ("head iii is ahead of head i", "head iii", "head i"),
    ("head iii is ahead of head ii", "head iii", "head ii"),
    ("augmentation harms dense layers", "dense, no augmentation", "dense, augmentation"),
    ("stepwise is ahead of all at once", "stepwise, no augmentation", "all unfrozen, augmentation"),
    (
        "augmentation after stepwise harms",
        "stepwise, no augmentation",
        "stepwise, then augmentation",
    ),
    (
        "all layers beat the last ones",
        "forest, all layers, leaf 7",
        "forest, last of each block, leaf 7",
    ),
    (
        "those beat block5_conv3",
        "forest, last of each block, leaf 7",
        "forest, block5_conv3, leaf 7",
    ),
    (
        "discretization harms",
        "forest, all layers, leaf 2",
        "forest, all layers, leaf 2, discretized",
    ),
    (
        "fine-tuning helps a forest",
        "forest on: all unfrozen, augmentation",
        "forest, all layers, leaf 2",
    ),
    ("fine-tuning is ahead of forests", "stepwise, no augmentation", "forest, all layers, leaf 2"),
)
FOREST_TREES = (100, 50, 12)
FOREST_LEAVES = (2, 7, 20)
FOREST_LAYERS = ("all", "last", "block5_conv3")

# Section "Final table and test": the best network on MAMe's test split.
TEST_ACCURACY = 0.81
TEST_AVERAGES = {"macro avg": 0.79, "weighted avg": 0.81}  # f1, named as scikit-learn does
# f1 on MAMe's test split by class, in the order of MAMe_labels.csv.
TEST_F1 = (
    0.97,
    0.79,
    0.81,
    0.82,
    0.75,
    0.72,
    0.84,
    0.79,
    0.90,
    0.82,
    0.98,
    0.96,
    0.77,
    0.73,
    0.79,
    0.79,
    0.64,
    0.83,
    0.82,
    0.60,
    0.87,
    0.37,
    0.81,
    0.73,
    0.76,
    0.76,
    0.91,
    0.90,
    0.76,
)


def plan_trainings(strategy):
    """The trainings of a strategy, a dict with unfreeze, augment and final_augment, in order:
    [(what trains, its blocks of convolutions, augmented?)]."""
    stages = UNFREEZE[strategy["unfreeze"]]
    trainings = [(name, blocks, strategy["augment"]) for name, blocks in stages]
    if strategy["final_augment"]:
        name, blocks = stages[-1]
        trainings.append((f"{name}, augmented", blocks, True))
    return trainings


def fine_tuning_rows(arguments):
    """The study's rows that a run of finetune.py with these arguments (a dict) reruns: [(the number
    of the stage that ends it, row's name)]: its own, and those of strategies it begins with."""
    if arguments["schedule"] != "constant":
        return []
    ours = plan_trainings(arguments)
    found = []
    for row in FINE_TUNING_ROWS:
        studys = plan_trainings(row)
        if row["head"] == arguments["head"] and ours[: len(studys)] == studys:
            found.append((len(studys), row["row"]))
    return found


def forest_rows(original, classifier):
    """The names of the study's rows that a classifier with these metrics, a dict, reruns; on VGG16
    as it was published or on another network."""
    ours = {**classifier, "original": original}
    found = []
    for row in FOREST_ROWS:
        if all(ours.get(name) == row[name] for name in FOREST_SETTINGS):
            found.append(row["row"])
    return found
