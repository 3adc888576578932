"""A training to be killed and resumed, in a process of its own: FOLDER THREADS EAGER|COMPILED.

It goes on from the checkpoint in the folder if there is one, says ``training`` when it begins,
and leaves all that it came to in ``result.npz``. $DIE_AT, such as ``replace:3``, kills it at the
third call of `os.replace`.
"""

import json
import os
import signal
import sys
from pathlib import Path

import numpy as np

import numbagrad as ng
from numbagrad.layers import BatchNorm1d, Dropout, Flatten, Linear, ReLU, Sequential
from numbagrad.train import F1, Callback, Checkpoint, CSVLog, EarlyStopping, TensorBoard, fit


def model_and_options():
    ng.random.seed(3)
    own = ng.random.Generator(5)
    model = Sequential(
        Flatten(), Linear(64, 40), BatchNorm1d(40), ReLU(), Dropout(0.2), Linear(40, 10),
        Dropout(0.1),
    )  # fmt: skip
    model.generator = own  # a state of the model's, drawn from by the loss below

    def loss(outputs, labels):
        noise = ng.random.normal(outputs.shape, std=0.01, generator=own)
        return ng.softmax_cross_entropy(outputs + noise, labels)

    options = {
        "epochs": 6,
        "batch_size": 24,
        "lr": 0.02,
        "loss": loss,
        "schedule": ng.optim.cosine,
        "clip_norm": 1.0,
        "seed": 7,
        "progress": False,
        "transform": lambda images: images * 2 - 1,
        "metrics": [F1()],
    }
    return model, options


class Result(Callback):
    """Collects what a run came to, but for the time that it took."""

    def begin(self, run):
        print("training", flush=True)

    def epoch(self, run, epoch):
        self.take(run)

    def take(self, run):
        self.arrays = {name: state.numpy() for name, state in run.states().items()}
        notes = run.notes()
        for epoch in notes["history"]:
            del epoch["seconds"], epoch["images_per_second"]
        del notes["meter"]["seconds"]
        self.arrays["notes"] = np.array(json.dumps(notes, sort_keys=True))

    def end(self, run):
        self.take(run)


def die_at(place):
    name, count = place.split(":")
    real, left = getattr(os, name), int(count)

    def dying(*args, **kwargs):
        nonlocal left
        left -= 1
        if not left:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*args, **kwargs)

    setattr(os, name, dying)


def main(folder, threads, mode):
    folder = Path(folder)
    ng.set_num_threads(int(threads))
    if "DIE_AT" in os.environ:
        die_at(os.environ["DIE_AT"])
    train, test = ng.data.digits()
    model, options = model_and_options()
    result = Result()
    fit(
        model,
        train.take(500),
        test.take(100),
        compile=mode == "compiled",
        callbacks=[
            Checkpoint(folder, every=4),
            EarlyStopping(patience=9),
            CSVLog(folder / "metrics.csv"),
            TensorBoard(folder / "events"),
            result,
        ],
        resume=folder if (folder / "last.safetensors").exists() else None,
        **options,
    )
    np.savez(folder / "result.npz", **result.arrays)


if __name__ == "__main__":
    main(*sys.argv[1:])
