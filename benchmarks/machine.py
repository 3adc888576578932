"""What the machine is."""

from __future__ import annotations

import contextlib
import os
import platform
import re
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

import llvmlite.binding

from numbagrad import simd

PACKAGES = ("numbagrad", "numba", "llvmlite", "numpy", "torch", "jax", "jaxlib")


def describe() -> dict:
    """Return what a reader of the results should know about this machine."""
    return {
        "name": name(),
        "cpu": cpu(),
        "architecture": llvmlite.binding.get_host_cpu_name(),
        "vector_bytes": simd.VECTOR_BYTES,
        "cores": cores(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": versions(PACKAGES),
    }


def versions(packages: Iterable[str]) -> dict[str, str]:
    """Return the version of each of these packages that is installed.

    Examples
    --------
    >>> sorted(versions(["numpy", "no such package"]))
    ['numpy']
    """
    found = {}
    for package in packages:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found


def name() -> str:
    """Return a short name that suits a file."""
    words = f"{llvmlite.binding.get_host_cpu_name()} {cores()} cores"
    return re.sub("[^a-z0-9]+", "-", words.lower()).strip("-")


def cores() -> int:
    """Return how many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def cpu() -> str:
    """Return the processor's name."""
    info = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*:\s*(.+)", info.read_text()) if info.exists() else None
    return found[1] if found else platform.processor() or platform.machine()
