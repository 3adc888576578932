"""The op table by family: each op's shape rule, gradient, split and documented function."""

from . import operators
from .elementwise import *  # noqa: F403
from .linalg import *  # noqa: F403
from .reduction import *  # noqa: F403
from .shaping import *  # noqa: F403

operators.bind()
