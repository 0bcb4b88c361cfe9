"""The viewer over folders that somebody else made: files of a run that say anything, pipes, devices and links."""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from conftest import PACKAGE
from test_view_server import Show, Site, changed, failure, show

from distil.errors import FolderError
from distil.index.index import TraceIndex
from distil.index.query import Query
from distil.records import SampleId
from distil.store.claim import RUN_RECORD
from distil.store.folder import FAILED_SAMPLES, TIMINGS
from distil.store.marks import MARKS, append_mark
from distil.store.scores import SCORES
from distil.store.spending import SPENDING
from distil.viewer import run_page
from distil.viewer.charts import charts
from distil.viewer.charts import pairs as map_pairs
from distil.viewer.run_facts import read_columns
from distil.viewer.viewer import Keeper, Now

sys.path.append(str(PACKAGE.parent / "benchmarks"))

from many_traces import make_traces

__all__ = ["show"]  # a fixture
NUM_TRACES = 6
PAGES = ("/", "/traces", "/api/now", "/api/pairs", "/api/rows?cols=mark,note,seconds", "/trace/0/00000")
LINES = (MARKS, TIMINGS, SCORES, SPENDING, FAILED_SAMPLES)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    make_traces(folder, NUM_TRACES)
    return folder


def check_pages(site: Site) -> None:
    for _ in range(2):  # the first asks for the folder to be read, by a thread of its own
        for path in PAGES:
            status, _, body = site.ask(path)
            assert status == 200, (path, status, body[:300])


RUNS: list[Any] = [
    {"num_samples": {"x": 1}},
    {"started_at": 0},
    {"started_at": "<script>"},
    {"seconds": "long", "num_finished": 3},
    {"seconds": 3.0},
    {"seconds": float("inf"), "num_finished": 10**400},
    {"warnings": 7, "settings": {"tool_schemas": 3}, "spent": []},
    {"num_samples": 3, "num_not_needed": "all", "options": [], "versions": 1},
]


@pytest.mark.parametrize("run", RUNS, ids=json.dumps)
def test_whatever_the_record_of_a_run_says_the_pages_are_there(run: Any, folder: Path, show: Show) -> None:
    (folder / RUN_RECORD).write_text(json.dumps({"runs": [run]}))
    check_pages(show(folder))


@pytest.mark.parametrize("text", ["[" * 100_000, "{", '{"runs": {"a": 1}}', ""])
def test_a_record_that_is_none_is_said(text: str, folder: Path, show: Show) -> None:
    (folder / RUN_RECORD).write_text(text)
    site = show(folder)
    check_pages(site)
    assert "run_record.json" in site.text("/")


HUGE = 10**400
HOSTILE_LINES: list[tuple[str, Any]] = [
    (TIMINGS, {"sample_index": 0, "seconds": HUGE}),
    (TIMINGS, {"sample_index": 0, "seconds": float("inf")}),
    (TIMINGS, {"sample_index": HUGE, "seconds": 1}),
    (MARKS, {"sample_index": HUGE, "mark": "keep"}),
    (MARKS, {"sample_index": 0, "rollout": -HUGE, "mark": "keep"}),
    (SCORES, {"sample_index": HUGE, "reward": "r", "score": 1, "details": {}}),
    (SCORES, {"sample_index": 0, "reward": "r", "score": HUGE, "details": {"n": float("inf")}}),
    (SPENDING, {"request": 1, "state": "answered", "cost_usd": HUGE}),
    (SPENDING, {"request": 1, "state": "answered", "cost_usd": float("inf")}),
    (FAILED_SAMPLES, json.loads(failure(99, "x")) | {"message": ["a"]}),
    (FAILED_SAMPLES, json.loads(failure(HUGE, "x"))),
]


@pytest.mark.parametrize(("name", "line"), HOSTILE_LINES, ids=lambda value: json.dumps(value)[:60])
def test_whatever_lines_beside_the_traces_say_the_pages_are_there(
    name: str, line: Any, folder: Path, show: Show
) -> None:
    (folder / name).write_text(json.dumps(line) + "\n")
    check_pages(show(folder))


@pytest.mark.parametrize("name", (*LINES, RUN_RECORD))
@pytest.mark.parametrize(
    "make", [os.mkfifo, lambda path: path.symlink_to("/dev/zero")], ids=["pipe", "device"]
)
def test_a_pipe_or_a_device_in_a_folder_is_not_read(
    name: str, make: Callable[[Path], object], folder: Path, show: Show
) -> None:
    (folder / name).unlink(missing_ok=True)
    make(folder / name)
    site = show(folder)
    assert [site.status(path) for path in ("/traces", "/api/rows", "/", "/")] == [200, 200, 200, 200]


def test_marks_are_not_written_through_a_link(folder: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.write_text("mine\n")
    (folder / MARKS).symlink_to(outside)
    with pytest.raises(FolderError, match="cannot be written"):
        append_mark(folder, SampleId(0), mark="keep")
    assert outside.read_text() == "mine\n"


def test_an_index_is_not_made_through_a_link(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (folder / "index.sqlite").symlink_to(tmp_path / "outside")
    index = TraceIndex.open([folder])
    assert index.count(Query()) == NUM_TRACES
    index.close()
    assert not (tmp_path / "outside").exists()


def test_a_pipe_in_place_of_the_index_is_left_alone(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    os.mkfifo(folder / "index.sqlite")
    index = TraceIndex.open([folder])
    assert index.count(Query()) == NUM_TRACES
    index.close()


NUMBERS: list[Any] = [
    1e308,
    -1e308,
    5e-324,
    HUGE,
    float("inf"),
    2**63,
    -(2**63),
    "x",
    True,
    [1],
    None,
    10**308,
]


@pytest.mark.parametrize("one", NUMBERS, ids=lambda value: str(value)[:12])
def test_whatever_traces_measured_the_pages_are_there(one: Any, folder: Path, show: Show) -> None:
    fields = ("score", "distance_km", "acc@1km", "mine")
    for number, other in enumerate((one, -1e308, 1e308, 1)):
        reward = dict.fromkeys(fields, other)
        changed(folder, number, reward_score=reward, metadata={"score": other, "answer": reward})
    check_pages(show(folder))


def test_a_metric_of_another_task_is_not_said_of_a_run(folder: Path, tmp_path: Path, show: Show) -> None:
    other = tmp_path / "vqa"
    make_traces(other, 3)
    for number in range(3):
        value = json.loads((other / f"trace_{number:05d}.json").read_text())
        changed(
            other,
            number,
            settings=value["settings"] | {"task": "vqa"},
            reward_score={"score": 1, "exact_match": 1},
        )
    page = show(folder, other).text("/")
    cells = page.split("within 2500 km")[1].split("</tr>")[0]
    assert cells.count("–") == 1 and "%" in cells


def test_a_folder_without_a_record_is_not_said_to_be_broken_off(folder: Path, show: Show) -> None:
    site = show(folder)
    site.ask("/")
    assert site.json("/api/now")["runs"][0]["state"] == "no record"


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_defect_while_folders_are_read_anew_takes_no_page_away(folder: Path) -> None:
    class Fails(Keeper):
        def _refresh(self, update: Callable[[], int]) -> Now:
            raise ZeroDivisionError

    keeper = Fails([folder], int)
    for _ in range(3):
        before = set(threading.enumerate())
        assert keeper.now(0.05).generation == 0
        for thread in set(threading.enumerate()) - before:
            thread.join(5)


@pytest.mark.parametrize("path", ["/trace/{}/0", "/api/pair/{}/00000", "/picture/0/00000/{}"])
def test_an_address_with_an_endless_number_is_refused(path: str, folder: Path, show: Show) -> None:
    assert show(folder).status(path.format("9" * 5000)) == 414


@pytest.mark.parametrize("fields", [{"file": "\ud800"}, {"note": "half \ud800 a letter"}])
def test_half_a_character_in_a_mark_is_refused(fields: Any, folder: Path, show: Show) -> None:
    asked = {"run": 0, "file": "trace_00000.json", "mark": "keep"} | fields
    status, answer = show(folder).post("/api/mark", asked)
    assert (status, answer) == (400, {"error": "that is no JSON"})
    assert not (folder / MARKS).exists()


def test_a_search_for_thousands_of_words_is_refused_at_once(folder: Path, show: Show) -> None:
    site = show(folder)
    assert site.json("/api/rows?q=" + "+".join(["sign"] * 100))["total"] >= 0
    assert "at most 100 words" in site.json("/api/rows?q=" + "a+" * 20_000)["error"]


def test_distances_that_are_all_zero_are_kilometres_and_no_share(folder: Path) -> None:
    for number in range(NUM_TRACES):
        changed(folder, number, reward_score={"score": 1, "distance@km": 0.0, "acc@1km": 1})
    with closing(TraceIndex.open([folder])) as index:
        found = {chart["id"]: chart for chart in charts(index, read_columns(index, ["run"]))}
    assert found["distance_km"]["kind"] == "histogram"
    assert [row["label"] for row in found["shares"]["rows"]] == ["with an answer", "acc@1km"]


def test_what_the_map_draws_is_read_once_and_follows_the_traces(
    folder: Path, show: Show, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[object] = []
    monkeypatch.setattr(run_page, "pairs", lambda *given: asked.append(given) or map_pairs(*given))
    site = show(folder)
    first = [site.json("/api/pairs") for _ in range(3)]
    assert first[0] == first[1] == first[2] and first[0]["total"] > 0
    assert len(asked) < 3, "read again only where the index was: files written a moment ago are read twice"
    assert site.json("/api/pairs?where=score<0")["total"] == 0
    make_traces(folder, 2 * NUM_TRACES)
    give_up_at = time.monotonic() + 20
    while site.json("/api/pairs")["total"] <= first[0]["total"]:
        assert time.monotonic() < give_up_at
        time.sleep(0.1)
