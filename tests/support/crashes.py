"""A server that dies at a chosen point, and models that should come out the same all the same."""

import numpy as np


class Crash(Exception):
    """The server dies here."""


def die(monkeypatch, owner, method, when, count=1):
    """Lets the server die before or after the n-th call of a method."""
    calls = iter(range(1, 10**6))
    work = getattr(owner, method)

    def dying(*arguments, **options):
        now = next(calls) == count
        if now and when == "before":
            raise Crash
        result = work(*arguments, **options)
        if now:
            raise Crash
        return result

    monkeypatch.setattr(owner, method, dying)


def assert_same(one, other, width=32):
    tolerance = {32: 3e-7, 24: 1e-5, 20: 1e-4, 16: 2e-3}[width]
    np.testing.assert_allclose(one, other, rtol=0, atol=tolerance)
