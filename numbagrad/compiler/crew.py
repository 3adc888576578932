"""Compile what a step needs in several processes at once.

Numba compiles one function after the other, and in Python, which runs one thread at a time. But
what one process compiles another one finds on disk. So where much is to be compiled, helper
processes take a part of it. They need not succeed: what is not there in the end, whoever needs it
compiles.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import pickle
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Iterator, Sequence

import numba
from numba.core import types

from ..jit import OURS, Kernel, announced, cache_dir, is_settled
from .modules import load_module

LEAST_JOBS = 3  # to be compiled, for a helper to be worth the second that its start takes
MOST_HELPERS = 3
PROGRAM = (
    "import sys; sys.path[:] = sys.argv[1:]; from numbagrad.compiler import crew; crew.assist()"
)

Job = tuple[Kernel, tuple[types.Type, ...]]


class Crew:
    """A context manager for helpers beside this process, started when there is enough to do.

    Parameters
    ----------
    module
        Text and name of an emitted module whose functions are to be compiled, for `load_module`.
    """

    def __init__(self, module: tuple[str, str]):
        self._module = module
        self._helpers: list[subprocess.Popen] | None = None

    def __enter__(self) -> Crew:
        return self

    def __exit__(self, *exception: object) -> None:
        for helper in self._helpers or ():
            helper.kill()
        for helper in self._helpers or ():
            helper.wait()
            with contextlib.suppress(OSError):  # it died before it had read all
                helper.stdin.close()
            helper.stdout.close()

    def compile(self, jobs: Sequence[Job]) -> None:
        """Compile functions for the types of their arguments, each by whoever comes to it first.

        Where a helper did, it is on disk. Users' functions are left alone: no other process can
        be sure to find them.
        """
        left = deque(
            (function, kinds)
            for function, kinds in jobs
            if is_settled(function.py_func, OURS) and not function.is_compiled(kinds)
        )
        if self._helpers is None and len(left) >= LEAST_JOBS:
            self._helpers = list(_started(min(len(left) // LEAST_JOBS, _spare_cores())))
        feeders = [
            threading.Thread(target=self._feed, args=(helper, left), daemon=True)
            for helper in self._helpers or ()
        ]
        for feeder in feeders:
            feeder.start()
        for function, kinds in _taken_from(left):
            function.compile(kinds)
        for feeder in feeders:
            feeder.join()

    def _feed(self, helper: subprocess.Popen, jobs: deque[Job]) -> None:
        with contextlib.suppress(OSError):  # it has died
            for function, kinds in _taken_from(jobs):
                job = self._module, function.py_func.__module__, function.__name__, kinds
                with announced(function.__name__):
                    pickle.dump(job, helper.stdin)
                    helper.stdin.flush()
                    if not helper.stdout.read(1):
                        return


def _taken_from(jobs: deque[Job]) -> Iterator[Job]:
    """Yield jobs until none is left; others take some of them."""
    with contextlib.suppress(IndexError):
        while True:
            yield jobs.popleft()


def _started(count: int) -> Iterator[subprocess.Popen]:
    """Start helpers; where no process can be started, there are none."""
    if not sys.executable or getattr(sys, "frozen", False):  # no Python, but some application
        return
    environment = {**os.environ, "NUMBAGRAD_CACHE_DIR": str(cache_dir())}
    with contextlib.suppress(OSError):
        for _ in range(count):
            yield subprocess.Popen(
                [sys.executable, "-c", PROGRAM, *sys.path],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=environment,
            )


def _spare_cores() -> int:
    return min(numba.config.NUMBA_NUM_THREADS - 1, MOST_HELPERS)


def assist() -> None:
    """Compile what is asked for on the standard input, until it ends: what a helper does."""
    answers, sys.stdout = sys.stdout.buffer, sys.stderr  # nobody else shall answer
    while True:
        try:
            emitted, module, name, kinds = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        with contextlib.suppress(Exception):  # it will be raised where it is noticed
            if module not in sys.modules:
                load_module(*emitted)
            getattr(importlib.import_module(module), name).compile(kinds)
        answers.write(b".")
        answers.flush()


__all__ = ["Crew"]
