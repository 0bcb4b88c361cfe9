"""Run a script in which SIGUSR1 brings a SIGINT at the worst of moments: inside a weakref callback.

What is raised there Python prints ("Exception ignored …") and forgets.
"""

from __future__ import annotations

import os
import runpy
import signal
import sys
import weakref


class Thing:
    """Something to refer to."""


def interrupt_in_a_callback(*_: object) -> None:
    thing = Thing()

    def callback(_: object) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        for _ in range(100_000):  # the signal's handler runs before this is over
            pass

    reference = weakref.ref(thing, callback)
    del thing
    assert reference() is None


if __name__ == "__main__":
    signal.signal(signal.SIGUSR1, interrupt_in_a_callback)
    sys.argv = sys.argv[1:]
    runpy.run_path(sys.argv[0], run_name="__main__")
