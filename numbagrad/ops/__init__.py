"""The op table by family: each op's shape rule, gradient, split and documented function."""

from . import operators
from .convolution import *  # noqa: F403
from .custom import *  # noqa: F403
from .elementwise import *  # noqa: F403
from .embedding import *  # noqa: F403
from .indexing import *  # noqa: F403
from .linalg import *  # noqa: F403
from .losses import *  # noqa: F403
from .normalization import *  # noqa: F403
from .optimisation import *  # noqa: F403
from .pooling import *  # noqa: F403
from .reduction import *  # noqa: F403
from .sampling import *  # noqa: F403
from .shaping import *  # noqa: F403

operators.bind()
