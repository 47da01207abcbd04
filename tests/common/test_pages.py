"""Tests of what spares page faults."""

import ctypes
import resource

import numpy as np
import pytest

from lepton_common.pages import keep_freed_memory, use_huge_pages


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="needs glibc")
def test_memory_that_was_freed_is_used_again_without_faults():
    keep_freed_memory()

    def work():
        for _ in range(5):
            np.ones(4 << 20)  # 32 MB

    work()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    work()
    # Given back and faulted in anew, it would be 8,000 pages each time.
    assert resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before < 8000


def test_advice_leaves_contents_as_they_are():
    buffer = bytearray(np.arange(1 << 20, dtype=np.int64).tobytes())
    use_huge_pages(memoryview(buffer))
    assert np.array_equal(np.frombuffer(buffer, np.int64), np.arange(1 << 20))
    use_huge_pages(memoryview(bytearray(10)))
