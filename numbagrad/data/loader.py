"""`DataLoader`: walks a data set in batches, prepared ahead by one background thread."""

import contextlib
import queue
import threading
from collections.abc import Callable, Generator, Iterator
from typing import Any

import numpy as np

from ..errors import whole_number
from .transforms import Key, Transform

Batch = tuple[np.ndarray, np.ndarray]
_AHEAD = 2  # batches that the thread may prepare before they are asked for


class DataLoader:
    """Iterate over `(images, labels)` batches, as numbagrad Arrays.

    Parameters
    ----------
    dataset : Dataset, tuple `(images, labels)`, or an object with `.images` and `.labels`
        Arrays whose first axis counts the samples. Beyond that any shape and dtype will do.
    batch_size : int
        Samples per batch; the last batch of an epoch may be smaller.
    shuffle : bool
        Walk each epoch in a random order of its own, a pure function of `(seed, epoch)`: the same
        on every machine and with every version of NumPy.
    seed : int
        Chooses the orders; 0 to 2**64 - 1.
    drop_last : bool
        Leave out a last batch of fewer than `batch_size` samples.
    transform : callable, optional
        `transform(images) -> images`, called with each batch as a NumPy array (float32 NHWC for
        the library's data sets). The array is a fresh copy: it may be changed in place, but must
        be returned. The result needs as many samples; shape and dtype may change otherwise.
        One of `numbagrad.data.transforms` is given random numbers that belong to `seed`, the epoch
        and the sample.
        Within an epoch it's called in batch order, from the background thread if there is one.
    workers : {1, 0}
        1: one background thread prepares up to two batches ahead. 0: no thread, everything happens
        in the loop itself. The batches are the same. It never forks.
    device : str, optional
        Where the Arrays go: see `numbagrad.asarray`.

    Attributes
    ----------
    epoch : int
        The number of the epoch that the next `for` loop (each `iter(loader)`) walks: 0 at first,
        one more with each. Save it and set it again to go on where a run stopped.

    Raises
    ------
    ValueError
        An argument that doesn't fit; and, in the loop, a transform's result that doesn't.
        What a transform raises arrives in the loop with its own traceback.

    Examples
    --------
    >>> import numpy as np
    >>> images, labels = np.zeros((10, 8, 8, 1), np.float32), np.arange(10)
    >>> loader = DataLoader((images, labels), 4)
    >>> len(loader)
    3
    >>> [batch_images.shape for batch_images, batch_labels in loader]
    [(4, 8, 8, 1), (4, 8, 8, 1), (2, 8, 8, 1)]
    """

    def __init__(
        self,
        dataset: Any,
        batch_size: int,
        *,
        shuffle: bool = False,
        seed: int = 0,
        drop_last: bool = False,
        transform: Callable[[np.ndarray], np.ndarray] | None = None,
        workers: int = 1,
        device: str | None = None,
    ) -> None:
        self.images, self.labels = _images_and_labels(dataset)
        self.batch_size = whole_number("DataLoader", "batch_size", batch_size, 1)
        self.shuffle = bool(shuffle)
        self.seed = whole_number("DataLoader", "seed", seed, 0)
        if self.seed >= 2**64:
            raise ValueError(f"seed must be below 2**64, got {seed}")
        self.drop_last = bool(drop_last)
        if self.drop_last and len(self.images) < self.batch_size:
            raise ValueError(
                f"drop_last=True leaves no batch: the dataset has {len(self.images)} samples and "
                f"batch_size is {batch_size}; a batch_size up to {len(self.images)} would fit"
            )
        if transform is not None and not callable(transform):
            raise ValueError(
                f"transform must be a function of a batch of images, or None, got {transform!r}"
            )
        self.transform = transform
        self.workers = whole_number("DataLoader", "workers", workers, 0)
        if self.workers > 1:
            raise ValueError(
                f"workers must be 1 (one background thread) or 0 (none), got {workers}"
            )
        self.device = device
        self.epoch = 0

    @property
    def epoch(self) -> int:
        """The number of the epoch that the next `iter(loader)` walks."""
        return self._epoch

    @epoch.setter
    def epoch(self, value: int) -> None:
        self._epoch = whole_number("DataLoader", "epoch", value, 0)

    def __len__(self) -> int:
        """The number of batches in an epoch."""
        n, size = len(self.images), self.batch_size
        return n // size if self.drop_last else -(-n // size)

    def __iter__(self) -> Iterator[tuple]:
        from ..array import Handover

        handover = Handover(self.device, 2 * (_AHEAD + 2))  # arrays: batches ahead, and two in use
        batches = ((*map(handover.put, batch),) for batch in self._batches(self.epoch))
        self.epoch += 1
        return self._arrays(_prefetched(batches) if self.workers else batches, handover.take)

    @staticmethod
    def _arrays(batches: Generator[tuple, None, None], take: Callable) -> Iterator[tuple]:
        with contextlib.closing(batches):  # however the loop ends, its thread ends now
            for batch in batches:
                yield (*map(take, batch),)

    def _batches(self, epoch: int) -> Generator[Batch, None, None]:
        """The batches of one epoch, in NumPy."""
        order = self._order(epoch)
        for i in range(len(self)):
            chosen = order[i * self.batch_size : (i + 1) * self.batch_size]
            images = self.images.take(chosen, axis=0)  # a copy
            labels = self.labels.take(chosen, axis=0)
            if self.transform is not None:
                images = self._transformed(images, Key(self.seed, epoch, chosen))
            yield images, labels

    def _order(self, epoch: int) -> np.ndarray:
        """The order in which `epoch` visits the samples, int64 of shape (n,).

        Sorting by random keys shuffles. The keys are raw Philox bits, which NumPy promises never to
        change; it makes no such promise for `permutation`.
        """
        n = len(self.images)
        if not self.shuffle:
            return np.arange(n)
        philox = np.random.Philox(key=np.array([self.seed, epoch], dtype=np.uint64))
        return np.argsort(philox.random_raw(n), kind="stable")

    def _transformed(self, images: np.ndarray, key: Key) -> np.ndarray:
        n, is_keyed = len(images), isinstance(self.transform, Transform)
        result = self.transform(images, key) if is_keyed else self.transform(images)
        array = np.asarray(result)
        if array.ndim == 0 or len(array) != n:
            got = "None" if result is None else f"an array of shape {array.shape}"
            raise ValueError(
                f"transform must return the batch of {n} images that it was given, "
                f"shape ({n}, ...); it returned {got}"
            )
        return array

    def __repr__(self) -> str:
        return (
            f"DataLoader({len(self.images):,} samples, batch_size={self.batch_size}, "
            f"{len(self)} batches, shuffle={self.shuffle}, epoch={self.epoch})"
        )


def _prefetched(batches: Iterator[Batch]) -> Generator[Batch, None, None]:
    """`batches`, but prepared by a thread, up to `_AHEAD` of them ahead.

    The loop orders batches and the thread delivers them, so the number of orders bounds the number
    of batches in memory, and the thread only ever waits for an order. However the loop ends
    (`break`, an exception, the generator thrown away), `finally` stops the thread.

    Both queues are `SimpleQueue`s because Python may run that `finally` in the middle of any
    allocation, on either thread: `SimpleQueue.put` is safe there, `Queue.put` could deadlock.
    """
    orders: queue.SimpleQueue = queue.SimpleQueue()
    deliveries: queue.SimpleQueue = queue.SimpleQueue()
    stop = threading.Event()

    def work() -> None:
        while True:
            orders.get()
            if stop.is_set():
                return
            try:
                deliveries.put((next(batches, None), None))
            except BaseException as error:  # everything: it belongs to the loop
                deliveries.put((None, error))

    # A daemon, so that a loop left half-way when the program ends can't keep it from ending.
    thread = threading.Thread(target=work, name="numbagrad-loader", daemon=True)
    thread.start()
    try:
        for _ in range(_AHEAD):
            orders.put("next")
        while True:
            batch, error = deliveries.get()
            if error is not None:
                raise error
            if batch is None:
                return
            orders.put("next")
            yield batch
    finally:
        batch = error = None  # no cycle between an error and this frame
        stop.set()
        orders.put("stop")
        if thread is not threading.current_thread():
            thread.join(timeout=1.0)  # it ends after the batch in hand; don't wait for a slow one


def _images_and_labels(dataset: Any) -> Batch:
    """The two arrays of a `dataset` argument, checked."""
    if isinstance(dataset, tuple) and any(hasattr(part, "images") for part in dataset):
        raise ValueError("dataset is a tuple of data sets, such as (train, test): pass one of them")
    if hasattr(dataset, "images") and hasattr(dataset, "labels"):
        images, labels = dataset.images, dataset.labels
    elif isinstance(dataset, tuple) and len(dataset) == 2:
        images, labels = dataset
    else:
        what = type(dataset).__name__
        if isinstance(dataset, tuple):
            what += f" of {len(dataset)}"
        raise ValueError(
            f"dataset is a {what}; a Dataset, a tuple (images, labels), or an object with "
            ".images and .labels would fit"
        )
    images, labels = np.asarray(images), np.asarray(labels)
    if images.ndim == 0 or labels.ndim == 0 or len(images) != len(labels):
        raise ValueError(
            f"dataset: images of shape {images.shape} and labels of shape {labels.shape}; "
            "their first axes must have the same length"
        )
    if len(images) == 0:
        raise ValueError("dataset is empty; it needs at least one sample")
    return images, labels
