"""The compiler: from a traced function to fused kernels.

So far it stages: ``trace`` writes a function down as a list of equations, which can be read,
printed and replayed.
"""

from .trace import Equation, Trace, trace

__all__ = ["Equation", "Trace", "trace"]
