"""Read IDX files, the format of MNIST and its relatives.

The format is Yann LeCun's (described on the MNIST page, http://yann.lecun.com/exdb/mnist/):

    byte 0, 1       zero
    byte 2          the type of the values (see `_DTYPES`)
    byte 3          the number of dimensions, d
    4 * d bytes     the size of each dimension, big-endian uint32
    the rest        the values, big-endian, last dimension fastest (as a C array)
"""

import gzip
import math
import os
import zlib
from pathlib import Path

import numpy as np

from ..errors import DataError

_DTYPES = {
    0x08: np.dtype(">u1"),
    0x09: np.dtype(">i1"),
    0x0B: np.dtype(">i2"),
    0x0C: np.dtype(">i4"),
    0x0D: np.dtype(">f4"),
    0x0E: np.dtype(">f8"),
}
_GZIP_MAGIC = b"\x1f\x8b"  # an IDX file starts with two zero bytes, so the two never look alike
_MOST_DIMENSIONS = 32


def read_idx(path: str | os.PathLike) -> np.ndarray:
    """Read one IDX file, gzipped or not (found out from its content, not from its name).

    Parameters
    ----------
    path : str or path-like

    Returns
    -------
    ndarray
        Shape and dtype as the file's header says, in the machine's byte order; it owns its data.

    Raises
    ------
    DataError
        The file can't be read, its gzip layer is truncated or damaged (its CRC is checked), or it
        is not a well-formed IDX file (see `parse_idx`).
    """
    path = Path(path)
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: can't be read ({error.strerror})") from error
    if raw.startswith(_GZIP_MAGIC):
        try:
            raw = gzip.decompress(raw)
        except EOFError as error:
            raise DataError(
                f"{path}: truncated: its gzip stream stops early, after {len(raw):,} bytes; "
                "copy or download the whole file again"
            ) from error
        except (gzip.BadGzipFile, zlib.error) as error:
            raise DataError(
                f"{path}: damaged: its gzip stream can't be unpacked ({error}); "
                "copy or download the file again"
            ) from error
    return parse_idx(raw, source=str(path))


def parse_idx(raw: bytes, source: str = "<bytes>") -> np.ndarray:
    """Turn the (unzipped) bytes of an IDX file into an array.

    Parameters
    ----------
    raw : bytes
        The whole file: header and values, nothing after them.
    source : str
        What to call the bytes in an error: the file's path.

    Returns
    -------
    ndarray
        uint8, int8, int16, int32, float32 or float64, in the machine's byte order.

    Raises
    ------
    DataError
        Wrong magic, unknown type code, a header cut short, or a number of bytes other than the one
        the header asks for.

    Examples
    --------
    >>> parse_idx(bytes([0, 0, 0x08, 1, 0, 0, 0, 3, 7, 8, 9]))  # one dimension, three uint8
    array([7, 8, 9], dtype=uint8)
    """
    if len(raw) < 4:
        raise DataError(f"{source}: {len(raw)} bytes; an IDX file starts with a magic of 4 bytes")
    if raw[:2] != b"\x00\x00":
        raise DataError(
            f"{source}: not an IDX file: it starts with the bytes {raw[:4].hex(' ')}; "
            "an IDX file starts with 00 00, a type code and the number of dimensions"
        )
    code, ndim = raw[2], raw[3]
    if code not in _DTYPES:
        known = ", ".join(f"0x{c:02x} ({dtype.name})" for c, dtype in _DTYPES.items())
        raise DataError(f"{source}: unknown IDX type code 0x{code:02x}; known are {known}")
    if not 1 <= ndim <= _MOST_DIMENSIONS:
        raise DataError(
            f"{source}: its header says {ndim} dimensions; 1 to {_MOST_DIMENSIONS} can be read"
        )
    start = 4 + 4 * ndim
    if len(raw) < start:
        raise DataError(
            f"{source}: truncated in its header: {len(raw)} bytes, "
            f"where {ndim} dimensions need a header of {start}"
        )
    shape = tuple(int.from_bytes(raw[i : i + 4], "big") for i in range(4, start, 4))
    dtype = _DTYPES[code]
    wanted = start + math.prod(shape) * dtype.itemsize
    if len(raw) != wanted:
        what = "truncated" if len(raw) < wanted else "too long"
        raise DataError(
            f"{source}: {what}: {len(raw):,} bytes, where {dtype.name} values of shape {shape} "
            f"and the header need exactly {wanted:,}"
        )
    values = np.frombuffer(raw, dtype=dtype, offset=start).reshape(shape)
    return values.astype(dtype.newbyteorder("="))
