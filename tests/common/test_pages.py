"""Tests of what spares page faults."""

import ctypes
import resource
import subprocess
import sys
from pathlib import Path

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


SCRIPT = """
import sys
import numpy as np
from lepton_common import pages

if sys.argv[1] == "pieces":
    pages.keep_freed_pieces()
elif sys.argv[1] == "all":
    pages.keep_freed_memory()

def held():
    return int(open("/proc/self/statm").read().split()[1]) * 4096 >> 20

before = held()
vectors = [np.ones(8 << 20) for _ in range(4)]  # 64 MB each
pieces = [np.ones(1 << 17) for _ in range(100)]  # 1 MB each
pieces.append(np.ones(1 << 10))
last = pieces[-1]
del vectors, pieces
after = held()
pages.give_back_freed_memory()
print(after - before, held() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux")
@pytest.mark.parametrize(
    ("keeping", "least", "most"), [("pieces", 90, 130), ("all", 300, 400), ("nothing", 0, 40)]
)
def test_what_was_freed_is_kept_or_given_back(keeping, least, most):
    words = [sys.executable, "-c", SCRIPT, keeping]
    kept, left = map(int, subprocess.run(words, capture_output=True, check=True).stdout.split())
    assert least <= kept <= most
    assert left <= 20


def test_advice_leaves_contents_as_they_are():
    buffer = bytearray(np.arange(1 << 20, dtype=np.int64).tobytes())
    use_huge_pages(memoryview(buffer))
    assert np.array_equal(np.frombuffer(buffer, np.int64), np.arange(1 << 20))
    use_huge_pages(memoryview(bytearray(10)))
