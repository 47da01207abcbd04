"""Two values plus two Gaussian draws, rounded, by as many bits of the draws as that takes."""

import threading
from collections.abc import Callable, Sequence

import numpy as np
from mpmath.libmp import from_float, from_man_exp, round_nearest, to_int
from mpmath.libmp.libmpi import (
    mpi_add,
    mpi_cos_sin,
    mpi_div,
    mpi_log,
    mpi_mul,
    mpi_pi,
    mpi_sqrt,
)
from numpy.typing import NDArray

# The ends of an interval, each a number of mpmath's.
Interval = tuple[tuple[int, int, int, int], tuple[int, int, int, int]]

_BITS = 52  # of each word, known beforehand
_ALONE = threading.Lock()  # mpmath keeps constants in two halves, which are not read together


def rounded_pair(
    drawn: tuple[int, int],
    values: Sequence[float],
    standard_deviation: float,
    grid: float,
    more: Callable[[int], NDArray[np.uint64]],
) -> list[float]:
    """Returns values plus draws of N(0, standard_deviation²) as whole numbers of steps of a grid.

    A uniform number is an interval, which more bits make narrower; so is all that is computed from
    it (interval arithmetic), until both ends round to one whole number.

    Args:
        drawn: words whose upper 52 bits begin a radius and an angle.
        values: the cosine's and the sine's, or the former's alone.
        standard_deviation: exactly as the float says.
        grid: the width of a step.
        more: gives uniform 64-bit words.
    """
    bits, (share, turn) = _BITS, (word >> (64 - _BITS) for word in drawn)
    while True:
        # Where its share begins at 0, nothing bounds a radius.
        with _ALONE:
            draws = _draws(_between(share, bits), _between(turn, bits), 2 * bits) if share else ()
        ends = [
            _steps(value, standard_deviation, draw, grid, 2 * bits)
            for value, draw in zip(values, draws, strict=False)
        ]
        if ends and all(low == high for low, high in ends):
            return [float(low) for low, _ in ends]
        share, turn = (
            known << 64 | int(word) for known, word in zip((share, turn), more(2), strict=True)
        )
        bits += 64


def _between(known: int, bits: int) -> Interval:
    return from_man_exp(known, -bits), from_man_exp(known + 1, -bits)


def _draws(share: Interval, turn: Interval, precision: int) -> tuple[Interval, Interval]:
    """Returns two draws of N(0, 1) by the transform of Box and Muller."""
    squared = mpi_mul(_exactly(-2.0), mpi_log(share, precision), precision)
    radius = mpi_sqrt(squared, precision)
    angle = mpi_mul(mpi_mul(_exactly(2.0), mpi_pi(precision), precision), turn, precision)
    cosine, sine = mpi_cos_sin(angle, precision)
    return mpi_mul(radius, cosine, precision), mpi_mul(radius, sine, precision)


def _steps(
    value: float, deviation: float, draw: Interval, grid: float, precision: int
) -> tuple[int, int]:
    """Returns the whole numbers of steps next to the ends of a value plus a draw."""
    noise = mpi_mul(_exactly(deviation), draw, precision)
    steps = mpi_div(mpi_add(_exactly(value), noise, precision), _exactly(grid), precision)
    low, high = (int(to_int(end, round_nearest)) for end in steps)
    return low, high


def _exactly(value: float) -> Interval:
    return from_float(value), from_float(value)
