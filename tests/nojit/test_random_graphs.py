"""Compiled functions on random graphs: the values, gradients and second gradients of eager ones."""

import graphs
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st


@st.composite
def steps(draw):
    """Return steps, each a function with the numbers of the values that it takes."""
    found = []
    for k in range(draw(st.integers(1, 7))):
        values = st.integers(0, k + 1)
        if draw(st.booleans()):
            found.append((draw(st.sampled_from(graphs.UNARY)), draw(values)))
        else:
            found.append((draw(st.sampled_from(graphs.BINARY)), draw(values), draw(values)))
    return found


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(steps(), st.sampled_from([None, 1, 4]), st.integers(0, 10))
@pytest.mark.filterwarnings("ignore:overflow")
@pytest.mark.filterwarnings("ignore:divide by zero")  # in lanes beyond the end
@pytest.mark.filterwarnings("ignore:invalid value")
def test_random_graphs(steps, chunk, seed):
    graphs.check(steps, chunk, seed)
