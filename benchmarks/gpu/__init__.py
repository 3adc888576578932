"""What runs when a GPU is at hand: tests, and speed against PyTorch and CuPy.

``python -m benchmarks.gpu`` (or ``make gpu``, ``make test-gpu``, ``make bench-gpu``) runs its parts
one after the other; see ``--help``. The files:

===============  =================================================================
``__main__.py``  the command: parts, their time limits, where results go
``cases.py``     what is measured
``clocks.py``    CUDA events, and the host's time
``bench.py``     measures the cases in a process of its own
``results.py``   the machine, what was found, and the targets
``report.py``    tables, the README
``kernels.py``   what the compiler makes of each kernel, no GPU needed (``make gpu-report``)
===============  =================================================================
"""
