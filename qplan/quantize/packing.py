"""Bytes of quantised weights in an MNN file. Layout: MNN's exporter, measured bit by bit on engine 3.6.1."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def value_header(out_features: int, in_features: int, bits: int) -> bytes:
    """Header of a weight record: number of dims, dims, and the table of integer values.

    The count of table entries is one byte, 0 meaning 256.
    """
    dim_type = np.int32 if max(out_features, in_features) > 65535 else np.uint16
    half = 1 << (bits - 1)
    table = np.arange(-half, half, dtype=np.int8)
    dims = np.array([out_features, in_features], dtype=dim_type)
    return b"\x02" + dims.tobytes() + bytes([len(table) % 256]) + table.tobytes()


def pack_codes(codes: NDArray[np.uint8], bits: int, block: int) -> bytes:
    """Pack unsigned integers ``[out, in]`` MSB first, ``bits`` per value.

    Widths that divide 8 fill whole bytes; 3, 5 and 6 bits are a stream that restarts at every ``block`` values.
    """
    if bits == 8:
        return np.ascontiguousarray(codes).tobytes()
    if 8 % bits == 0:
        per_byte = 8 // bits
        grouped = codes.reshape(-1, per_byte)
        packed = np.zeros(len(grouped), dtype=np.uint8)
        for position in range(per_byte):
            packed |= grouped[:, position] << np.uint8(bits * (per_byte - 1 - position))
        return packed.tobytes()
    blocks = codes.reshape(-1, block)
    step = max(1, (1 << 24) // (block * bits))  # bounds the bit array to 16 MB
    return b"".join(_pack_stream(blocks[i : i + step], bits) for i in range(0, len(blocks), step))


def _pack_stream(blocks: NDArray[np.uint8], bits: int) -> bytes:
    planes = np.unpackbits(blocks[..., None], axis=-1)[..., 8 - bits :]
    return np.packbits(planes.reshape(len(blocks), -1), axis=-1).tobytes()


def unpack_codes(data: bytes, bits: int, out_features: int, in_features: int, block: int) -> NDArray[np.uint8]:
    """Inverse of `pack_codes`: uint8 ``[out, in]``."""
    raw = np.frombuffer(data, dtype=np.uint8)
    if bits == 8:
        return raw.reshape(out_features, in_features)
    span = in_features if 8 % bits == 0 else block
    rows = out_features * in_features // span
    stream = np.unpackbits(raw.reshape(rows, -1), axis=-1)[:, : span * bits]
    padded = np.zeros((rows, span, 8), dtype=np.uint8)
    padded[..., 8 - bits :] = stream.reshape(rows, span, bits)
    return np.packbits(padded, axis=-1).reshape(out_features, in_features)
