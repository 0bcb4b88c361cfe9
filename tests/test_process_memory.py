"""What a run tells the C library of its memory, counted by the kernel."""

import platform
import subprocess
import sys

import pytest

_DECODE_IN_THREADS = """
import io, resource, sys, threading
from concurrent.futures import ThreadPoolExecutor
from PIL import Image
from distil.lazy_picture import PIXEL_WORK
from distil.pictures import decode_stored
from distil.process import reuse_memory, trim_memory

NUM_THREADS, NUM_PICTURES, SIZE = 16, 80, (1280, 960)
file = io.BytesIO()
Image.linear_gradient("L").resize(SIZE).convert("RGB").save(file, "JPEG")
reuse_memory()
start = threading.Barrier(NUM_THREADS)

def decode(_):
    with PIXEL_WORK:
        decode_stored(file.getvalue())
        trim_memory(4 * SIZE[0] * SIZE[1])

with ThreadPoolExecutor(NUM_THREADS, initializer=start.wait) as pool:
    list(pool.map(decode, range(NUM_THREADS)))
    before = resource.getrusage(resource.RUSAGE_SELF)
    list(pool.map(decode, range(NUM_PICTURES)))
    after = resource.getrusage(resource.RUSAGE_SELF)
print((after.ru_minflt - before.ru_minflt) / NUM_PICTURES, (after.ru_maxrss - before.ru_maxrss) / 1024)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library has other rules")
def test_photos_of_many_threads_take_the_memory_of_those_before_them() -> None:
    """A photo has 1,200 pages; cleared anew for each photo and its hash they take half of a run's CPU."""
    command = [sys.executable, "-c", _DECODE_IN_THREADS]
    printed = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    faults_per_picture, grown_mb = map(float, printed.split())
    assert faults_per_picture < 600
    assert grown_mb < 48
