"""The compiler: from a traced function to fused kernels.

``trace`` writes a function down as a list of equations; ``simplify`` cleans them up; ``plan``
decides what runs when, in which memory, with ``recompute`` what is rather computed again than kept
and with ``fuse`` what becomes one loop; ``emit_cpu`` writes that as Numba source, which
``compiled`` loads and runs. For a GPU it is ``emit_cuda`` and ``compiled_cuda``.
"""

from .function import CompiledFunction, compile
from .trace import Equation, Trace, trace

__all__ = ["CompiledFunction", "Equation", "Trace", "compile", "trace"]
