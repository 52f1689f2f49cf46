"""Exact order of mean affinities: ratios of 64-bit integers, compared without rounding.

A mean affinity is affinity_sum / face_count between 0 and 255. Its key has 8 integer and 108 fractional binary digits
in two integers. Two different ratios with counts below 2**54 differ by more than 2**-108, so their keys differ in the
same direction, and equal keys mean equal ratios: comparing keys is comparing ratios.
"""

from __future__ import annotations

from fractions import Fraction

from models.errors import InvalidInput
from models.segmentation.jit import Number, kernel

MAX_FACES = 2**54 - 1
"""Largest face count (and denominator of a threshold) that the keys order exactly."""

Threshold = float | Fraction
_DENOMINATOR = 10**6
_HIGH_BITS = 46
_LOW_BITS = 62


def affinity_ratio(threshold: Threshold, what: str = "threshold") -> tuple[int, int]:
    """A threshold between 0 and 1 (1 = affinity 255) as an exact ratio (numerator, denominator) on the 0 to 255 scale.

    A float is converted once, to the nearest fraction with a denominator of at most a million, so 0.3 means 3/10
    exactly; a `Fraction` is taken as it is. Raises `InvalidInput` outside 0 to 1.
    """
    try:
        exact = threshold if isinstance(threshold, Fraction) else Fraction(threshold).limit_denominator(_DENOMINATOR)
    except (TypeError, ValueError, OverflowError) as error:
        raise InvalidInput(f"{what}: expected a number from 0 to 1, got {threshold!r}") from error
    scaled = exact * 255
    if not 0 <= exact <= 1 or scaled.denominator > MAX_FACES:
        raise InvalidInput(f"{what}: expected a number from 0 to 1, got {threshold!r}")
    return scaled.numerator, scaled.denominator


@kernel
def ratio_key(total: Number, count: Number) -> tuple[Number, Number]:
    """Key of total / count, larger for a larger ratio; int64, 0 <= total <= 255 * count, 1 <= count <= MAX_FACES."""
    whole = total // count
    rest = total - whole * count
    if rest == 0:
        return whole << _HIGH_BITS, 0
    high, rest = _digits(rest, count, _HIGH_BITS)
    low, rest = _digits(rest, count, _LOW_BITS)
    return (whole << _HIGH_BITS) | high, low


@kernel
def _digits(rest: Number, count: Number, bits: Number) -> tuple[Number, Number]:
    """The next binary digits of rest / count < 1, and what is left; as many at a time as 63 bits hold."""
    room = 46 if count < 1 << 16 else (31 if count < 1 << 31 else 8)
    digits = 0
    while bits > 0:
        step = min(bits, room)
        rest <<= step
        digit = rest // count
        digits = (digits << step) | digit
        rest -= digit * count
        bits -= step
    return digits, rest


@kernel
def ratio_order(total: Number, count: Number, other_total: Number, other_count: Number) -> Number:
    """1, 0 or -1 as total / count is above, equal to or below the other ratio, exactly; ranges as in `ratio_key`."""
    sign = 1
    while max(count, other_count) >= 1 << 27:  # below, the products of totals and counts fit into 63 bits
        whole, other_whole = total // count, other_total // other_count
        if whole != other_whole:
            return sign if whole > other_whole else -sign
        total -= whole * count
        other_total -= other_whole * other_count
        if total == 0 or other_total == 0:
            return 0 if total == other_total else (sign if total > 0 else -sign)
        # both below 1: compare the inverses the other way round
        total, count, other_total, other_count = count, total, other_count, other_total
        sign = -sign
    left, right = total * other_count, other_total * count
    return 0 if left == right else (sign if left > right else -sign)
