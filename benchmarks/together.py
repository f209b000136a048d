"""Classifiers together: the mean of what several runs say of each test photograph.

    python benchmarks/together.py runs/recipe/trashnet-strong-seed-0 runs/LINEAR

Prints the accuracy of each run alone and of the mean of their probabilities, on the test split of the
dataset that they were trained on.
"""

import argparse

import numpy as np
from measure import describe_machine
from transfer.dataset import load_dataset
from transfer.intervals import interval_of
from transfer.prediction import load_classifier

from test_model import predict_network
from transfer.images import load_images
from transfer.report import span
from transfer.runs import read_run
from transfer.screen import percent

BATCH = 32


def probabilities_of(run, dataset):
    """What a run says of the test split: float32 (n, classes)."""
    classify, _ = load_classifier(run)
    predictions = predict_network(load_images(dataset, ("test",), run.image_size), classify, BATCH)
    return np.stack(list(predictions.values()))


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", metavar="RUN")
    args = parser.parse_args()
    print(describe_machine(), flush=True)
    runs = [read_run(folder) for folder in args.runs]
    dataset = load_dataset(runs[0].config["dataset"]["folder"])
    found = {str(run.folder): probabilities_of(run, dataset) for run in runs}
    found["together"] = np.mean(list(found.values()), axis=0)
    for name, probabilities in found.items():
        accuracy = np.mean(probabilities.argmax(axis=1) == dataset.splits["test"].labels)
        print(f"  {percent(accuracy)} ({span(interval_of(accuracy, len(probabilities)))})  {name}")


if __name__ == "__main__":
    main()
