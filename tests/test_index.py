"""The index of traces: what it holds, that it is always true of the files, and that a query can do nothing else."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from conftest import PACKAGE
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from distil.cli import main
from distil.errors import UsageError
from distil.index import index as index_module
from distil.index.columns import FIXED
from distil.index.database import INDEX, SCHEMA_VERSION, FolderIndex
from distil.index.index import TraceIndex
from distil.index.query import Filter, Query, search_expression
from distil.records import SampleId
from distil.store.marks import MARKS, append_mark

sys.path.append(str(PACKAGE.parent / "benchmarks"))  # last: a module of the suite comes first

from many_traces import change_traces, make_traces

MADE_BEFORE = Path(__file__).parent / "made_before"
ALL = Query()


def old_trace(index: int, **changes: Any) -> dict[str, Any]:
    """A trace as the earlier system wrote it."""
    return {
        "sample_index": index,
        "sample_data": {"lat": 1.5, "lon": 2.5, "country": "Gabon"},
        "conversation_history": [
            {"turn": 1, "response": "I zoom in.", "usage": {"prompt_tokens": 5, "completion_tokens": 2}},
            {"turn": 2, "response": "\\boxed{1, 2}", "usage": {"prompt_tokens": 6, "completion_tokens": 3}},
        ],
        "tool_calls": [
            {"turn": 1, "tool_name": "image_zoom_in_tool", "arguments": {"bbox_2d": [1, 2, 3, 4]}}
        ],
        "final_response": "\\boxed{1, 2}",
        "reward_score": {"score": 0.5, "distance@km": 1000.0, "parse_success": True},
        "metadata": {"total_turns": 2},
    } | changes


def write(folder: Path, index: int, **changes: Any) -> Path:
    """An earlier system's trace with these fields."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"trace_{index:05d}.json"
    path.write_text(json.dumps(old_trace(index, **changes)))
    return path


def rows_with(folder: Path, *columns: Sequence[Any]) -> Path:
    """A trace for each value, in a column `x` of its row."""
    for index, value in enumerate(columns):
        write(folder, index, sample_data={"x": value})
    return folder


def values(index: TraceIndex, query: Query, name: str) -> list[Any]:
    return [value for (value,) in index.rows(query, [name])]


def samples(index: TraceIndex, query: Query = ALL) -> list[Any]:
    return values(index, query, "sample_index")


def settle() -> None:
    """Let what was written be older than what may yet change unseen."""
    time.sleep(0.03)


@pytest.fixture(scope="module")
def geo(tmp_path_factory: pytest.TempPathFactory) -> TraceIndex:
    """300 traces of a geolocation run."""
    folder = tmp_path_factory.mktemp("geo")
    make_traces(folder, 300)
    settle()
    return TraceIndex.open([folder])


# --- what a row holds ---


def test_a_trace_is_one_row_of_what_it_says(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(MADE_BEFORE / "text", tmp_path / "text"))
    (row, _) = TraceIndex.open([folder]).page(ALL, 10)
    assert {name: row[name] for name in ("run", "folder", "file", "sample_index", "rollout")} == {
        "run": 0, "folder": str(folder), "file": "trace_00000.json", "sample_index": 0, "rollout": 0,
    }  # fmt: skip
    trace = json.loads((folder / "trace_00000.json").read_text())
    assert row["score"] == trace["reward_score"]["score"]
    assert row["distance_km"] == trace["reward_score"]["distance@km"]
    assert row["geoguessr_point"] == trace["reward_score"]["geoguessr@point"]
    assert [row[f"acc_{radius}km"] for radius in (1, 25, 200, 750, 2500)] == [0, 1, 1, 1, 1]
    assert (row["parse_success"], row["recipe_restores"], row["without_tools"]) == (True, False, False)
    assert (row["answer"], row["answer_lat"], row["truth_lon"]) == ("48.90000, 2.35000", 48.9, 2.3522)
    assert (row["lat"], row["city"], row["locatability_score"]) == (48.8566, "city 0", 0.0)
    assert (row["turns"], row["calls"], row["failed_calls"], row["clamped_boxes"]) == (3, 3, 0, 2)
    assert row["tools"] == "image_rotate_tool,image_zoom_in_tool"
    assert (row["stop_reason"], row["finish_reason"]) == ("answered", "stop")
    assert (row["prompt_tokens"], row["completion_tokens"], row["reasoning_chars"]) == (300, 30, 6)
    assert (row["model"], row["task"]) == ("scripted-qwen3-vl", "geolocation")
    assert row["settings_sha256"] == trace["metadata"]["settings_sha256"]
    assert (row["image_sha256"], row["width_px"], row["height_px"]) == (
        trace["image"]["file_sha256"],
        160,
        120,
    )
    assert (row["dataset_path"], row["fingerprint"]) == (
        trace["dataset_path"],
        trace["dataset"]["fingerprint"],
    )
    assert row["seconds"] == 0.2194
    assert (row["mark"], row["note"]) == (None, None)


def test_a_trace_of_the_earlier_system_is_there_as_far_as_it_says(tmp_path: Path) -> None:
    write(tmp_path, 7)
    write(tmp_path, 8, reward_score={}, metadata={}, sample_data={}, tool_calls=None)
    first, second = TraceIndex.open([tmp_path]).page(ALL, 10)
    assert (first["score"], first["distance_km"], first["country"]) == (0.5, 1000.0, "Gabon")
    assert (first["turns"], first["calls"], first["prompt_tokens"], first["answer_lat"]) == (2, 1, 11, 1)
    assert (first["truth_lat"], first["truth"]) == (1.5, "1.50000, 2.50000")
    for name in (
        "width_px",
        "model",
        "settings_sha256",
        "stop_reason",
        "recipe_restores",
        "without_tools",
        "seconds",
    ):
        assert first[name] is None
    assert (second["score"], second["distance_km"], second["truth"], second["country"]) == (None,) * 4


def test_the_columns_are_told_with_their_kinds_headings_and_sources(geo: TraceIndex) -> None:
    columns = {column.name: column for column in geo.columns}
    assert list(columns)[: len(FIXED)] == [column.name for column in FIXED]
    assert (columns["distance_km"].heading, columns["distance_km"].source) == ("distance km", "metric")
    assert (columns["country"].kind, columns["country"].source) == ("text", "row")
    assert (columns["acc_25km"].kind, columns["acc_25km"].heading) == ("number", "acc@25km")
    assert (columns["answer_lat"].source, columns["mark"].source) == ("trace", "mark")
    assert columns["parse_success"].kind == "flag"
    assert set(geo.page(ALL, 1)[0]) == set(columns)


def test_a_rows_columns_with_names_of_ours_or_of_any_form_can_be_asked_for(tmp_path: Path) -> None:
    data = {
        "score": 3, "Turns": 4, "answer_lat": 5, "place name": "a", 'q"x': 1, "a": {"b": {"c": 7}, "list": [1]},
        "order": 8, "天": 9, "Ünite": 17, "": 10, "rowid": 11, "_id": 12, "x": 13, "X": 14, "a.b.c ": 15, "\ud800": 16,
    }  # fmt: skip
    write(tmp_path, 0, sample_data=data)
    index = TraceIndex.open([tmp_path])
    (row,) = index.page(ALL, 1)
    expected = {
        "row_score": 3, "row_Turns": 4, "row_answer_lat": 5, "place name": "a", 'q"x': 1, "a.b.c": 7, "order": 8,
        "天": 9, "row_": 10, "row_rowid": 11, "row__id": 12, "x": 13, "row_X": 14, "a.b.c ": 15,
    }  # fmt: skip
    assert {name: row.get(name) for name in expected} == expected
    assert (row["score"], row["turns"], row["answer_lat"]) == (0.5, 2, 1)
    assert [column.name for column in index.columns if "list" in column.name] == []
    for where in (
        '"place name" = \'a\' AND "a.b.c" = 7',
        '"q""x" = 1',
        "[order] = 8",
        "`天` = 9",
        "天 = 9",
        "Ünite = 17",
    ):
        assert index.count(Query(where=where)) == 1
    assert index.count(Query((Filter('q"x', "=", 1), Filter("PLACE NAME", "contains", "A")))) == 1


def test_values_that_sqlite_cannot_hold_are_stored_as_near_as_can_be(tmp_path: Path) -> None:
    rows_with(tmp_path, 10**30, 10**400, float("nan"), float("inf"), -(2**63) + 1)
    write(tmp_path, 5, sample_data={"text": "a\x00b\ud800c", "long": "x" * 50_000})
    index = TraceIndex.open([tmp_path])
    assert index.broken == []
    assert values(index, ALL, "x") == [1e30, None, None, None, -(2**63) + 1, None]
    (row,) = index.page(Query((Filter("sample_index", "=", 5),)), 1)
    assert (row["text"], len(row["long"])) == ("a\ufffdb\ufffdc", 4000)


def test_a_column_whose_values_differ_in_kind_is_text_and_of_numbers_and_flags_a_number(
    tmp_path: Path,
) -> None:
    index = TraceIndex.open([rows_with(tmp_path / "a", 1, "two", True, 2.5, None)])
    assert values(index, ALL, "x") == ["1", "two", "True", "2.5", None]
    index = TraceIndex.open([rows_with(tmp_path / "b", True, 2, False)])
    assert values(index, ALL, "x") == [1, 2, 0]
    assert values(TraceIndex.open([rows_with(tmp_path / "c", True, False)]), ALL, "x") == [True, False]


@pytest.mark.parametrize(
    "content",
    [
        b"", b"{", b"[]", b"\xff\xfe", b'{"format": 1}', b'{"sample_index": 1' + b', "a": [' * 5000,
        b'{"sample_index": 1, "metadata": {"truth": {"lat": 1' + b"0" * 400 + b', "lon": 2}}}',
    ],
)  # fmt: skip
def test_a_broken_file_is_listed_and_the_others_are_there(tmp_path: Path, content: bytes) -> None:
    write(tmp_path, 0)
    (tmp_path / "trace_00001.json").write_bytes(content)
    settle()
    index = TraceIndex.open([tmp_path])
    assert samples(index) == [0]
    ((file, message),) = index.broken
    assert file == tmp_path / "trace_00001.json"
    assert message
    assert str(tmp_path) not in message
    assert index.update() == 0, "it is not read again and again"
    write(tmp_path, 1)
    index.update()
    assert (samples(index), index.broken) == ([0, 1], [])


HOSTILE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)
FIELDS = [
    "sample_data", "conversation_log", "conversation_history", "tool_calls_log", "tool_calls", "final_response", "reward_score", "metadata", "dataset", "image", "settings", "rollout", "dataset_path", "without_tools",
]  # fmt: skip


@given(st.dictionaries(st.sampled_from(FIELDS), HOSTILE, max_size=5))
@hypothesis_settings(max_examples=60)
def test_a_trace_of_any_form_is_a_row_or_listed(
    tmp_path_factory: pytest.TempPathFactory, changes: dict[str, Any]
) -> None:
    folder = tmp_path_factory.mktemp("any")
    write(folder, 0, **changes)
    index = TraceIndex.open([folder])
    assert index.count(ALL) + len(index.broken) == 1
    json.dumps(index.page(ALL, 1), allow_nan=False)


def test_kept_pictures_are_not_searched_and_stay_out_of_the_index(tmp_path: Path) -> None:
    call = {
        "turn": 1,
        "tool_name": "image_zoom_in_tool",
        "tool_arguments": {},
        "picture": "data:" + "QUJD" * 2**18,
    }
    write(tmp_path, 0, tool_calls=[call])
    index = TraceIndex.open([tmp_path])
    assert index.count(Query(search="QUJD*")) == 0
    assert (tmp_path / INDEX).stat().st_size < 2**19


# --- kept up to date ---


def test_only_changed_files_are_read_again_and_gone_ones_drop_out(tmp_path: Path) -> None:
    make_traces(tmp_path, 40)
    settle()
    told: list[tuple[int, int]] = []
    index = TraceIndex.open([tmp_path], lambda done, total: told.append((done, total)))
    assert told == [(done, 40) for done in range(1, 41)]
    assert (index.count(ALL), index.update()) == (40, 0)
    before = index.page(Query((Filter("sample_index", "=", 2),)), 1)
    change_traces(tmp_path, 3)
    (tmp_path / "trace_00010.json").unlink()
    (tmp_path / "trace_00011.json").rename(tmp_path / "trace_00400.json")
    settle()
    assert (index.update(), index.update()) == (4, 0)
    assert index.count(ALL) == 39
    assert index.page(Query((Filter("sample_index", "=", 2),)), 1) != before
    assert values(index, Query((Filter("sample_index", "=", 11),)), "file") == ["trace_00400.json"]
    fresh = Path(
        shutil.copytree(tmp_path, tmp_path.with_name("fresh"), ignore=shutil.ignore_patterns("index*"))
    )
    assert contents(index) == contents(TraceIndex.open([fresh]))
    (tmp_path / "trace_00400.json").unlink()
    assert (index.update(), index.count(ALL)) == (0, 38)


def contents(index: TraceIndex) -> list[dict[str, Any]]:
    """All rows, but for the folder's name."""
    return [{**row, "folder": ""} for row in index.page(ALL, 10**6)]


def test_what_was_written_of_a_changed_trace_is_found_no_more(tmp_path: Path) -> None:
    write(tmp_path, 0, conversation_history=[{"response": "a heron"}])
    settle()
    index = TraceIndex.open([tmp_path])
    write(tmp_path, 0, conversation_history=[{"response": "a stork, no less"}])
    assert index.update() == 1
    assert [index.count(Query(search=word)) for word in ("heron", "stork")] == [0, 1]


def test_a_file_that_changes_again_within_one_tick_of_the_clock_is_seen(tmp_path: Path) -> None:
    path = write(tmp_path, 0, reward_score={"score": 0.1})
    now = time.time_ns() + 10**9  # a clock that has not moved on since the file was read
    os.utime(path, ns=(now, now))
    index = TraceIndex.open([tmp_path])
    write(tmp_path, 0, reward_score={"score": 0.2})
    os.utime(path, ns=(now, now))
    index.update()
    assert values(index, ALL, "score") == [0.2]


def test_half_written_files_and_others_are_no_traces(tmp_path: Path) -> None:
    write(tmp_path, 0)
    (tmp_path / ".trace_00001.json.12-34.tmp").write_text("{")
    (tmp_path / "run_record.json").write_text("{}")
    (tmp_path / "trace_00002.json").mkdir()
    (tmp_path / "trace_00003.json").symlink_to("nowhere")
    os.mkfifo(tmp_path / "trace_00004.json")
    index = TraceIndex.open([tmp_path])
    assert (samples(index), index.broken) == ([0], [])


def test_a_column_of_true_and_false_holds_flags(tmp_path: Path) -> None:
    for number, value in enumerate((True, False, None)):
        write(tmp_path, number, sample_data={"lat": 0, "lon": 0, "indoors": value})
    index = TraceIndex.open([tmp_path])
    assert next(column.kind for column in index.columns if column.name == "indoors") == "flag"
    assert [row["indoors"] for row in index.page(ALL, 3)] == [True, False, None]
    assert index.page(ALL, 1)[0]["indoors"] is True


def test_marks_and_seconds_follow_their_own_files(tmp_path: Path) -> None:
    for number in range(3):
        write(tmp_path, number)
    (tmp_path / "timings.jsonl").write_text('{"sample_index": 1, "seconds": 2.5}\n{"sample_index": 2, "sec')
    settle()
    index = TraceIndex.open([tmp_path])
    assert values(index, ALL, "seconds") == [None, 2.5, None]
    append_mark(tmp_path, SampleId(1), mark="keep", note="a\x00b")
    append_mark(tmp_path, SampleId(2), mark="drop")
    append_mark(tmp_path, SampleId(9), mark="drop")
    with (tmp_path / "timings.jsonl").open("a") as file:
        file.write('onds": 4}\n{"sample_index": 1, "seconds": 3}\n')
    assert index.update() == 0
    assert values(index, ALL, "seconds") == [None, 3, 4]
    assert values(index, ALL, "mark") == [None, "keep", "drop"]
    assert samples(index, Query((Filter("mark", "!=", "drop"),))) == [0, 1]
    append_mark(tmp_path, SampleId(1), mark=None)
    write(tmp_path, 1, metadata={"total_turns": 5})
    index.update()
    assert list(
        index.rows(Query((Filter("sample_index", "=", 1),)), ["mark", "note", "turns", "seconds"])
    ) == [(None, "a\ufffdb", 5, 3)]
    write(tmp_path, 9)
    index.update()
    assert values(index, ALL, "mark") == [None, None, "drop", "drop"]
    (tmp_path / "timings.jsonl").write_text('{"sample_index": 0, "seconds": 1}\n' * 50)
    (tmp_path / MARKS).unlink()
    index.update()
    assert values(index, ALL, "seconds") == [1, None, None, None]
    assert values(index, ALL, "mark") == [None] * 4


def test_columns_that_come_later_are_there_after_an_update(tmp_path: Path) -> None:
    write(tmp_path, 0)
    index = TraceIndex.open([tmp_path])
    other = TraceIndex.open([tmp_path])
    write(tmp_path, 1, sample_data={"lat": 0, "lon": 0, "weather": "fog"})
    index.update()
    assert values(index, ALL, "weather") == [None, "fog"]
    assert other.count(ALL) == 2, "what another process took in is there at once"
    with pytest.raises(UsageError, match="there is no column 'weather'"):
        other.count(Query(where="weather = 'fog'"))
    other.update()
    assert samples(other, Query(where="weather = 'fog'")) == [1]


def test_an_index_that_is_removed_torn_or_of_another_version_is_made_anew(tmp_path: Path) -> None:
    make_traces(tmp_path, 30)
    settle()
    index = TraceIndex.open([tmp_path])
    expected = contents(index)
    index.close()
    path = tmp_path / INDEX

    def remove() -> None:
        path.unlink()

    def tear() -> None:
        data = path.read_bytes()
        path.write_bytes(data[:8192] + bytes(4096) + data[12288 : len(data) // 2])

    def overwrite() -> None:
        path.write_bytes(b"nonsense" * 100)

    def empty() -> None:
        path.write_bytes(b"")

    def age() -> None:
        connection = sqlite3.connect(path)
        connection.executescript(
            f"DROP TABLE marks; UPDATE trace_rows SET score = 0; PRAGMA user_version = {SCHEMA_VERSION + 1}"
        )
        connection.close()

    for spoil in (remove, tear, overwrite, empty, age):
        spoil()
        again = TraceIndex.open([tmp_path])
        assert contents(again) == expected, spoil.__name__
        again.close()


def test_an_index_that_is_removed_while_it_is_open_is_made_anew_by_an_update(tmp_path: Path) -> None:
    make_traces(tmp_path, 5)
    settle()
    index = TraceIndex.open([tmp_path])
    assert index.count(ALL) == 5
    for path in tmp_path.glob(f"{INDEX}*"):
        path.unlink()
    assert index.count(ALL) == 5
    make_traces(tmp_path, 7)
    assert (index.update(), index.count(ALL)) == (7, 7)


def test_another_programs_file_of_that_name_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "out"
    write(folder, 0)
    connection = sqlite3.connect(folder / INDEX)
    connection.executescript("CREATE TABLE mine (a); INSERT INTO mine VALUES (1)")
    connection.close()
    before = (folder / INDEX).read_bytes()
    assert TraceIndex.open([folder]).count(ALL) == 1
    assert (folder / INDEX).read_bytes() == before
    assert FolderIndex.of(folder).path.is_relative_to(tmp_path / "cache")


READ_ONLY = """
import os, sys
from pathlib import Path
from distil.index.index import TraceIndex
from distil.index.query import Query
if os.getuid() == 0:  # who may write anything
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
index = TraceIndex.open([Path(sys.argv[1])])
print(index.count(Query()), index.update())
"""


@pytest.mark.parametrize("has_anothers", [False, True])
def test_of_a_folder_or_an_index_that_cannot_be_written_it_is_in_the_users_cache(has_anothers: bool) -> None:
    with tempfile.TemporaryDirectory() as place:  # where another user may look
        folder, cache = Path(place) / "out", Path(place) / "cache"
        make_traces(folder, 3)
        settle()
        cache.mkdir()
        if has_anothers:  # a folder that all may write, with the index of who looked first
            TraceIndex.open([folder]).close()
        for path, mode in ((cache, 0o777), (folder, 0o777 if has_anothers else 0o555), (Path(place), 0o755)):
            path.chmod(mode)
        command = [sys.executable, "-c", READ_ONLY, str(folder)]
        environment = {**os.environ, "XDG_CACHE_HOME": str(cache)}
        result = subprocess.run(
            command, env=environment, capture_output=True, text=True, cwd=PACKAGE.parent, check=False
        )
        assert result.stdout == "3 0\n", result.stderr
        assert [path.name for path in folder.glob(f"{INDEX}*")] == [INDEX] * has_anothers
        assert len(list(cache.rglob(INDEX))) == 1
        folder.chmod(0o755)


BUILDER = """
import sys
from pathlib import Path
from distil.index.index import TraceIndex
print("go", flush=True)
TraceIndex.open([Path(sys.argv[1])])
"""


def builder(folder: Path) -> subprocess.Popen[bytes]:
    process = subprocess.Popen(
        [sys.executable, "-c", BUILDER, str(folder)], cwd=PACKAGE.parent, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"go\n"
    return process


def test_a_kill_at_any_moment_leaves_an_index_that_the_next_update_makes_whole(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    make_traces(folder, 1100)
    settle()
    fresh = Path(shutil.copytree(folder, tmp_path / "fresh"))
    expected = contents(TraceIndex.open([fresh]))
    drawn = random.Random(7)
    counts = []
    for _ in range(4):
        process = builder(folder)
        time.sleep(drawn.uniform(0, 0.6))
        process.send_signal(signal.SIGKILL)
        process.wait()
        if (folder / INDEX).exists():
            with sqlite3.connect(folder / INDEX) as connection:
                assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
                tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master")}
                if "trace_rows" in tables:
                    found = connection.execute("SELECT count(*) FROM trace_rows").fetchone()[0]
                    assert found == connection.execute("SELECT count(*) FROM files").fetchone()[0]
                    counts.append(found)
            connection.close()
        change_traces(folder, 3)  # and the files go on changing
        change_traces(fresh, 3)
    settle()
    refreshed = TraceIndex.open([fresh])
    assert contents(TraceIndex.open([folder])) == contents(refreshed)
    assert counts == sorted(counts)
    assert len(expected) == 1100


def test_two_processes_may_update_at_once_while_a_run_writes(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    make_traces(folder, 600)
    writer = threading.Thread(target=make_traces, args=(folder, 900))
    processes = [builder(folder) for _ in range(2)]
    writer.start()
    assert [process.wait(timeout=120) for process in processes] == [0, 0]
    writer.join()
    settle()
    index = TraceIndex.open([folder])
    assert index.update() == 0
    assert samples(index) == list(range(900))
    assert index.broken == []


def test_reading_goes_on_while_another_thread_updates(tmp_path: Path) -> None:
    make_traces(tmp_path, 200)
    index = TraceIndex.open([tmp_path])
    counts: list[int] = []
    done = threading.Event()

    def read() -> None:
        while not done.is_set():
            counts.append(index.count(ALL))
            assert len(index.page(Query(order=("-score",)), 20)) == 20

    readers = [threading.Thread(target=read) for _ in range(3)]
    for reader in readers:
        reader.start()
    for number in range(300, 600, 100):
        make_traces(tmp_path, number)
        index.update()
    done.set()
    for reader in readers:
        reader.join()
    assert index.count(ALL) == 500
    assert set(counts) <= set(range(200, 501))


def test_what_tools_gain_on_a_row_follows_the_folder_without_tools(tmp_path: Path) -> None:
    plain = tmp_path / "without_tools"
    for number, score in enumerate((0.9, 0.5, 0.75)):
        write(tmp_path, number, reward_score={"score": score})
    rollout = old_trace(0, rollout=1, reward_score={"score": 0.5})
    (tmp_path / "trace_00000_r1.json").write_text(json.dumps(rollout))
    settle()
    index = TraceIndex.open([tmp_path])
    assert values(index, ALL, "tool_gain") == [None] * 4
    write(plain, 0, reward_score={"score": 0.2})
    write(plain, 2, reward_score={"score": 0.75})
    settle()
    assert index.update() == 2
    assert values(index, ALL, "score_without_tools") == [0.2, 0.2, None, 0.75]
    assert values(index, ALL, "tool_gain") == [pytest.approx(0.5), pytest.approx(0.5), None, 0.0]
    assert samples(index, Query(where="tool_gain > 0.1")) == [0, 0]
    assert index.count(ALL) == 4, "the traces without tools are of another folder"
    assert index.update() == 0
    write(plain, 2, reward_score={"score": 0.25})
    write(tmp_path, 1, reward_score={"score": 0.6})
    write(plain, 1, reward_score={"score": 0.6})
    (plain / "trace_00000.json").unlink()
    index.update()
    assert values(index, ALL, "tool_gain") == [None, None, 0.0, 0.5]
    write(tmp_path, 2, reward_score={"score": 1.0})
    index.update()
    assert values(index, ALL, "tool_gain") == [None, None, 0.0, 0.75]
    shutil.rmtree(plain)
    index.update()
    assert values(index, ALL, "tool_gain") == [None] * 4


def test_where_the_folder_cannot_hold_an_index_it_is_made_in_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "out"
    write(folder, 0)
    (folder / f"{INDEX}-wal").mkdir()  # in the way of what SQLite writes
    time.sleep(0.1)  # a file that was written a moment ago would be read twice
    index = TraceIndex.open([folder])
    assert (index.count(ALL), index.update()) == (1, 0)
    assert len(list((tmp_path / "cache").rglob(INDEX))) == 1


def test_a_dataset_of_very_many_columns_is_indexed_up_to_a_thousand(tmp_path: Path) -> None:
    write(tmp_path, 0, sample_data={f"c{number}": number for number in range(3000)})
    index = TraceIndex.open([tmp_path])
    assert (index.count(Query(where="c500 = 500")), index.broken) == (1, [])
    assert index.page(ALL, 1)[0]["c900"] == 900
    with pytest.raises(UsageError, match="there is no column 'c2000'"):
        index.count(Query(where="c2000 = 1"))


# --- several folders ---


def test_several_folders_are_one_table(tmp_path: Path) -> None:
    rows_with(tmp_path / "a", 1, 2)
    for number, value in enumerate(("one", "two", "three")):
        write(tmp_path / "b", number, sample_data={"X": value, "only b": None if number else True})
    index = TraceIndex.open([tmp_path / "a", tmp_path / "b"])
    assert index.folders == (tmp_path / "a", tmp_path / "b")
    assert list(index.rows(ALL, ["run", "sample_index", "x", "only b"])) == [
        (0, 0, "1", None), (0, 1, "2", None), (1, 0, "one", True), (1, 1, "two", None), (1, 2, "three", None),
    ]  # fmt: skip
    assert index.count(Query((Filter("run", "=", 1),))) == 3
    assert index.count(Query((Filter("folder", "contains", "/a"),), search="zoom")) == 2
    assert index.count(Query(search="zoom")) == 5
    both = "(SELECT count(*) FROM traces AS other WHERE other.sample_index = traces.sample_index) > 1"
    assert index.count(Query(where=both)) == 4
    query = Query(order=("sample_index", "-run"))
    assert list(index.rows(query, ["sample_index", "run"])) == [(0, 1), (0, 0), (1, 1), (1, 0), (2, 1)]
    assert index.neighbours(query, (0, "trace_00000.json")) == (
        (1, "trace_00000.json"), (1, "trace_00001.json"), 1,
    )  # fmt: skip


def test_ten_folders_are_the_most(tmp_path: Path) -> None:
    folders = [rows_with(tmp_path / str(number), number) for number in range(11)]
    index = TraceIndex.open(folders[:10])
    assert values(index, ALL, "x") == list(range(10))
    with pytest.raises(UsageError, match="at most 10 folders at once"):
        TraceIndex.open(folders)


def test_a_folder_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"there is no folder .*gone"):
        TraceIndex.open([tmp_path / "gone"])
    write(tmp_path / "out", 0)
    index = TraceIndex.open([tmp_path / "out"])
    shutil.rmtree(tmp_path / "out")
    with pytest.raises(UsageError, match="out"):
        index.update()


# --- queries ---


def by_hand(index: TraceIndex, keeps: Callable[[dict[str, Any]], bool]) -> list[Any]:
    return [row["sample_index"] for row in index.page(ALL, 10**6) if keeps(row)]


@pytest.mark.parametrize(
    ("asked", "keeps"),
    [
        (Filter("score", ">", 0.9), lambda row: row["score"] > 0.9),
        (Filter("score", "<=", "0.9"), lambda row: row["score"] <= 0.9),
        (Filter("Country", "=", "France"), lambda row: row["country"] == "France"),
        (Filter("answer_lat", "!=", 3), lambda row: row["answer_lat"] != 3),
        (Filter("country", "contains", "an"), lambda row: "an" in row["country"].lower()),
        (Filter("license", "contains", "%"), lambda row: False),
        (Filter("license", "contains", "_"), lambda row: False),
        (Filter("country", "in", ["Japan", "中国"]), lambda row: row["country"] in ("Japan", "中国")),
        (Filter("turns", "in", ["2", 3]), lambda row: row["turns"] in (2, 3)),
        (Filter("turns", "in", []), lambda row: False),
        (Filter("answer", "is null"), lambda row: row["answer"] is None),
        (Filter("answer", "is not null"), lambda row: row["answer"] is not None),
        (Filter("answer", "=", None), lambda row: row["answer"] is None),
        (Filter("parse_success", "=", "no"), lambda row: not row["parse_success"]),
        (Filter("parse_success", "=", True), lambda row: row["parse_success"]),
        (Filter("tools", "contains", "rotate"), lambda row: "rotate" in row["tools"]),
        (Filter("width_px", "<", 10**30), lambda row: True),
        (Filter("city", ">=", "N"), lambda row: row["city"] >= "N"),
    ],
)  # fmt: skip
def test_a_filter_keeps_what_it_says(geo: TraceIndex, asked: Filter, keeps: Any) -> None:
    expected = by_hand(geo, keeps)
    query = Query((asked,))
    assert samples(geo, query) == expected
    assert geo.count(query) == len(expected)
    assert [row["sample_index"] for row in geo.page(query, 7, offset=3)] == expected[3:10]


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (Filter("scoer", "=", 1), "there is no column 'scoer'; did you mean score?"),
        (Filter("zzz", "=", 1), "there is no column 'zzz'"),
        (Filter("score", "<", "high"), "score is a number, not 'high'"),
        (Filter("score", "=", "nan"), "score is a number"),
        (Filter("parse_success", "=", "perhaps"), "parse_success is yes or no, not 'perhaps'"),
        (Filter("score", "like", 1), "score: there is no 'like' to compare by"),  # type: ignore[arg-type]
        (Filter("city", "contains", "x" * 2000), "less than 1000 characters"),
    ],
)
def test_a_filter_that_cannot_be_is_said_in_a_line(geo: TraceIndex, asked: Filter, message: str) -> None:
    with pytest.raises(UsageError, match=r"^[^\n]+$") as raised:
        geo.count(Query((asked,)))
    assert message in str(raised.value)


def test_any_column_orders_with_ties_by_sample_and_null_last(geo: TraceIndex) -> None:
    rows = geo.page(ALL, 10**6)
    for name in ("score", "country", "answer_lat", "parse_success", "mark", "sample_index"):
        for sign in ("", "-"):
            known = [row for row in rows if row[name] is not None]
            known.sort(key=lambda row: row[name], reverse=bool(sign))
            unknown = [row for row in rows if row[name] is None]
            query = Query(order=(sign + name,))
            got = samples(geo, query)
            assert [row["sample_index"] for row in geo.page(query, 20, offset=100)] == got[100:120]
            assert got == [row["sample_index"] for row in [*known, *unknown]], sign + name
    two = samples(geo, Query(order=("country", "-score")))
    assert two == [
        row["sample_index"] for row in sorted(rows, key=lambda row: (row["country"], -row["score"]))
    ]
    with pytest.raises(UsageError, match="there is no column 'scores'"):
        geo.count(Query(where="scores > 1"))
    with pytest.raises(UsageError, match="there is no column 'scores'"):
        geo.page(Query(order=("-scores",)), 1)
    with pytest.raises(UsageError, match="there is no column 'scores'"):
        list(geo.rows(ALL, ["scores"]))


def test_a_list_is_walked_from_end_to_end_by_neighbours(geo: TraceIndex) -> None:
    query = Query((Filter("score", ">", 0.5), Filter("turns", "in", [1, 2, 3])), order=("-score",))
    keys = list(geo.rows(query, ["run", "file"]))
    for position, key in enumerate(keys):
        before, after, at = geo.neighbours(query, key)
        assert at == position
        assert before == (keys[position - 1] if position else None)
        assert after == (keys[position + 1] if position + 1 < len(keys) else None)
    (outside,) = (geo.rows(Query((Filter("score", "<=", 0.5),)), ["run", "file"]).__next__(),)
    assert geo.neighbours(query, outside) == (None, None, None)
    assert geo.neighbours(query, (0, "nothing")) == (None, None, None)
    assert geo.find(keys[0])["file"] == keys[0][1]  # type: ignore[index]
    assert geo.find((1, keys[0][1])) is None


def test_neighbours_follow_what_changes(tmp_path: Path) -> None:
    for number in range(4):
        write(tmp_path, number)
    index = TraceIndex.open([tmp_path])
    query, key = Query((Filter("mark", "!=", "drop"),)), (0, "trace_00001.json")
    assert index.neighbours(query, key)[1] == (0, "trace_00002.json")
    append_mark(tmp_path, SampleId(2), mark="drop")
    index.update()
    assert index.neighbours(query, key)[1] == (0, "trace_00003.json")


def test_each_name_that_is_asked_for_has_its_value_though_it_is_asked_for_twice(tmp_path: Path) -> None:
    write(tmp_path, 3)
    index = TraceIndex.open([tmp_path])
    asked = ("sample_index", "file", "Sample_Index")
    assert list(index.rows(ALL, asked)) == [(3, "trace_00003.json", 3)]


def test_who_looks_again_later_is_not_ended_by_the_time_of_the_look_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index_module, "PAGE_SECONDS", 0.5)
    monkeypatch.setattr(index_module, "_STEPS_A_LOOK", 1)
    write(tmp_path, 0)
    index = TraceIndex.open([tmp_path])
    for _ in range(2):
        assert index.neighbours(ALL, (0, "trace_00000.json")) == (None, None, 0)
        time.sleep(0.6)


TEXTS = {
    "crossing": ["A zebra crossing near the kerb.", "I look at the crossing of zebras"],
    "中国": ["路牌上写着北京南路，车辆靠右行驶。"],
    "日本": ["これは東京の道路標識です"],
    "accents": ["Café Müller, naïve"],
    "call": ["boxed"],
}


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> TraceIndex:
    folder = tmp_path_factory.mktemp("texts")
    for number, said in enumerate(TEXTS.values()):
        turns: list[dict[str, Any]] = [{"response": text} for text in said]
        write(folder, number, conversation_history=turns, tool_calls=[])
    turns = [
        {
            "turn": 1,
            "assistant_response": "x",
            "reasoning": "hidden thought",
            "other_reasoning": {"a": "elsewhere"},
        }
    ]
    run = [
        {"turn": 1, "tool_name": "python_code_tool", "code": "result_image = image.rotate(77)", "success": False,
         "message": "NameError: foo", "stdout": "printed line"},
        {"turn": 1, "tool_name": "t", "tool_arguments": {"label": "stop sign"}, "success": True, "message": "Success: Image"},
    ]  # fmt: skip
    write(folder, 9, conversation_history=None, conversation_log=turns, tool_calls_log=run)
    return TraceIndex.open([folder])


@pytest.mark.parametrize(
    ("search", "found"),
    [
        ("zebra", [0]), ("ZEBRA kerb", [0]), ("zebra crossing", [0]), ('"zebra crossing"', [0]), ('"crossing zebra"', []),
        ("zeb", []), ("zeb*", [0]), ("北京", [1]), ("京北", []), ("北京南路", [1]), ("東京", [2]), ("cafe muller", [3]), ("CAFÉ", [3]),
        ("hidden", [9]), ("elsewhere", [9]), ("rotate 77", [9]), ("printed", [9]), ("nameerror", [9]), ("stop sign", [9]),
        ("Success", []), ("", [0, 1, 2, 3, 4, 9]), ("   ", [0, 1, 2, 3, 4, 9]), ("* ( ) - ^", [0, 1, 2, 3, 4, 9]),
        ("zebra AND kerb", []), ("zebra OR", []), ("NEAR(zebra kerb)", []), ("text:zebra", []), ('"zebra', [0]),
        ("zebra)", [0]), ("-zebra", [0]), ("{zebra}", [0]), ("zebra\x00", [0]),
    ],
)  # fmt: skip
def test_a_search_finds_words_wherever_they_were_said(
    texts: TraceIndex, search: str, found: list[int]
) -> None:
    assert samples(texts, Query(search=search)) == found


@given(st.text(max_size=30) | st.text(alphabet="ab\"*()^:-+{} \\'", max_size=15))
@hypothesis_settings(max_examples=150)
def test_no_search_is_an_error(texts: TraceIndex, search: str) -> None:
    texts.count(Query(search=search))
    assert isinstance(search_expression(search), str)


# --- `where`: SQL that can only look ---


@pytest.mark.parametrize(
    ("where", "keeps"),
    [
        ("score > 0.9 and country = 'France'", lambda row: row["score"] > 0.9 and row["country"] == "France"),
        ("score between 0.2 and 0.4 or turns = 1", lambda row: 0.2 <= row["score"] <= 0.4 or row["turns"] == 1),
        ("country in ('Japan', '中国')", lambda row: row["country"] in ("Japan", "中国")),
        ("answer IS NULL", lambda row: row["answer"] is None),
        ("not parse_success", lambda row: not row["parse_success"]),
        ("tools like '%rotate%' and calls - failed_calls >= 2",
         lambda row: "rotate" in row["tools"] and row["calls"] - row["failed_calls"] >= 2),
        ("score = (SELECT max(t.score) FROM traces t WHERE t.country = traces.country) -- best"[:-8], None),
        ("abs(answer_lat) < 23.5", lambda row: row["answer_lat"] is not None and abs(row["answer_lat"]) < 23.5),
        ("captured_at >= '2015-01-01' and strftime('%m', captured_at) = '06'",
         lambda row: row["captured_at"] >= "2015" and row["captured_at"][5:7] == "06"),
        ("lower(country) glob 'b*'", lambda row: row["country"].lower().startswith("b")),
        ("sample_index in (select sample_index from traces where score > 0.99)", lambda row: row["score"] > 0.99),
        ("case when turns > 3 then 1 else 0 end", lambda row: row["turns"] > 3),
        ("city = 'it''s -- ; ('", lambda row: False),
        ("score\n>\n0.5\t", lambda row: row["score"] > 0.5),
    ],
)  # fmt: skip
def test_an_expression_chooses_what_it_says(geo: TraceIndex, where: str, keeps: Any) -> None:
    found = samples(geo, Query(where=where))
    if keeps is None:
        best = {}
        for row in geo.page(ALL, 10**6):
            best[row["country"]] = max(row["score"], best.get(row["country"], 0))
        assert len(found) >= len(best)
    else:
        assert found == by_hand(geo, keeps)


ATTACKS = [
    "1) UNION SELECT 1 FROM traces WHERE (1", "1); DROP TABLE trace_rows; --", "1; DELETE FROM trace_rows", "1 -- x",
    "1 /* x", "/* x */ 1", "ATTACH 'x' AS y", "(ATTACH 'x')", "PRAGMA user_version = 5",
    "(SELECT 1 FROM pragma_table_info('traces'))", "(SELECT count(*) FROM sqlite_master)", "(SELECT sql FROM temp.sqlite_master)",
    "(SELECT count(*) FROM sqlite_schema)", "(SELECT count(*) FROM f0.trace_rows)", "(SELECT count(*) FROM trace_rows)",
    "(SELECT count(*) FROM f0.files)", "(SELECT count(*) FROM texts)", "(SELECT count(*) FROM temp.traces)",
    "(WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c) SELECT count(*) FROM c)",
    "(WITH traces AS (SELECT 1) SELECT 1 FROM traces)", "(SELECT count(*) FROM json_each('[1]'))",
    "(SELECT count(*) FROM generate_series(1, 1000000000))", "randomblob(1000000000)", "zeroblob(1000000000)",
    "hex(zeroblob(100000000))", "printf('%1000000000d', 1)", "format('%1000000000d', 1)", "replace('a', 'a', 'b')",
    "(SELECT group_concat(note) FROM traces)", "readfile('/etc/passwd')", "writefile('x', 'y')", "load_extension('x')",
    "edit('x')", "fts3_tokenizer('x')", "sqlite_compileoption_get(1)", "random()", "changes()", "last_insert_rowid()",
    "note REGEXP '(a+)+$'", "note MATCH 'x'", "traces MATCH 'x'", "match('a', note)", "?1", ":name", "@name", "$name", "?",
    "((1)", "1)", ")1(", "'", '"', "`", "[", "'a' '", "score ORDER BY 1", "score LIMIT 1", "score GROUP BY 1", "SELECT 1",
    "score, 1", "(score, 1)", "1 1", "= 1", "score >", "rowid > 0", "_id > 0", "traces._id > 0", "traces.rowid = 1", "RAISE(ABORT, 'x')",
    "country = \"France\"", "country = France", "\x00", "score > 1\x00; DROP TABLE x", "\ud800", "x" * 20_000, "(" * 3000 + "1" + ")" * 3000,
    "-" * 5000 + "1", " OR ".join(["1"] * 2400), "note LIKE '" + "%a" * 1000 + "'", "note GLOB '" + "*a" * 1000 + "'",
    "EXISTS (SELECT 1 FROM traces; DROP TABLE x)", "1 UNION SELECT 1", "(INSERT INTO traces VALUES (1))", "(DELETE FROM traces)",
    "(UPDATE traces SET score = 1)", "(SELECT 1 INTO x)", "VACUUM", "score COLLATE nothing = 1", "nothing(1)", "json('{')",
]  # fmt: skip


@pytest.mark.parametrize("where", ATTACKS, ids=lambda where: ascii(where[:40]))
def test_what_is_no_question_about_the_table_is_refused_in_one_line(geo: TraceIndex, where: str) -> None:
    started = time.monotonic()
    with pytest.raises(UsageError, match=r"\A[^\n]{1,400}\Z"):
        list(geo.rows(Query(where=where), ["score"]))
    with pytest.raises(UsageError, match=r"\A[^\n]{1,400}\Z"):
        geo.count(Query(where=where))
    assert time.monotonic() - started < 5
    assert geo.count(ALL) == 300


ENDLESS = [
    "(SELECT count(*) FROM traces a, traces b, traces c, traces d, traces e) > 0",
    "EXISTS (SELECT 1 FROM traces a, traces b, traces c, traces d WHERE a.score + b.score + c.score + d.score < -1)",
    "(SELECT sum(a.score * b.score) FROM traces a, traces b, traces c, traces d ORDER BY a.score) > 0",
    "score > (SELECT avg(length(a.country || b.country || c.country || d.city)) FROM traces a, traces b, traces c, traces d)",
]


@pytest.mark.parametrize("where", ENDLESS)
def test_an_expression_without_end_is_ended(geo: TraceIndex, where: str) -> None:
    started = time.process_time()
    with pytest.raises(UsageError, match=r"takes longer than 0\.3 seconds"):
        geo.count(Query(where=where), seconds=0.3)
    assert time.process_time() - started < 2
    assert geo.count(Query(where="score >= 0")) == 300, "the connection is of use again"


def test_what_an_expression_makes_on_its_way_is_bounded(tmp_path: Path) -> None:
    for number in range(3):
        write(tmp_path, number, sample_data={"x": "a" * 4000})
    index = TraceIndex.open([tmp_path])
    with pytest.raises(UsageError, match="too big"):
        index.count(Query(where=f"length({' || '.join(['x'] * 300)}) > 0"))


@given(
    st.lists(
        st.sampled_from(
            ["score", "country", "'France'", '"city"', "(", ")", ",", ";", "--", "/*", "*/", "SELECT", "FROM", "WHERE", "traces", "UNION", "ALL", "WITH", "AS", "t", ".", "*", "=", "<", "+", "||", "AND", "OR", "NOT", "NULL", "IN", "LIKE", "1", "0.5", "'", '"', "[", "]", "`", "?", ":", "count(*)", "max(score)", "sqlite_master", "files", "CASE", "WHEN", "THEN", "END"]
        ),
        max_size=12,
    )
)  # fmt: skip
@hypothesis_settings(max_examples=400)
def test_any_words_are_an_answer_or_a_line(geo: TraceIndex, words: list[str]) -> None:
    try:
        found = geo.count(Query(where=" ".join(words)), seconds=0.5)
    except UsageError as error:
        assert "\n" not in str(error)
    else:
        assert 0 <= found <= 300


def test_a_slip_in_a_name_is_met_with_names_like_it(geo: TraceIndex) -> None:
    for where, said in (
        ("scor > 1", "there is no column 'scor'; did you mean score"),
        ('"contry" = 1', "there is no column 'contry'; did you mean country"),
        ("country = France", "there is no column 'France'; text is written in single quotes"),
        ("t.scor > 1", "no column"),
    ):
        with pytest.raises(UsageError) as raised:
            geo.count(Query(where=where))
        assert said in str(raised.value)


def test_the_index_cannot_be_written_by_who_reads(geo: TraceIndex) -> None:
    with geo._reading() as (connection, _), pytest.raises(sqlite3.OperationalError, match="readonly"):
        connection.execute("DELETE FROM f0.trace_rows")


def test_rows_are_streamed_however_slowly_they_are_used(
    geo: TraceIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index_module, "_ROWS_AT_ONCE", 50)
    monkeypatch.setattr(index_module, "_STEPS_A_LOOK", 50)
    rows = geo.rows(ALL, ["sample_index"], seconds=0.2)
    first = next(rows)
    time.sleep(0.4)
    assert [first, *rows] == [(number,) for number in range(300)]


# --- the door ---


def test_view_shows_the_traces_of_which_an_expression_is_true(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_traces(tmp_path, 30)
    assert main(["view", str(tmp_path), "--where", "sample_index in (3, 7)", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [trace["sample_index"] for trace in found["traces"]] == [3, 7]
    assert found["totals"]["num_traces"] == 2
    assert main(["view", str(tmp_path), "--where", "scor > 1"]) == 2
    assert "did you mean score" in capsys.readouterr().err
    assert main(["view", str(tmp_path), "--where", "score > 2"]) == 2
    assert "holds no trace of which this is true: score > 2" in capsys.readouterr().err
    assert main(["view", str(tmp_path / "trace_00000.json"), "--where", "1"]) == 2
    assert "this is one trace" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.glob(f"{INDEX}*")) == [INDEX]


# --- the page ---

PAGE = (PACKAGE.parent / "docs" / "selecting.md").read_text(encoding="utf-8")


def test_the_page_names_every_column() -> None:
    assert [column.name for column in FIXED if f"`{column.name}`" not in PAGE] == []


@pytest.mark.parametrize("where", PAGE.split("```sql\n")[1].split("```")[0].splitlines())
def test_each_expression_of_the_page_is_answered(geo: TraceIndex, where: str) -> None:
    assert 0 < geo.count(Query(where=where)) <= 300


def test_the_pages_python_runs(tmp_path: Path) -> None:
    make_traces(tmp_path / "traces_seen", 20)
    code = PAGE.split("```python\n")[1].split("```")[0]
    environment = {**os.environ, "PYTHONPATH": str(PACKAGE.parent)}
    result = subprocess.run(
        [sys.executable, "-c", code],
        check=False,
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[0].split()[0].isdigit()
