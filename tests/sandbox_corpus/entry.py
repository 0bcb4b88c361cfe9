"""What an entry of the corpus is.

An attack is code with a goal, and a detector that says from the outside whether the goal was reached:

    token      the secret's bytes are in what came back (output, message or pixels)
    escaped    the code says ESCAPED, after it got what it should not get
    folder     something in the watched folder changed
    network    the listener on loopback (TCP, UDP, unix) heard something
    victim     a process that only sleeps was ended or stopped
    overtime   the call took longer than its limit allows
    state      a second program, run after it, prints DIRTY
    flood      more came back than the bounds allow
    forged     the reply broke a rule of the interface or harmed the caller

Placeholders in the code: {secret_file} {folder} {tcp} {udp} {unix} {victim} {caller} (pids and ports).
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Attack:
    """One attack; `unprotected` says why its detector is not shown to fire without a sandbox, if so."""

    category: str
    name: str
    code: str
    detector: str
    probe: str = ""
    unprotected: str = ""

    @property
    def hangs(self) -> bool:
        """Whether it runs until it is stopped."""
        return self.detector == "overtime" or self.name in HANGING


HANGING = (
    "half a header, then nothing",
    "drip",
    "read the channel away",
    "output of no length",
    "output for ever",
)


@dataclass(frozen=True)
class Benign:
    """An ordinary program; it must succeed, print `stdout` if that is given, and leave a picture."""

    name: str
    code: str
    mode: str = "RGB"
    stdout: str | None = None


def family(category: str, detector: str, codes: dict[str, str], unprotected: str = "") -> list[Attack]:
    """Attacks that share a category and a detector."""
    return [Attack(category, name, code, detector, unprotected=unprotected) for name, code in codes.items()]
