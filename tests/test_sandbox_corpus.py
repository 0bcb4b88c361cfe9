"""The corpus: every attack is held, its detector fires without a sandbox, every benign program runs."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image
from sandbox_corpus.attacks import ATTACKS
from sandbox_corpus.benign import BENIGN
from sandbox_corpus.entry import Attack, Benign
from sandbox_corpus.other_user import as_nobody
from sandbox_corpus.run_all import ATTACK_BOUNDS, TIME_BOUNDS, picture
from sandbox_corpus.unprotected import Unprotected
from sandbox_corpus.world import World, broken_rule

from distil.records import SUCCESS_MESSAGE
from distil.sandbox.exchange import ExecResult
from distil.sandbox.sandbox import Sandbox

TESTS = Path(__file__).parent
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the sandbox needs Linux")


def named(entry: Attack | Benign) -> str:
    return f"{entry.category}: {entry.name}" if isinstance(entry, Attack) else entry.name


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    surroundings = World()
    yield surroundings
    surroundings.close()


@pytest.fixture(scope="module")
def unprotected(world: World) -> Iterator[Unprotected]:
    executor = Unprotected(world)
    yield executor
    executor.close()


@pytest.fixture(scope="module")
def usual() -> Iterator[Sandbox]:
    with Sandbox(**ATTACK_BOUNDS) as sandbox:  # type: ignore[arg-type]
        yield sandbox


@pytest.fixture(scope="module")
def hurried() -> Iterator[Sandbox]:
    with Sandbox(**TIME_BOUNDS) as sandbox:  # type: ignore[arg-type]
        yield sandbox


@pytest.fixture(scope="module")
def roomy() -> Iterator[Sandbox]:
    with Sandbox() as sandbox:
        yield sandbox


def test_the_corpus_is_large_and_its_names_are_unique() -> None:
    assert len(ATTACKS) >= 150
    assert len(BENIGN) >= 50
    assert len({named(attack) for attack in ATTACKS}) == len(ATTACKS)


@pytest.mark.parametrize("attack", ATTACKS, ids=named)
def test_attack_is_held(attack: Attack, world: World, usual: Sandbox, hurried: Sandbox) -> None:
    assert not world.reaches_goal(attack, hurried if attack.hangs else usual, picture())


# The controls are about the corpus, not about our code: they need no second look while it is as it was.
CORPUS_SHA256 = "7d3b57e58473653086873028f6df003bd885e885db370aac695f76e4dc0168ba"  # of the corpus whose detectors were last seen to fire
CORPUS_FILES = ("attacks.py", "entry.py", "naive.py", "unprotected.py", "world.py")
NO_CONTROLS = "the corpus is as it was when its detectors fired; DISTIL_TEST_CONTROLS=1 looks again"


def corpus_sha256() -> str:
    files = [(TESTS / "sandbox_corpus" / name).read_bytes() for name in CORPUS_FILES]
    return hashlib.sha256(b"".join(files)).hexdigest()


def runs_controls() -> bool:
    return os.environ.get("DISTIL_TEST_CONTROLS") == "1" or corpus_sha256() != CORPUS_SHA256


def test_a_changed_corpus_has_its_detectors_looked_at() -> None:
    """Fails until the digest above is that of the corpus: put it there once the controls have passed."""
    assert corpus_sha256() == CORPUS_SHA256


@pytest.mark.skipif(not runs_controls(), reason=NO_CONTROLS)
@pytest.mark.parametrize("attack", [attack for attack in ATTACKS if not attack.unprotected], ids=named)
def test_detector_fires_without_a_sandbox(attack: Attack, unprotected: Unprotected) -> None:
    if os.getuid() != 0 and attack.category == "kernel":
        pytest.skip("without root a kernel refuses many calls by itself")
    assert unprotected.reaches_goal(attack)


@pytest.mark.parametrize("program", BENIGN, ids=named)
def test_benign_program_runs(program: Benign, roomy: Sandbox) -> None:
    result = roomy.run(program.code, picture(program.mode))
    assert result.success, result.message
    assert program.stdout in (None, result.stdout)


class Subclass(Image.Image):
    """Not a plain picture."""


def wrong(**changes: object) -> ExecResult:
    """A good result but for the changes."""
    good = {
        "picture": picture(),
        "message": SUCCESS_MESSAGE,
        "stdout": "",
        "duration_seconds": 0.1,
        "kind": "ok",
    }
    return ExecResult(**good | changes)  # type: ignore[arg-type]


def with_info() -> Image.Image:
    changed = picture()
    changed.info["exif"] = b"x"
    return changed


@pytest.mark.parametrize(
    ("rule", "result"),
    [
        ("kind", wrong(kind="other")),
        ("success", wrong(picture=None)),
        ("success", wrong(message="Error: x")),
        ("success", wrong(kind="error")),
        ("printable", wrong(stdout="\x1b[2J")),
        ("utf-8", wrong(stdout="\ud800")),
        ("message", wrong(picture=None, kind="error", message="é" * 5000)),
        ("stdout", wrong(stdout="x" * 70000)),
        ("type", wrong(picture=Subclass())),
        ("pixels", wrong(picture=Image.new("L", (0, 3)))),
        ("pixels", wrong(picture=Image.new("1", (9000, 9000)))),
        ("info", wrong(picture=with_info())),
    ],
)
def test_the_rules_for_replies_see_what_breaks_them(rule: str, result: ExecResult) -> None:
    assert rule in broken_rule(result)
    assert broken_rule(wrong()) == ""


WHOLE_RUNS = {
    "seccomp alone": (False, "namespaces,landlock,privileges"),
    "ordinary user": (True, ""),
    "ordinary user, seccomp alone": (True, "namespaces,landlock"),
}


@pytest.fixture(scope="module")
def whole_runs() -> Iterator[dict[str, subprocess.Popen[str]]]:
    """The whole corpus under fewer layers, each in a process of its own, side by side."""
    runs = {name: start_whole_run(*how) for name, how in WHOLE_RUNS.items() if os.getuid() == 0 or not how[0]}
    yield runs
    for run in runs.values():
        run.kill()
        run.communicate()


def start_whole_run(other_user: bool, disabled: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-B", "-m", "sandbox_corpus.run_all", disabled]
    path = os.pathsep.join([str(TESTS), str(TESTS.parent)])
    return subprocess.Popen(
        as_nobody(command) if other_user else command,
        cwd="/",
        env=os.environ | {"PYTHONPATH": path},
        stdout=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("name", WHOLE_RUNS)
def test_fewer_layers_hold_the_same(name: str, whole_runs: dict[str, subprocess.Popen[str]]) -> None:
    if name not in whole_runs:
        pytest.skip("this user is an ordinary one: the other runs show it")
    report = json.loads(whole_runs[name].communicate(timeout=120)[0])
    assert report["got_through"] == []
    assert report["failed"] == []
    assert report["levels"]["seccomp"].startswith("on")
    if "alone" in name:
        assert report["levels"]["namespaces"].startswith("off")
        assert report["levels"]["landlock"].startswith("off")
