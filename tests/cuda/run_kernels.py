"""Run the kernels of all cases once on the GPU, with gradients of both orders, for a tool to watch.

    PYTHONPATH=.:tests python tests/cuda/run_kernels.py --part 1/4 --seconds 100

runs the first of every four cases, as many as it can start in 100 seconds. It needs neither pytest
nor CPU kernels; whether results are right is for the tests to say.
"""

import argparse
import time

import numpy as np
from cases import CASES

import numbagrad as ng
from numbagrad.testing import cast_inputs, value_and_gradients


def main(part: str, seconds: float) -> str:
    """Run a part of the cases; return what was done, in words."""
    first, count = map(int, part.split("/"))
    cases = [case for _, case in CASES[first - 1 :: count]]
    started, done = time.monotonic(), 0
    with np.errstate(all="ignore"):
        for case in cases:
            if time.monotonic() - started > seconds:
                break
            arrays = [ng.asarray(x, device="cuda") for x in cast_inputs(case.inputs, "float32")]
            for result in value_and_gradients(case.function, arrays, case.grad).values():
                result.numpy()
            done += 1
    return f"ran {done} of {len(cases)} cases"


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--part", default="1/1")
    parser.add_argument("--seconds", type=float, default=1e9)
    print(main(**vars(parser.parse_args())), flush=True)
