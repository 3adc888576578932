"""The register tile as NumPy rows: the same checks as with the JIT."""

import tiles


def test_tiles():
    tiles.check_all()
