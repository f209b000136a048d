"""What trains how, on one screen: the defaults of a dataset, and the recipes of finetune.py.

A flag that is not given takes the recipe's value, and what the recipe leaves open the dataset's
own. The study states no learning rate, no batch size and no optimizer; its values here are this
project's choice."""

EARLY_STOPPING_PATIENCE = 20  # epochs without a better val_loss; the study's, section "Pretraining"
WARM_UP = 0.1  # share of a cosine schedule's updates in which the learning rate rises

# MAMe's, and those of one's own pictures. A new head learns ten times as fast as what was learned
# before.
DEFAULTS = {
    "name": "mame",
    "notice": None,
    "image_size": 224,  # pixels a side, as VGG16 was trained
    "weights": "imagenet",
    "batch_size": 32,
    "learning_rate": 1e-4,  # while VGG16 is frozen
    "fine_tune_learning_rate": 1e-5,
    "pretrain_learning_rate": 1e-4,
    "epochs": 100,  # at most; early stopping ends a stage before
    "fine_tune_epochs": 100,
    "pretrain_epochs": 100,
}

# The demo's: the smallest pictures that VGG16 takes, from random weights, and one epoch where all
# or two blocks of it train, so that it ends in about a minute on two CPU cores.
DEMO_DEFAULTS = {
    "name": "demo",
    "notice": "DEMO DATASET: textures drawn by this project, not MAMe. No figure here is MAMe's.",
    "image_size": 32,
    "weights": "none",
    "batch_size": 32,
    "learning_rate": 1e-3,
    "fine_tune_learning_rate": 2e-6,
    "pretrain_learning_rate": 1e-4,
    "epochs": 20,
    "fine_tune_epochs": 1,
    "pretrain_epochs": 6,
}

# The study's, with the dataset's own rates and epochs.
STUDY = {"head": "iii", "unfreeze": "none", "augment": False, "schedule": "constant"}

# Chosen on photographs and drawings (docs/better.md).
STRONG = {
    "head": "multilayer",
    "unfreeze": "all",
    "augment": False,
    "schedule": "cosine",
    "learning_rate": 1e-3,
    "fine_tune_learning_rate": 3e-5,
}

RECIPES = {"study": STUDY, "strong": STRONG}
# Of each stage at most, as far as the dataset's own epochs are not fewer.
MOST_EPOCHS = {"strong": {"epochs": 10, "fine_tune_epochs": 20}}
