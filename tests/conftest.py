"""Settings for all tests."""

from hypothesis import settings

# The same examples in every run, and no clock: a first call compiles.
settings.register_profile("numbagrad", derandomize=True, deadline=None, max_examples=30)
settings.load_profile("numbagrad")
