"""Look inside: a network's filters and answers, its graph, and an op down to its machine code.

What this is made of is in ``looking/``; all public names are here.
"""

from .looking.explain import Explanation, Part, explain
from .looking.insight import feature_maps, filters, saliency
from .looking.modules import ModuleGraph, Node, graph

__all__ = [
    "Explanation",
    "ModuleGraph",
    "Node",
    "Part",
    "explain",
    "feature_maps",
    "filters",
    "graph",
    "saliency",
]
