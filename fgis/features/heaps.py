"""Global heaps of HDF5 files, which hold texts of any length: a damaged one makes HDF5 (2.0 and before) read for ever.

A heap is "GCOL", a version, its size, and objects: an index, a count of references, a size, and the data, filled up to
a multiple of eight. Index 0 is free space, and its size includes these numbers; where that is 0, HDF5 does not move on.

Format: The HDF Group, HDF5 File Format Specification, section III.E.
"""

import mmap
from collections.abc import Sequence

import h5py

SIGNATURE, BEFORE_SIZE = b"GCOL\x01", 8  # and the bytes before the size, of a heap and of an object alike
ALIGNED = 8
LARGE = 1 << 20  # bytes of a dataset that is passed over


def has_endless_heap(file: h5py.File) -> bool:
    """Whether a global heap of an open file has no end; the data of large contiguous datasets are passed over."""
    width = file.id.get_create_plist().get_sizes()[1]  # bytes of a size
    with open(file.filename, "rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as whole:
        for start, stop in _outside_datasets(file, len(whole)):
            place = whole.find(SIGNATURE, start, stop)
            while place >= 0:
                if _is_endless(whole, place, width):
                    return True
                place = whole.find(SIGNATURE, place + 1, stop)
    return False


def _is_endless(whole: mmap.mmap, place: int, width: int) -> bool:
    read = lambda start: int.from_bytes(whole[start : start + width], "little")
    header = BEFORE_SIZE + width
    end = min(place + read(place + BEFORE_SIZE), len(whole))
    place += header
    while place + header <= end:  # an object's header has the same length
        size = read(place + BEFORE_SIZE)
        step = header + -(-size // ALIGNED) * ALIGNED if any(whole[place : place + 2]) else size
        if step == 0:
            return True
        place += step
    return False


def _outside_datasets(file: h5py.File, size: int) -> Sequence[tuple[int, int]]:
    """(first byte, byte after the last) of the parts of a file between its large contiguous datasets."""
    datasets = [one for one in map(file.get, file) if isinstance(one, h5py.Dataset)]
    placed = sorted((one.id.get_offset() or 0, one.id.get_storage_size()) for one in datasets if one.chunks is None)
    parts, start = [], 0
    for offset, length in placed:
        if length < LARGE or not offset or offset + length > size:
            continue
        parts.append((start, min(max(start, offset + len(SIGNATURE)), size)))
        start = max(start, offset + length - len(SIGNATURE))
    return [*parts, (min(start, size), size)]
