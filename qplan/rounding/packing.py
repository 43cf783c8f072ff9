"""Bytes of quantized weights in an MNN file. Layout: MNN's exporter, measured bit by bit on engine 3.6.1."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def value_header(out_features: int, in_features: int, levels: Sequence[int]) -> bytes:
    """Header of a weight record: number of dims, dims, and the table of values, which are int8.

    The count of table entries is one byte, 0 meaning 256.
    """
    dim_type = np.int32 if max(out_features, in_features) > 65535 else np.uint16
    table = np.array(levels, dtype=np.int8)
    dims = np.array([out_features, in_features], dtype=dim_type)
    return b"\x02" + dims.tobytes() + bytes([len(table) % 256]) + table.tobytes()


def pack_codes(codes: NDArray[np.uint8], bits: int) -> bytes:
    """Pack unsigned integers ``[out, in]`` MSB first, ``bits`` per value.

    One bit stream over the whole matrix: blocks and rows do not start on whole bytes.
    """
    if bits == 8:
        return np.ascontiguousarray(codes).tobytes()
    per_byte = 8 // bits
    if 8 % bits == 0 and codes.size % per_byte == 0:
        grouped = codes.reshape(-1, per_byte)
        packed = np.zeros(len(grouped), dtype=np.uint8)
        for position in range(per_byte):
            packed |= grouped[:, position] << np.uint8(bits * (per_byte - 1 - position))
        return packed.tobytes()
    values = codes.reshape(-1)
    step = 1 << 21  # bounds the bit array to 16 MB; a multiple of 8 values fills whole bytes
    return b"".join(_pack_stream(values[i : i + step], bits) for i in range(0, len(values), step))


def _pack_stream(values: NDArray[np.uint8], bits: int) -> bytes:
    planes = np.unpackbits(values[:, None], axis=-1)[:, 8 - bits :]
    return np.packbits(planes).tobytes()
