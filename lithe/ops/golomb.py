"""Sorted positions as bits: the gaps between them in Golomb's code, as far as it is Rice's; and sets of positions as bit masks.

Tails (gap >> width, in unary) and heads (the low `width` bits) of all gaps lie one after the other, so that whole arrays are
coded at a time. Bits are counted from the highest of a byte; each run of bits is padded to whole bytes.
"""

from __future__ import annotations

import math

import numpy as np

GOLDEN = (1 + 5**0.5) / 2
ONES = np.array([bin(byte).count("1") for byte in range(256)], np.uint8)  # numpy's own came with 2.0
MOST_WIDTH = 40


def width(share: float) -> int:
    """Low bits of a gap that are written as they are: the best number where each place is taken with chance `share`."""
    if not 0 < share < 1:
        return 0
    return min(MOST_WIDTH, max(0, 1 + math.floor(math.log2(math.log(GOLDEN - 1) / math.log1p(-share)))))


def expected_bits(share: float) -> float:
    """Bits that a position takes on average (ComPEFT, section 2.2; its b* is our width)."""
    b = width(share)
    return b + 1 / (1 - (1 - share) ** (2**b))


def write(positions: np.ndarray, b: int) -> bytes:
    """Rising positions from 0 on, their gaps with `b` low bits."""
    gaps = np.diff(positions, prepend=-1) - 1
    ends = np.cumsum((gaps >> b) + 1) - 1
    tails = np.zeros(int(ends[-1]) + 1 if len(ends) else 0, np.uint8)
    tails[ends] = 1
    return np.packbits(tails).tobytes() + pack_numbers(gaps & ((1 << b) - 1), b)


def read(data: np.ndarray, count: int, size: int, b: int) -> np.ndarray:
    """The positions that `write` was given: `count` of them, below `size`. data: uint8, nothing behind them.

    Raises ValueError where the bytes are not such positions. Takes no more memory than the bytes and the count account for.
    """
    low = (count * b + 7) // 8
    if not 0 <= b <= min(MOST_WIDTH, size.bit_length()) or not 0 <= count <= min(size, 8 * (len(data) - low)):
        raise ValueError(f"{len(data)} bytes cannot hold {count} positions below {size} with {b} low bits each")
    ends = np.flatnonzero(np.unpackbits(data[: len(data) - low]))
    if len(ends) != count or len(data) - low != (int(ends[-1]) // 8 + 1 if count else 0):
        raise ValueError(f"{len(ends)} positions where {count} are told, or bytes of none")
    tails = np.diff(ends, prepend=-1) - 1
    if count and int(tails.max()) > size >> b:
        raise ValueError(f"a gap of more than the {size} places there are")
    positions = np.cumsum((tails << b) + read_numbers(data[len(data) - low :], count, b) + 1) - 1
    if count and int(positions[-1]) >= size:
        raise ValueError(f"position {int(positions[-1])} is not below {size}")
    return positions


def pack_numbers(numbers: np.ndarray, b: int) -> bytes:
    """Whole numbers below 2**b, b bits each."""
    bits = np.empty((len(numbers), b), np.uint8)
    for i in range(b):
        bits[:, i] = numbers >> (b - 1 - i) & 1
    return np.packbits(bits).tobytes()


def read_numbers(data: np.ndarray, count: int, b: int) -> np.ndarray:
    """The `count` numbers of b bits each. Raises ValueError where the bytes are not just theirs."""
    if len(data) != (count * b + 7) // 8:
        raise ValueError(f"{len(data)} bytes do not hold {count} numbers of {b} bits")
    bits = np.unpackbits(data, count=count * b).reshape(count, b)
    numbers = np.zeros(count, np.int64)
    for i in range(b):
        numbers = numbers << 1 | bits[:, i]
    return numbers


def mask_dot(a: tuple[np.ndarray, np.ndarray], b: tuple[np.ndarray, np.ndarray]) -> int:
    """The dot product of two vectors of -1, 0 and 1, each given as its masks of 1 and of -1 (uint8, eight places a byte).

    >>> one, other = ternary_masks(np.array([1, -1, 0, 1])), ternary_masks(np.array([1, 1, 1, 0]))
    >>> mask_dot(one, other), mask_dot(one, one)
    (0, 3)
    """
    agree = (a[0] & b[0]) | (a[1] & b[1])
    differ = (a[0] & b[1]) | (a[1] & b[0])
    return int(ONES[agree].sum(dtype=np.int64)) - int(ONES[differ].sum(dtype=np.int64))


def ternary_masks(signs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The masks of a vector of signs."""
    return np.packbits(signs > 0), np.packbits(signs < 0)
