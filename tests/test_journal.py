"""Paid turns survive: a journal read back, torn anywhere, and runs that end early (kills: test_kills.py)."""

from __future__ import annotations

import fcntl
import gc
import hashlib
import itertools
import json
import os
import resource
import signal
import sys
import tempfile
import threading
import time
import tracemalloc
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from conftest import PACKAGE, RunDoor, photo_bytes, save_photos
from hypothesis import given
from hypothesis import strategies as st
from scripted_teacher import ScriptedTeacher, calls, is_probe, num_turns, says
from warm_door import start_door

from distil.errors import FolderError
from distil.records import RawCall, Reply, SampleId, ToolMode
from distil.store.atomic import write_bytes
from distil.store.groups import Groups
from distil.store.journal import (
    FOLDER,
    Journal,
    SampleJournal,
    _Index,
    _reply_json,
    _Turn,
    unfinished_samples,
)
from distil.store.json_lines import line_bytes

SAMPLE = SampleId(3)

json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
replies = st.builds(
    Reply,
    content=texts,
    reasoning=st.none() | texts,
    reasoning_field=st.none() | st.just("reasoning"),
    finish_reason=st.none() | st.just("stop"),
    calls=st.lists(
        st.builds(RawCall, texts, json_values, st.none() | texts, st.none() | texts), max_size=3
    ).map(tuple),
    call_form=st.sampled_from(ToolMode),
    usage=st.none() | st.dictionaries(st.text(max_size=5), json_values, max_size=3),
    refusal=st.none() | texts,
)


def reply(number: int) -> Reply:
    return Reply(f"turn {number}", None, None, "stop", (), ToolMode.TEXT, {"n": number})


ANSWER = reply(1)


class Asked:
    """An `ask` that counts."""

    def __init__(self) -> None:
        self.requests: list[Sequence[bytes]] = []

    def __call__(self, messages: Sequence[bytes], seed: int) -> Reply:
        self.requests.append(list(messages))
        return reply(len(messages))


def ask_turns(journal: SampleJournal, ask: Any, count: int, name: bytes = b"m") -> list[Reply]:
    """A conversation that grows by one message a turn."""
    journaled = journal.journaled(ask)
    return [
        journaled([b"%s%d" % (name, message) for message in range(turn)], 0) for turn in range(1, count + 1)
    ]


def opened(folder: Path, sample: int = 3, settings: str = "s", file: str = "f") -> SampleJournal:
    """A sample's turns, as a run finds them that starts now."""
    return Journal(folder, settings).of(SampleId(sample), file)


def segments(folder: Path) -> list[Path]:
    return sorted((folder / FOLDER).glob("*.jsonl"))


def lines_of(folder: Path) -> list[Any]:
    return [json.loads(line) for path in segments(folder) for line in path.read_bytes().splitlines()]


@given(st.lists(replies, min_size=1, max_size=4))
def test_replies_come_back_as_they_were(stored: list[Reply]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        rest = list(stored)
        journaled = opened(Path(folder)).journaled(lambda *_: rest.pop(0))
        for number in range(len(stored)):
            journaled([b"m"] * number, 0)
        asked = Asked()
        again = opened(Path(folder)).journaled(asked)
        assert [again([b"m"] * number, 0) for number in range(len(stored))] == stored
        assert asked.requests == []


@given(replies)
def test_a_stored_reply_has_all_its_fields(reply: Reply) -> None:
    assert line_bytes(_reply_json(reply)) == line_bytes(asdict(reply))


def test_a_group_of_several_samples_torn_at_any_byte_gives_its_whole_turns_and_goes_on(
    tmp_path: Path,
) -> None:
    """Three samples' turns in one file; what the tear cut off is asked again, and nothing else."""
    whole_folder, folder = tmp_path / "whole", tmp_path / "torn"
    whole_folder.mkdir()
    journal = Journal(whole_folder, "s")
    whole = {}
    for sample in (1, 2, 3):  # one group would have them in any order
        whole[sample] = ask_turns(journal.of(SampleId(sample), "f"), Asked(), 2, b"s%d" % sample)
    (path,) = segments(whole_folder)
    lines = path.read_bytes().splitlines(keepends=True)
    data = b"".join([lines[0], lines[2], lines[4], lines[1], lines[3], lines[5]])
    (folder / FOLDER).mkdir(parents=True)
    torn = folder / FOLDER / path.name
    for cut in range(len(data) + 1):
        torn.write_bytes(data[:cut])
        num_whole = data[:cut].count(b"\n")
        journal = Journal(folder, "s")
        assert journal.num_bad_lines == (data[:cut].rpartition(b"\n")[2] != b"")
        num_stored = {1: 0, 2: 0, 3: 0} | Counter(
            json.loads(line)["sample_index"] for line in data[:cut].splitlines(keepends=True)[:num_whole]
        )
        for sample, number in num_stored.items():
            assert journal.num_turns(SampleId(sample)) == number
            if cut % 29 == 0:
                asked = Asked()
                assert (
                    ask_turns(journal.of(SampleId(sample), "f"), asked, 2, b"s%d" % sample) == whole[sample]
                )
                assert len(asked.requests) == 2 - number
        if cut % 29 == 0:
            again = Journal(folder, "s")
            assert [again.num_turns(SampleId(sample)) for sample in (1, 2, 3)] == [2, 2, 2]
            again.drop([SampleId(sample) for sample in (1, 2, 3)])
            assert segments(folder) == []


@pytest.mark.parametrize("damage", [b"x", b"\x00", b"\n", b'{"sample_index": 3}\n', b"[]\n"])
def test_a_line_damaged_in_the_middle_is_counted_and_ends_its_sample_alone(
    damage: bytes, tmp_path: Path
) -> None:
    journal = Journal(tmp_path, "s")
    for sample in (1, 2):
        ask_turns(journal.of(SampleId(sample), "f"), Asked(), 3)
    (path,) = segments(tmp_path)
    lines = path.read_bytes().splitlines(keepends=True)
    lines[1] = lines[1][:40] + damage + lines[1][40 + len(damage) :]
    path.write_bytes(b"".join(lines))
    journal = Journal(tmp_path, "s")
    assert (journal.num_turns(SampleId(1)), journal.num_turns(SampleId(2))) == (1, 3)
    assert journal.num_bad_lines >= 2, "the line, and the turn that would follow it"
    asked = Asked()
    ask_turns(journal.of(SampleId(1), "f"), asked, 3)
    assert len(asked.requests) == 2


@pytest.mark.parametrize("changes", [{"settings": "other"}, {"file": "other"}])
def test_turns_of_other_settings_or_pictures_are_not_used(changes: dict[str, str], tmp_path: Path) -> None:
    ask_turns(opened(tmp_path), Asked(), 2)
    asked = Asked()
    ask_turns(opened(tmp_path, **changes), asked, 2)
    assert len(asked.requests) == 2


def test_a_conversation_that_cannot_be_rebuilt_goes_on_from_where_it_differs(tmp_path: Path) -> None:
    ask_turns(opened(tmp_path), Asked(), 3)
    asked = Asked()
    journaled = opened(tmp_path).journaled(asked)
    journaled([b"m0"], 0)
    journaled([b"m0", b"other"], 0)
    assert Journal(tmp_path, "s").num_turns(SAMPLE) == 2, "what was said after it counts no more"
    journaled([b"m0", b"other", b"m2"], 0)
    assert len(asked.requests) == 2
    again = Asked()
    journaled = opened(tmp_path).journaled(again)
    for messages in ([b"m0"], [b"m0", b"other"], [b"m0", b"other", b"m2"]):
        journaled(messages, 0)
    assert again.requests == []


def test_a_request_is_another_where_any_message_of_it_is(tmp_path: Path) -> None:
    """The hash goes on from the last request's, and must not go on from what has changed."""
    first, second, third = b"a" * 9, b"b" * 9, b"c" * 9
    journaled = opened(tmp_path).journaled(Asked())
    for messages in ([first], [first, second], [first, third, second], [third], [third, second]):
        journaled(messages, 0)
    hashes = [line["request_sha256"] for line in lines_of(tmp_path)]
    plain = [[first], [first, second], [first, third, second], [third], [third, second]]
    assert hashes == [hashlib.sha256(b"".join(m + b"\n" for m in messages)).hexdigest() for messages in plain]


def old_form(folder: Path, sample: SampleId, turns: int, header: dict[str, Any]) -> Path:
    """A journal of one sample as earlier versions wrote it."""
    path = folder / FOLDER / f"sample_{sample.file_part}.jsonl"
    path.parent.mkdir(exist_ok=True)
    lines: list[Any] = [sample.as_json() | header]
    for turn in range(1, turns + 1):
        messages = [b"m%d" % message for message in range(turn)]
        sha256 = hashlib.sha256(b"".join(message + b"\n" for message in messages)).hexdigest()
        lines.append({"request_sha256": sha256, "reply": asdict(reply(turn))})
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.mark.parametrize("sample", [SAMPLE, SampleId(3, 1)])
def test_a_journal_of_the_earlier_form_goes_on_and_is_gone_with_its_trace(
    sample: SampleId, tmp_path: Path
) -> None:
    path = old_form(tmp_path, sample, 2, {"settings_sha256": "s", "file_sha256": "f"})
    journal = Journal(tmp_path, "s")
    assert list(unfinished_samples(tmp_path)) == [sample]
    asked = Asked()
    ask_turns(journal.of(sample, "f"), asked, 4)
    assert len(asked.requests) == 2
    assert [line["turn"] for line in lines_of(tmp_path) if "turn" in line] == [3, 4], (
        "beside the earlier ones"
    )
    again = Asked()
    journal = Journal(tmp_path, "s")
    ask_turns(journal.of(sample, "f"), again, 4)
    assert again.requests == []
    journal.drop([sample])
    assert not path.exists()
    journal.close()
    assert not (tmp_path / FOLDER).exists()


def test_a_journal_of_the_earlier_form_torn_at_any_byte_gives_its_whole_turns(tmp_path: Path) -> None:
    path = old_form(tmp_path, SAMPLE, 3, {"settings_sha256": "s", "file_sha256": "f"})
    data = path.read_bytes()
    for cut in range(len(data) + 1):
        path.write_bytes(data[:cut])
        journal = Journal(tmp_path, "s")
        assert journal.num_turns(SAMPLE) == max(0, data[:cut].count(b"\n") - 1)
        assert journal.num_bad_lines == (cut > 0 and data[cut - 1 : cut] != b"\n")


def test_turns_of_other_settings_in_the_earlier_form_are_kept_and_told(tmp_path: Path) -> None:
    old_form(tmp_path, SAMPLE, 2, {"settings_sha256": "other", "file_sha256": "f"})
    journal = Journal(tmp_path, "s")
    assert (journal.num_turns(SAMPLE), journal.num_other_turns(SAMPLE)) == (0, 2)
    assert unfinished_samples(tmp_path) == {SAMPLE: "other"}
    journal.close()
    assert unfinished_samples(tmp_path) == {SAMPLE: "other"}
    assert Journal(tmp_path, "other").num_turns(SAMPLE) == 2


def test_unfinished_samples_are_all_that_is_left_at_the_end(tmp_path: Path) -> None:
    journal = Journal(tmp_path, "s")
    for sample in range(5):
        ask_turns(journal.of(SampleId(sample), "f"), Asked(), 2)
    journal.drop([SampleId(0), SampleId(1), SampleId(3), SampleId(4)])
    journal.close()
    assert [(line["sample_index"], line["turn"]) for line in lines_of(tmp_path)] == [(2, 1), (2, 2)]
    journal = Journal(tmp_path, "s")
    assert journal.num_turns(SampleId(2)) == 2
    before = [path.read_bytes() for path in segments(tmp_path)]
    journal.close()
    assert [path.read_bytes() for path in segments(tmp_path)] == before, "nothing to tidy up"
    journal = Journal(tmp_path, "s")
    journal.drop([SampleId(2)])
    journal.close()
    assert not (tmp_path / FOLDER).exists()


def test_files_go_when_no_unfinished_sample_has_turns_in_them(tmp_path: Path) -> None:
    """A sample that lives long holds no old file back, and loses no turn by it."""
    journal = Journal(tmp_path, "s", segment_bytes=4000)
    long_lived, whole = journal.of(SampleId(9999), "f"), list[Reply]()
    ask_long = long_lived.journaled(Asked())
    messages: list[bytes] = []
    num_files = num_bytes = 0
    for sample in range(300):
        ask_turns(journal.of(SampleId(sample), "f"), Asked(), 3)
        journal.drop([SampleId(sample)])
        if sample % 60 == 0:
            messages.append(b"l%d" % sample)
            whole.append(ask_long(messages, 0))
        num_files = max(num_files, len(segments(tmp_path)))
        num_bytes = max(num_bytes, sum(path.stat().st_size for path in segments(tmp_path)))
    assert num_files <= 4 and num_bytes <= 5 * 4000
    assert journal.unfinished() == {SampleId(9999): "s"}
    asked = Asked()
    again = Journal(tmp_path, "s").of(SampleId(9999), "f").journaled(asked)
    assert [again(messages[:turn], 0) for turn in range(1, 6)] == whole
    assert asked.requests == []


def test_a_file_that_is_written_anew_may_be_torn_at_any_byte(tmp_path: Path) -> None:
    """What is carried forward stands twice until the old file is removed: no state between loses a turn."""
    journal = Journal(tmp_path, "s")
    ask_turns(journal.of(SampleId(1), "f"), Asked(), 3)
    ask_turns(journal.of(SampleId(2), "f"), Asked(), 3)
    (old,) = segments(tmp_path)
    before = old.read_bytes()
    journal.drop([SampleId(2)])
    journal.close()
    (new,) = segments(tmp_path)
    carried = new.read_bytes()
    assert new != old and 0 < len(carried) < len(before)
    old.write_bytes(before)
    for cut in range(len(carried) + 1):
        new.write_bytes(carried[:cut])
        assert Journal(tmp_path, "s").num_turns(SampleId(1)) == 3


def memory_after(folder: Path, num_samples: int) -> int:
    """Bytes that a journal has in hand after so many samples came and went."""
    folder.mkdir()
    tracemalloc.start()
    journal = Journal(folder, "s", segment_bytes=50_000)
    for sample in range(num_samples):
        ask_turns(journal.of(SampleId(sample), "f"), lambda *_: ANSWER, 2)
        journal.drop([SampleId(sample)])
    gc.collect()
    in_hand, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(segments(folder)) <= 2
    return in_hand


def test_neither_memory_nor_files_grow_with_finished_samples(tmp_path: Path) -> None:
    memory_after(tmp_path / "first", 50)  # what is made once
    few, many = memory_after(tmp_path / "few", 60), memory_after(tmp_path / "many", 600)
    assert many - few < 8_000, "not even 15 bytes a sample"


def test_a_turn_is_on_disk_before_its_reply_is_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = list[str]()
    real_write = os.write

    def write(descriptor: int, data: bytes) -> int:
        flags = fcntl.fcntl(descriptor, fcntl.F_GETFL)
        assert flags & os.O_DSYNC and flags & os.O_APPEND
        written.append(data.decode())
        return real_write(descriptor, data)

    monkeypatch.setattr(os, "write", write)
    journaled = opened(tmp_path).journaled(Asked())
    for turn in range(1, 4):
        journaled([b"m"] * turn, 0)
        assert [json.loads(line)["turn"] for line in written] == list(range(1, turn + 1))


def test_without_synced_writes_each_group_is_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from distil.store import journal as module  # noqa: PLC0415

    monkeypatch.setattr(module, "_SYNCED", 0)
    synced = list[bytes]()
    real_sync = os.fsync

    def sync(descriptor: int) -> None:
        path = Path(f"/proc/self/fd/{descriptor}").resolve()
        synced.append(path.read_bytes() if path.is_file() else b"")
        real_sync(descriptor)

    monkeypatch.setattr(os, "fsync", sync)
    journaled = opened(tmp_path).journaled(Asked())
    for turn in range(1, 4):
        journaled([b"m"] * turn, 0)
        assert synced[-1].count(b"\n") == turn or synced[-3].count(b"\n") == turn


class CountingLock:
    """A lock that counts who takes it."""

    def __init__(self) -> None:
        self._lock, self.number = threading.Lock(), 0

    def __enter__(self) -> None:
        self._lock.acquire()
        self.number += 1

    def __exit__(self, *_: object) -> None:
        self._lock.release()


def test_turns_that_wait_at_one_moment_share_a_write_and_a_sync(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """64 samples at once: far fewer writes than turns, each thread woken once, few locks a turn."""
    num_samples, num_turns = 64, 3
    journal = Journal(tmp_path, "s")
    lock = CountingLock()
    monkeypatch.setattr(journal, "_lock", lock)
    writes, slow = list[int](), threading.Barrier(num_samples)
    real_write = os.write

    def write(descriptor: int, data: bytes) -> int:
        writes.append(data.count(b"\n"))
        time.sleep(0.05)  # a disk that is slower than the threads
        assert not lock._lock.locked(), "whoever writes holds no lock that others need"
        return real_write(descriptor, data)

    monkeypatch.setattr(os, "write", write)

    def ask(messages: Sequence[bytes], seed: int) -> Reply:
        slow.wait(60)
        return reply(len(messages))

    def solve(sample: int) -> None:
        ask_turns(journal.of(SampleId(sample), "f"), ask, num_turns)

    with ThreadPoolExecutor(num_samples) as pool:
        list(pool.map(solve, range(num_samples)))
    assert sum(writes) == num_samples * num_turns
    assert len(writes) <= 3 * num_turns + 1, writes
    assert lock.number <= len(writes) + 3
    assert all(Journal(tmp_path, "s").num_turns(SampleId(sample)) == 3 for sample in range(num_samples))


def test_what_a_killed_run_left_is_repaired_and_told(photos: Path, tmp_path: Path, run_door: RunDoor) -> None:
    out = tmp_path / "out"

    with ScriptedTeacher(breaks_at_the_answer) as server:
        run_door(*command(server.api_base, photos, out)[1:])
    (torn,) = segments(out)
    assert json.loads(torn.read_bytes().splitlines()[-1])["turn"] == 2
    torn.write_bytes(torn.read_bytes()[:-5])
    (out / ".trace_00004.json.abc.tmp").write_text("{")
    with ScriptedTeacher(three_turns) as server:
        result = run_door(*command(server.api_base, photos, out)[1:])
    assert result.returncode == 0, result.stderr
    assert "Samples that go on where they were: 12; paid turns kept: 23." in result.stdout
    assert "Repaired torn or foreign lines of the journal: 1; half-written files: 1." in result.stdout
    assert not list(out.glob(".*.tmp"))
    assert sum(paid(server.requests).values()) == 12 + 1


@pytest.mark.parametrize("ours", [True, False])
def test_a_group_that_cannot_be_written_fails_all_who_wait_and_the_next_goes_on(ours: bool) -> None:
    """Whatever goes wrong in the thread that writes, nobody is left asleep."""
    groups: list[list[int]] = []
    is_writing, may_fail = threading.Event(), threading.Event()

    def write(items: Sequence[int]) -> None:
        groups.append(list(items))
        if items[0] == 0:
            is_writing.set()
            assert may_fail.wait(30)
        elif len(groups) == 2:
            raise FolderError("full") if ours else ZeroDivisionError

    written = Groups(write)
    ends: dict[int, str] = {}

    def add(item: int) -> None:
        try:
            written.add(item)
            ends[item] = "written"
        except (FolderError, ZeroDivisionError) as error:
            ends[item] = type(error).__name__

    threads = [threading.Thread(target=add, args=(item,)) for item in range(9)]
    threads[0].start()
    assert is_writing.wait(30)
    for thread in threads[1:]:
        thread.start()
    while len(written._waiting) < 8:
        time.sleep(0.001)
    may_fail.set()
    for thread in threads:
        thread.join(30)
    assert [len(group) for group in groups] == [1, 8]
    assert ends.pop(0) == "written"
    failed = Counter(ends.values())
    assert failed == ({"FolderError": 8} if ours else {"FolderError": 7, "ZeroDivisionError": 1})
    written.add(9)
    assert groups[2] == [9]


def test_whoever_comes_while_the_last_one_leaves_is_not_left_asleep(monkeypatch: pytest.MonkeyPatch) -> None:
    """It finds the way still taken and goes to sleep; the one that leaves has looked, and seen nobody."""
    seen: list[int] = []
    written = Groups[int](seen.extend)
    late = threading.Thread(target=written.add, args=(2,), daemon=True)

    class Way:
        """The lock of whoever writes; the late one comes just before it is free."""

        def __init__(self) -> None:
            self._lock = threading.Lock()

        def acquire(self, blocking: bool) -> bool:
            return self._lock.acquire(blocking)

        def release(self) -> None:
            if not late.ident:
                late.start()
                until = time.monotonic() + 0.2
                while time.monotonic() < until:  # long enough for it to fall asleep
                    time.sleep(0.01)
            self._lock.release()

    monkeypatch.setattr(written, "_writing", Way())
    written.add(1)
    late.join(10)
    assert not late.is_alive() and seen == [1, 2]


def test_items_of_many_threads_are_each_written_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """With no way to lose a wake-up: threads come at any instant of another's write."""
    seen: list[int] = []
    written = Groups[int](seen.extend)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(16) as pool:
            list(pool.map(written.add, range(5000), timeout=60))
    finally:
        sys.setswitchinterval(interval)
    assert sorted(seen) == list(range(5000))
    assert not written._writing.locked()


def three_turns(request: dict[str, Any]) -> Any:
    """Zoom, rotate, answer; depends on nothing but the request."""
    if is_probe(request):
        return calls(("image_zoom_in_tool", {"bbox_2d": [0, 0, 9, 9]}))
    turn = num_turns(request)
    if turn == 0:
        return calls(
            ("image_zoom_in_tool", {"bbox_2d": [100, 100, 800, 700]}), content=f"seed {request['seed']}"
        )
    if turn == 1:
        return calls(("image_rotate_tool", {"angle": request["seed"] % 360}))
    return says(f"\\boxed{{{request['seed'] % 90}, 2.35}}", reasoning="done")


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("trace_*.json"))}


def paid(requests: list[dict[str, Any]]) -> Counter[tuple[int, int]]:
    """How often each turn of each sample was asked for; a request's seed names both."""
    return Counter((request["seed"], num_turns(request)) for request in requests if not is_probe(request))


def command(api_base: str, photos: Path, folder: Path, *flags: str) -> list[str]:
    return [
        sys.executable, "demo_concurrent.py", "--api_base", api_base, "--dataset_path", str(photos),
        "--output_dir", str(folder), "--num_samples", "12", "--max_workers", "3", *flags,
    ]  # fmt: skip


def breaks_at_the_answer(request: dict[str, Any]) -> Any:
    if not is_probe(request) and num_turns(request) == 2:
        return 400, {"error": {"message": "picture refused"}}
    return three_turns(request)


def test_a_sample_that_fails_late_goes_on_where_it_failed(
    photos: Path, tmp_path: Path, run_door: RunDoor
) -> None:
    with ScriptedTeacher(breaks_at_the_answer) as server:
        first = run_door(*command(server.api_base, photos, tmp_path / "out")[1:])
        again = run_door(*command(server.api_base, photos, tmp_path / "out")[1:])
    assert (first.returncode, again.returncode) == (1, 1)
    lines = [
        json.loads(line) for line in (tmp_path / "out" / "failed_samples.jsonl").read_text().splitlines()
    ]
    assert [line["sample_index"] for line in lines] == list(range(12))
    assert {line["runs"] for line in lines} == {2}
    assert {(line["kind"], line["status"], line["attempts"], line["turns_spent"]) for line in lines} == {
        ("teacher", 400, 1, 2)
    }
    with ScriptedTeacher(three_turns) as server:
        result = run_door(*command(server.api_base, photos, tmp_path / "out", "--retry_failed")[1:])
    assert result.returncode == 0, result.stderr
    assert {turn for _, turn in paid(server.requests)} == {2}, "no paid turn was asked for again"
    with ScriptedTeacher(three_turns) as server:
        run_door(*command(server.api_base, photos, tmp_path / "whole")[1:])
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    assert not (tmp_path / "out" / "failed_samples.jsonl").exists()


def test_a_turn_past_its_deadline_fails_its_sample_and_keeps_the_turns_before(
    photos: Path, tmp_path: Path, run_door: RunDoor
) -> None:
    def stalls_at_the_answer(request: dict[str, Any]) -> Any:
        if not is_probe(request) and num_turns(request) == 2:
            time.sleep(4)
        return three_turns(request)

    limits = ("--num_samples", "2", "--turn_timeout_seconds", "1.5")
    with ScriptedTeacher(stalls_at_the_answer) as server:
        result = run_door(*command(server.api_base, photos, tmp_path / "out", *limits)[1:])
    assert result.returncode == 1
    lines = [
        json.loads(line) for line in (tmp_path / "out" / "failed_samples.jsonl").read_text().splitlines()
    ]
    assert [(line["kind"], line["turns_spent"]) for line in lines] == [("deadline", 2)] * 2
    assert "turn's 1.5 s are over" in lines[0]["message"]
    with ScriptedTeacher(three_turns) as server:
        flags = ("--num_samples", "2", "--retry_failed", "--turn_timeout_seconds", "99")
        result = run_door(*command(server.api_base, photos, tmp_path / "out", *flags)[1:])
    assert result.returncode == 0, "another deadline is no other setting"
    assert {turn for _, turn in paid(server.requests)} == {2}


@pytest.mark.parametrize("comes_back", [True, False])
def test_a_server_that_is_down_pauses_the_run_and_burns_no_sample(
    comes_back: bool, photos: Path, tmp_path: Path, run_door: RunDoor
) -> None:
    numbers = itertools.count(1)

    def away(request: dict[str, Any]) -> Any:
        if not is_probe(request) and (next(numbers) <= 7 or not comes_back):
            return 503, {"error": {"message": "loading model"}}
        return three_turns(request)

    limits = ("--num_samples", "4", "--max_outage_seconds", "60" if comes_back else "1")
    with ScriptedTeacher(away) as server:
        result = run_door(*command(server.api_base, photos, tmp_path / "out", *limits)[1:])
    assert "does not answer since" in result.stdout
    assert not (tmp_path / "out" / "failed_samples.jsonl").exists()
    if comes_back:
        assert result.returncode == 0, result.stderr
        assert "answers again after" in result.stdout
    else:
        assert result.returncode == 2
        assert "given up after 1 s" in result.stderr.splitlines()[-1]


def test_retry_failed_takes_up_nothing_else(photos: Path, tmp_path: Path, run_door: RunDoor) -> None:
    with ScriptedTeacher(three_turns) as server:
        result = run_door(*command(server.api_base, photos, tmp_path / "out", "--retry_failed")[1:])
    assert result.returncode == 0, result.stderr
    assert contents(tmp_path / "out") == {}


@pytest.mark.parametrize("choice", ["new", "keep", "redo"])
def test_changed_settings_are_refused_or_dealt_with_as_asked(
    choice: str, photos: Path, tmp_path: Path, run_door: RunDoor
) -> None:
    out = tmp_path / "out"
    with ScriptedTeacher(three_turns) as server:
        first = [*command(server.api_base, photos, out, "--max_turns", "5")[1:], "--num_samples", "4"]
        assert run_door(*first).returncode == 0
        before = contents(out)
        changed = [*command(server.api_base, photos, out, "--max_turns", "6")[1:], "--num_samples", "6"]
        refused = run_door(*changed)
        assert refused.returncode == 2
        assert "max_turns: 5 then, 6 now" in refused.stderr and "--on_change" in refused.stderr
        result = run_door(*changed, "--on_change", choice)
    assert result.returncode == 0, result.stderr
    limits = [json.loads(data)["settings"]["max_turns"] for data in contents(out).values()]
    if choice == "new":
        assert contents(out) == before
        assert len(contents(tmp_path / "out-2")) == 6
    else:
        assert limits == ([5] * 4 + [6] * 2 if choice == "keep" else [6] * 6)


def refuses_all(request: dict[str, Any]) -> Any:
    return calls(("image_rotate_tool", {"angle": 90})) if is_probe(request) else (400, {"error": "no"})


def ledger(folder: Path) -> list[dict[str, Any]]:
    path = folder / "failed_samples.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def test_samples_that_a_budget_kept_from_being_tried_stay_in_the_ledger(
    photos: Path, tmp_path: Path, run_door: RunDoor
) -> None:
    out = tmp_path / "out"
    with ScriptedTeacher(refuses_all) as server:
        run_door(*command(server.api_base, photos, out, "--num_samples", "4")[1:])
    assert len(ledger(out)) == 4
    with ScriptedTeacher(three_turns) as server:
        flags = ("--num_samples", "4", "--retry_failed", "--max_workers", "1")
        stopped = run_door(*command(server.api_base, photos, out, *flags, "--max_calls", "6")[1:])
        assert stopped.returncode == 1, stopped.stderr
        assert 0 < len(ledger(out)) == 4 - len(contents(out)) < 4
        again = run_door(*command(server.api_base, photos, out, *flags)[1:])
    assert again.returncode == 0, again.stderr
    assert len(contents(out)) == 4 and not ledger(out)


def test_a_redone_sample_that_fails_is_not_taken_for_done(
    photos: Path, tmp_path: Path, run_door: RunDoor
) -> None:
    out = tmp_path / "out"
    redo = ("--num_samples", "4", "--temperature", "0.2", "--on_change", "redo")
    with ScriptedTeacher(three_turns) as server:
        run_door(*command(server.api_base, photos, out, "--num_samples", "4")[1:])
    with ScriptedTeacher(refuses_all) as server:
        assert run_door(*command(server.api_base, photos, out, *redo)[1:]).returncode == 1
    with ScriptedTeacher(three_turns) as server:
        result = run_door(*command(server.api_base, photos, out, *redo, "--retry_failed")[1:])
    assert result.returncode == 0, result.stderr
    assert {json.loads(data)["settings"]["temperature"] for data in contents(out).values()} == {0.2}
    assert not ledger(out)


def test_a_redone_sample_that_fails_late_keeps_its_turns_beside_the_old_trace(
    photos: Path, tmp_path: Path, run_door: RunDoor
) -> None:
    two, out = ("--num_samples", "2"), tmp_path / "out"
    redo = (*two, "--temperature", "0.2", "--on_change", "redo")
    with ScriptedTeacher(three_turns) as server:
        run_door(*command(server.api_base, photos, out, *two)[1:])
        server.script = breaks_at_the_answer
        assert run_door(*command(server.api_base, photos, out, *redo)[1:]).returncode == 1
        server.script = three_turns
        server.requests.clear()
        result = run_door(*command(server.api_base, photos, out, *redo)[1:])
    assert result.returncode == 0, result.stderr
    assert [num_turns(request) for request in server.requests if not is_probe(request)] == [2, 2]
    assert {json.loads(data)["settings"]["temperature"] for data in contents(out).values()} == {0.2}


def test_paid_turns_of_other_settings_are_not_thrown_away_unasked(
    photos: Path, tmp_path: Path, run_door: RunDoor
) -> None:
    out = tmp_path / "out"

    def breaks_late(request: dict[str, Any]) -> Any:
        return (400, {"error": "no"}) if num_turns(request) == 2 else three_turns(request)

    with ScriptedTeacher(breaks_late) as server:
        run_door(*command(server.api_base, photos, out)[1:])
    with ScriptedTeacher(three_turns) as server:
        changed = run_door(*command(server.api_base, photos, out, "--max_tokens", "1024")[1:])
        assert changed.returncode == 2
        assert "max_tokens: 2048 then, 1024 now" in changed.stderr
        assert server.requests == [], "nothing is paid for a run that is refused"
        kept = run_door(*command(server.api_base, photos, out)[1:])
        assert "Samples that go on where they were: 12; paid turns kept: 24." in kept.stdout
    assert set(paid(server.requests).values()) == {1} and len(paid(server.requests)) == 12


def test_rows_of_other_settings_are_refused_although_others_are_there(
    photos: Path, tmp_path: Path, run_door: RunDoor
) -> None:
    out = tmp_path / "out"
    with ScriptedTeacher(three_turns) as server:
        run_door(*command(server.api_base, photos, out, "--num_samples", "2")[1:])
        other = ("--num_samples", "2", "--order", "locatability_score:desc")
        assert run_door(*command(server.api_base, photos, out, *other)[1:]).returncode == 0
        result = run_door(
            *command(server.api_base, photos, out, "--num_samples", "9", "--temperature", "0")[1:]
        )
    assert result.returncode == 2
    assert "temperature: 0.7 then, 0.0 now" in result.stderr


@pytest.mark.parametrize("how", ["outage", "interrupt"])
def test_a_run_that_is_given_up_records_what_it_came_to(how: str, photos: Path, tmp_path: Path) -> None:
    with ScriptedTeacher(three_turns) as server:
        flags = ("--max_outage_seconds", "1", "--max_workers", "2", "--grace_seconds", "1")
        child = start_door(*command(server.api_base, photos, tmp_path, *flags)[1:], cwd=PACKAGE)
        stalled = threading.Event()

        def then_stalls(request: dict[str, Any]) -> Any:
            if len(server.requests) > 8:
                if how == "interrupt":
                    stalled.wait(30)
                return 502, {"error": "gone"}
            return three_turns(request)

        server.script = then_stalls
        while how == "interrupt" and len(server.requests) < 10:
            time.sleep(0.05)
        if how == "interrupt":
            child.send_signal(signal.SIGINT)
        stdout, stderr = child.communicate(timeout=60)
        stalled.set()
    assert child.returncode == (130 if how == "interrupt" else 2), stderr
    (record,) = json.loads((tmp_path / "run_record.json").read_text())["runs"]
    assert record["num_finished"] == len(contents(tmp_path)) > 0
    assert record["spent"]["answered"]["requests"] == 8
    assert record["requests_at_once"]["ceiling"] == 2
    assert ("interrupted" if how == "interrupt" else "--max_outage_seconds") in record["stopped_by"]
    assert "goes on from here" in stdout + stderr


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("journal", ""),
        ("failed_samples.jsonl", '{"sample_index": "x", "kind": "a", "message": "b"}\n[]\n7\n'),
        ("spending.jsonl", '{"request": 1, "state": "answered", "cost_usd": "x"}\n[]\n7\n'),
        ("run_record.json", "[]"),
    ],
)
def test_files_that_were_tampered_with_are_a_clear_error_or_passed_over(
    name: str, text: str, photos: Path, tmp_path: Path, run_door: RunDoor
) -> None:
    (tmp_path / name).write_text(text)
    with ScriptedTeacher(three_turns) as server:
        result = run_door(*command(server.api_base, photos, tmp_path)[1:])
    assert "Traceback" not in result.stderr
    assert result.returncode == (2 if name in ("journal", "run_record.json") else 0), result.stderr
    assert name in result.stderr or result.returncode == 0


def test_a_reply_that_cannot_be_stored_is_an_error_of_the_folder(tmp_path: Path) -> None:
    journal = opened(tmp_path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20, hard))
    try:
        with pytest.raises(FolderError, match=r"journal cannot be written: No space left"):
            journal.journaled(Asked())([b"m"], 0)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_stops_the_run_before_more_is_paid(
    photos: Path, tmp_path: Path, run_door: RunDoor
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "timings.jsonl").symlink_to("/dev/full")
    with ScriptedTeacher(three_turns) as server:
        result = run_door(*command(server.api_base, photos, tmp_path / "out", "--max_workers", "1")[1:])
    assert result.returncode == 2
    assert "timings.jsonl cannot be written: No space left on device" in result.stderr
    assert "Traceback" not in result.stderr
    assert len(server.requests) <= 1 + 2 * 3


def test_a_failure_is_on_disk_as_soon_as_it_is_known(tmp_path: Path, run_door: RunDoor) -> None:
    data, out = save_photos(tmp_path / "data", [b"broken", photo_bytes(1)]), tmp_path / "out"
    is_over = threading.Event()

    def hangs(request: dict[str, Any]) -> Any:
        if not is_probe(request):
            is_over.wait(90)
        return three_turns(request)

    with ScriptedTeacher(hangs) as server:
        child = start_door(*command(server.api_base, data, out)[1:], cwd=PACKAGE)
        ledger = out / "failed_samples.jsonl"
        until = time.monotonic() + 60
        while not (ledger.exists() and ledger.read_text().endswith("\n")) and time.monotonic() < until:
            time.sleep(0.02)
        child.kill()
        child.communicate()
        is_over.set()
    (failure,) = map(json.loads, ledger.read_text().splitlines())
    assert (failure["sample_index"], failure["kind"], failure["turns_spent"]) == (0, "sample", 0)
    with ScriptedTeacher(three_turns) as server:
        result = run_door(*command(server.api_base, data, out)[1:], "--retry_failed")
    assert (result.returncode, list(out.glob("trace_*.json"))) == (1, []), "only what had failed was tried"


def test_a_file_that_is_written_anew_is_whole_to_a_reader(tmp_path: Path) -> None:
    path, texts = tmp_path / "trace_00000.json", (b"a" * 2_000_000, b"b" * 2_000_000)
    write_bytes(path, texts[0])
    is_over = threading.Event()

    def write_again_and_again() -> None:
        for number in range(20):
            write_bytes(path, texts[number % 2])
        is_over.set()

    writer = threading.Thread(target=write_again_and_again)
    writer.start()
    while not is_over.is_set():
        assert path.read_bytes() in texts
    writer.join()
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_a_turn_written_anew_is_passed_over_where_another_stands_in_its_place_by_then(tmp_path: Path) -> None:
    old, new = tmp_path / "00001.jsonl", tmp_path / "00002.jsonl"
    turn = _Turn(SampleId(3), "s", "f", 1, "a", path=old, num_bytes=10)
    for changed in ({"request_sha256": "b"}, {"file_sha256": "g"}):
        index = _Index()
        assert index.take(turn) and index.take(turn._replace(**changed))
        index.move(turn._replace(path=new))
        assert [each.path for each in index.samples[SampleId(3)]] == [old] and not index.live_bytes[new]
    index.move(turn._replace(path=new, **changed))
    assert [each.path for each in index.samples[SampleId(3)]] == [new]
    assert (index.live_bytes[old], index.live_bytes[new]) == (0, 10)
