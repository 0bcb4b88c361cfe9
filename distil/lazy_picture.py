"""Pictures that are in memory while they are worked on, or while there is room, and else are made again.

A sample spends its life waiting for its teacher, and needs its pictures for a few milliseconds of it. So
between two calls a picture is kept only where all that are kept fit into `ROOM`. Any other is dropped, and
made again from the photo's file and the actions since, pixel for pixel, when a call asks for it. Who works
on pixels does so `with PIXEL_WORK`: no more samples than there are cores have pictures in the making.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable

from PIL import Image

MAX_STEPS = 8  # from a picture that is at hand to the one asked for; one further off is kept in any case
_MAX_AT_WORK = 16
_KEPT_BYTES = 96 * 2**20
_PHOTO_SHARE = 2 / 3  # of the room: a crop takes less of it and would cost its photo's decoding too

PIXEL_WORK = threading.BoundedSemaphore(min(os.cpu_count() or 1, _MAX_AT_WORK))


class Room:
    """A bound on the pictures of all samples that are kept between two calls, in bytes."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.num_bytes = 0
        self._lock = threading.RLock()  # a picture may be collected, and give its bytes back, at any time

    def takes(self, image: Image.Image, share: float = 1.0) -> bool:
        """Whether there was room for the picture in a share of it; its bytes are counted until it is gone."""
        num_bytes = memory_bytes(image)
        with self._lock:
            if self.num_bytes + num_bytes > self.max_bytes * share:
                return False
            self.num_bytes += num_bytes
        weakref.finalize(image, self._give_back, num_bytes).atexit = False
        return True

    def _give_back(self, num_bytes: int) -> None:
        with self._lock:
            self.num_bytes -= num_bytes


ROOM = Room(_KEPT_BYTES)


def memory_bytes(image: Image.Image) -> int:
    """What a decoded picture takes in memory: Pillow has four bytes for a pixel of three."""
    pixel_bytes = 1 if image.mode in ("1", "L", "P") else 2 if image.mode.startswith("I;16") else 4
    return image.width * image.height * pixel_bytes


class LazyPicture:
    """One picture, made when it is asked for; used by one thread at a time."""

    def __init__(self, make: Callable[[], Image.Image], image: Image.Image) -> None:
        """`make` makes the picture again, with the same pixels; `image` is it."""
        self.size, self.mode = image.size, image.mode
        self._make: Callable[[], Image.Image] | None = make  # None where it cannot be made again
        self._source: LazyPicture | None = None  # what `_action` makes this one of, in place of `_make`
        self._action: Callable[[Image.Image], Image.Image] = lambda image: image
        self._num_steps = 0
        self._image: Image.Image | None = image
        self._is_kept = False

    @classmethod
    def of(cls, image: Image.Image) -> LazyPicture:
        """A picture that is somebody else's to keep."""
        return cls(lambda: image, image)

    @classmethod
    def made_once(cls, image: Image.Image) -> LazyPicture:
        """A picture that nothing can make again: it is always kept."""
        picture = cls.of(image)
        picture._make = None
        return picture

    def changed(self, action: Callable[[Image.Image], Image.Image]) -> LazyPicture:
        """What an action makes of this picture, each time the same."""
        picture = LazyPicture.made_once(action(self.image()))
        picture._source, picture._action, picture._num_steps = self, action, self._num_steps + 1
        return picture

    def image(self) -> Image.Image:
        """The picture itself; raises SampleError where its file cannot be read again."""
        steps: list[LazyPicture] = []
        start = self
        while start._image is None and start._source is not None:
            steps.append(start)
            start = start._source
        if start._image is None:
            assert start._make is not None
            start._image = start._make()
        image = start._image
        for step in reversed(steps):
            image = step._action(image)
        self._image = image
        return image

    def rest(self) -> None:
        """Keep the picture where there is room or no other way, else drop it: nobody works on it now."""
        if self._image is None or self._is_kept:
            return
        if self._source is None and self._make is not None:
            self._is_kept = ROOM.takes(self._image, _PHOTO_SHARE)
        else:
            self._is_kept = ROOM.takes(self._image) or self._is_best_held(self._image)
        if self._is_kept:
            self.let_go()
            self._source, self._num_steps = None, 0  # what it was made of is needed no more
        self.let_go()

    def give_up(self) -> None:
        """Drop the picture though there is room for it, where it can be made again: others need the room."""
        self._is_kept = False
        if self._make is not None:
            self._image = None

    def let_go(self) -> None:
        """Drop this picture, and those that it was made of, where they can be made again and are not kept."""
        picture: LazyPicture | None = self
        while picture is not None:
            if not picture._is_kept and (picture._make or picture._source):
                picture._image = None
            picture = picture._source

    def _is_best_held(self, image: Image.Image) -> bool:
        """Whether it would take too long to make again, or what has to be held in its place is no smaller."""
        start = self
        while start._source is not None:
            start = start._source
        if start._make is not None or start._image is None:
            return self._num_steps > MAX_STEPS
        return memory_bytes(image) <= memory_bytes(start._image)
