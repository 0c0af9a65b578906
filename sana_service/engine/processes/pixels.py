"""Memory for pictures that several processes see: pixels go from one to another without being copied or sent.

One anonymous file, larger than will ever be used and empty where nothing was written. A block is one page, whose
first byte says that the job was cancelled, and the pixels of all its images. Blocks are powers of two, so that a free
one fits any later job of about its size; a power that is not filled costs addresses, not memory. What was written to
is kept for later jobs: giving it back to the system and asking for it again takes longer than the pixels do.
"""

from __future__ import annotations

import mmap
import os
import threading
import weakref
from collections import defaultdict
from dataclasses import dataclass
from math import prod
from queue import Empty, SimpleQueue

import numpy as np

_SIZE_BYTES = 2**36
_HOLDERS = 2
"""A block is free once both processes have let it go."""


class PixelMap:
    """The memory as a process sees it.

    Args:
        fd: of the file.
    """

    def __init__(self, fd: int) -> None:
        self._map = mmap.mmap(fd, os.fstat(fd).st_size)

    def pixels(self, offset: int, shape: tuple[int, ...]) -> np.ndarray:
        """A block's images, (images, height, width, 3) uint8."""
        return np.frombuffer(self._map, np.uint8, prod(shape), offset + mmap.PAGESIZE).reshape(shape)

    def cancellation(self, offset: int) -> SharedFlag:
        """Whether a block's job was cancelled."""
        return SharedFlag(self._map, offset)


@dataclass(frozen=True)
class SharedFlag:
    """A byte of memory that is 0 or 1."""

    memory: mmap.mmap
    offset: int

    def set(self) -> None:
        self.memory[self.offset] = 1

    def clear(self) -> None:
        self.memory[self.offset] = 0

    def is_set(self) -> bool:
        return self.memory[self.offset] != 0


class PixelMemory(PixelMap):
    """The memory, and which of its blocks are free. Safe for threads.

    Args:
        size_bytes: of all blocks; memory is taken when it is first written to.
    """

    def __init__(self, size_bytes: int = _SIZE_BYTES) -> None:
        self.fd = os.memfd_create("sana-pixels")
        os.ftruncate(self.fd, size_bytes)
        super().__init__(self.fd)
        self._size_bytes = size_bytes
        self._lock = threading.Lock()
        self._end = 0
        self._sizes: dict[int, int] = {}
        self._holders: dict[int, int] = {}
        self._free: defaultdict[int, list[int]] = defaultdict(list)
        self._returned: SimpleQueue[int] = SimpleQueue()

    def take(self, shape: tuple[int, ...]) -> tuple[int, np.ndarray]:
        """A block for a job that is not cancelled: its offset and its images.

        Both processes hold it. This one lets it go when nothing refers to the images any more.

        Raises:
            MemoryError: there is none left.
        """
        size = 1 << (prod(shape) + mmap.PAGESIZE - 1).bit_length()
        with self._lock:
            self._reclaim()
            if self._free[size]:
                offset = self._free[size].pop()
            elif self._end + size <= self._size_bytes:
                offset, self._end = self._end, self._end + size
                self._sizes[offset] = size
            else:
                raise MemoryError("no room for more pictures at a time")
            self._holders[offset] = _HOLDERS
        self.cancellation(offset).clear()
        images = self.pixels(offset, shape)
        # Whatever is made of the images refers to their base.
        weakref.finalize(images.base, self.let_go, offset).atexit = False
        return offset, images

    def let_go(self, offset: int) -> None:
        """One holder of a block needs it no more. May be called at any moment, by the garbage collector as well."""
        self._returned.put(offset)

    @property
    def held_blocks(self) -> int:
        """Blocks that a process still holds."""
        with self._lock:
            self._reclaim()
            return len(self._holders)

    def _reclaim(self) -> None:
        while True:
            try:
                offset = self._returned.get_nowait()
            except Empty:
                return
            self._holders[offset] -= 1
            if not self._holders[offset]:
                del self._holders[offset]
                self._free[self._sizes[offset]].append(offset)
