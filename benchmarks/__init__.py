"""Benchmarks: numbagrad against PyTorch, JAX and NumPy, in one run on one machine.

``python -m benchmarks`` (or ``make bench``) measures everything; see ``--help``. The files:

========================  =========================================================
``cases.py``              what is measured: operations
``networks.py``           what is measured: training steps and inference of whole networks
``processes.py``          what needs a process of its own: memory, start-up, training, loading
``peers.py``              the same work in PyTorch, JAX and NumPy
``measure.py``            how contenders alternate, and what is checked
``worker.py``             runs cases in a process with a given number of threads
``machine.py``            the machine: name, processor, versions
``results.py``            ratios, means and targets
``reasons.py``            why kernels that matter are far below the roof
``report.py``             tables, the README, the roofline picture
``scaling.py``            a command and picture: speed over batch, depth and threads
``gpu/``                  a command of its own: all that needs a GPU
``cifar10_speedrun.py``   a command of its own: a ResNet-9 to 94 % on CIFAR-10
``precision.py``          true float32 or tf32, here and in PyTorch
``optional.py``           libraries that are imported when they are first used
========================  =========================================================
"""
