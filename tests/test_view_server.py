"""The viewer's server, asked by real requests: who may ask, what pages and lists say, marks, starting and ending."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import tomllib
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import pytest
from conftest import PACKAGE
from hypothesis import example, given
from hypothesis import strategies as st
from starlette.datastructures import QueryParams

from distil.cli import main
from distil.errors import UsageError
from distil.index.index import TraceIndex
from distil.index.query import Filter, Query
from distil.store.marks import MARKS, read_marks
from distil.viewer.pages import query_pairs, read_query
from distil.viewer.server import bind, serving, url_of
from distil.viewer.viewer import Viewer, short_names

sys.path.append(str(PACKAGE.parent / "benchmarks"))

from many_traces import make_traces

NUM_TRACES = 130
SCRIPT = "<script>alert(1)</script>"


class Site:
    """A served viewer, and how it answers."""

    def __init__(self, port: int, host: str = "127.0.0.1") -> None:
        self.port, self.host = port, host

    def ask(
        self, path: str, method: str = "GET", body: bytes | None = None, **headers: str | None
    ) -> tuple[int, Mapping[str, str], bytes]:
        """Status, headers and body; `headers` with `_` for `-`, None for one that is not sent."""
        connection = http.client.HTTPConnection(self.host, self.port, timeout=20)
        sent = {"Host": f"127.0.0.1:{self.port}"}
        sent |= {name.replace("_", "-").title(): value for name, value in headers.items()}  # type: ignore[misc]
        connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
        for name, value in sent.items():
            if value is not None:
                connection.putheader(name, value)
        if body is not None:
            connection.putheader("Content-Length", str(len(body)))
        connection.endheaders(body)
        answer = connection.getresponse()
        found = answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()
        connection.close()
        return found

    def status(self, path: str, **headers: str | None) -> int:
        return self.ask(path, **headers)[0]

    def text(self, path: str) -> str:
        status, _, body = self.ask(path)
        assert status == 200, (status, body[:500])
        return body.decode()

    def json(self, path: str) -> Any:
        return json.loads(self.ask(path)[2])

    def post(self, path: str, value: Any, **headers: str | None) -> tuple[int, Any]:
        given = {"origin": f"http://127.0.0.1:{self.port}"} | headers
        status, _, body = self.ask(path, "POST", json.dumps(value).encode(), **given)
        try:
            return status, json.loads(body)
        except ValueError:
            return status, body.decode()


Show = Callable[..., Site]


@pytest.fixture(scope="module")
def show() -> Iterator[Show]:
    """Serve folders in this process."""
    with ExitStack() as stack:

        def start(*folders: Path, host: str = "127.0.0.1", token: str | None = None) -> Site:
            listening = stack.enter_context(bind(host, 0, may_be_another=False))
            viewer = Viewer(tuple(folders), TraceIndex.open(folders), token)
            stack.enter_context(serving(viewer, listening, host))
            return Site(listening.getsockname()[1], "127.0.0.1" if host == "0.0.0.0" else host)

        yield start


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("many") / "first"
    make_traces(folder, NUM_TRACES)
    return folder


@pytest.fixture(scope="module")
def site(folder: Path, show: Show) -> Site:
    return show(folder)


def changed(folder: Path, index: int, **fields: Any) -> None:
    path = folder / f"trace_{index:05d}.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def failure(index: int, message: str) -> str:
    value = {
        "sample_index": index, "kind": "teacher", "message": message, "status": 500, "attempts": 4, "runs": 1,
        "turns_spent": 0,
    }  # fmt: skip
    return json.dumps(value) + "\n"


# --- who may ask


@pytest.mark.parametrize("name", ["127.0.0.1", "localhost", "LOCALHOST", "[::1]"])
def test_this_machines_own_names_are_answered_through_any_port_that_leads_here(site: Site, name: str) -> None:
    assert site.status("/", host=f"{name}:{site.port}") == 200
    assert site.status("/", host=f"{name}:9999") == 200  # ssh -L 9999:localhost:…
    assert site.status("/", host=name) == 200


@pytest.mark.parametrize(
    "host",
    [
        "evil.example", "evil.example:8642", "127.0.0.1.evil.example", "localhost.evil.example", "127.0.0.2", "",
        "10.0.0.1:80", "localhost:80@evil.example", "evil.example#localhost", "[::1", "127.0.0.1:80:80", "0.0.0.0",
    ],
)  # fmt: skip
def test_a_foreign_host_is_refused_wherever_it_asks(site: Site, host: str) -> None:
    for path in ("/", "/traces", "/api/rows", "/static/base.css", "/trace/0/00001", "/picture/0/00001/0"):
        status, headers, body = site.ask(path, host=host)
        assert status in (400, 403)
        assert b"trace" not in body
        assert "access-control-allow-origin" not in headers


def test_only_a_page_of_ours_can_change_anything(folder: Path, site: Site) -> None:
    ours = f"http://127.0.0.1:{site.port}"
    asked = {"run": 0, "file": "trace_00000.json", "mark": "keep"}
    foreign = [
        {"origin": "http://evil.example"},
        {"origin": "null"},
        {"origin": f"https://127.0.0.1:{site.port}"},
        {"origin": "http://127.0.0.1:1"},
        {"origin": f"http://localhost:{site.port}"},  # another origin than the host that was asked for
        {"origin": ours, "sec_fetch_site": "cross-site"},
        {"origin": ours, "sec_fetch_site": "same-site"},
        {"origin": None, "sec_fetch_site": "none"},
        {"origin": None},
        {"origin": ours, "host": "evil.example"},
        {"origin": "http://evil.example", "host": "evil.example"},
    ]
    for headers in foreign:
        assert site.post("/api/mark", asked, **headers)[0] == 403, headers
    for method in ("PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"):
        assert site.ask("/api/mark", method, b"{}", origin="http://evil.example")[0] == 403
    assert not (folder / MARKS).exists()
    assert site.ask("/api/mark", "GET")[0] == 405


def test_every_answer_says_what_a_browser_may_do_with_it(site: Site) -> None:
    for path in ("/", "/traces", "/nothing", "/api/now", "/static/base.js", "/static/", "/api/rows?f=x"):
        for host in (None, "evil.example"):
            headers = site.ask(path, **({"host": host} if host else {}))[1]
            policy = headers["content-security-policy"]
            assert "default-src 'none'" in policy
            assert "unsafe" not in policy
            assert "frame-ancestors 'none'" in policy
            assert headers["x-content-type-options"] == "nosniff"
            assert headers["referrer-policy"] == "no-referrer"
            assert headers["cross-origin-resource-policy"] == "same-origin"
            assert headers["cache-control"] in ("no-store", "no-cache")
            assert "server" not in headers


def test_where_others_can_ask_a_token_is_needed_that_the_url_gives_once(folder: Path, show: Show) -> None:
    site = show(folder, host="0.0.0.0", token="secret-token")
    for path in (
        "/",
        "/traces",
        "/static/base.css",
        "/?token=",
        "/?token=wrong",
        "/api/rows?token=secret-tokem",
    ):
        status, _, body = site.ask(path)
        assert status == 401, path
        assert b"first" not in body
    status, headers, body = site.ask("/traces?q=a%22b&token=secret-token")
    assert status == 200
    assert b'url=/traces?q=a%22b"' in body  # it goes on without the token
    assert b"token" not in body
    cookie = headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "samesite=strict" in cookie.lower()
    assert site.status("/traces", cookie=cookie.split(";")[0]) == 200
    assert site.status("/traces", cookie=cookie.split(";")[0].replace("secret", "other")) == 401
    assert site.status("/", cookie=cookie.split(";")[0], host="evil.example") == 403
    assert (
        site.status("/", cookie=cookie.split(";")[0], host=f"192.168.7.9:{site.port}") == 200
    )  # no name: no rebinding
    mark = {"run": 0, "file": "trace_00000.json", "mark": "keep"}
    assert site.post("/api/mark", mark)[0] == 401


def test_a_token_leads_to_no_other_site(folder: Path, show: Show) -> None:
    site = show(folder, host="0.0.0.0", token="secret-token")
    for path in ("//evil.example/", "/\\evil.example", "/%2F/evil.example", '/"><script>'):
        body = site.ask(f"{path}?token=secret-token".replace('"', "%22").replace("<", "%3C"))[2].decode()
        target = re.search(r'content="0; url=([^"]*)"', body)
        assert target is not None
        assert re.match(r"/[^/\\]", target[1]) or target[1] == "/"
        assert "<script>" not in body


# --- paths


@pytest.mark.parametrize(
    "path",
    [
        "/static/../guard.py", "/static/%2e%2e/guard.py", "/static/..%2fguard.py", "/static/%2e%2e%2fguard.py",
        "/static//etc/passwd", "/static/%2Fetc%2Fpasswd", "/static/base.css%00", "/static/%00", "/static/",
        "/static/..%5cguard.py", "/trace/0/..%2f..%2fsecret", "/trace/0/%2Fetc%2Fpasswd", "/trace/0/00001%00",
        "/trace/0/.", "/trace/0/%2e%2e", "/trace/-1/00001", "/trace/9/00001", "/trace/99999999999999999999/00001",
        "/picture/0/..%2f..%2fsecret/0", "/picture/9/00001/0", "/raw/0/..%2fsecret", "/api/text/0/..%2fsecret",
        "/trace/0/00001/../../x", "/%2e%2e/%2e%2e/etc/passwd", "//etc/passwd", "/trace/0/999999",
    ],
)  # fmt: skip
def test_no_path_leads_out_of_what_the_index_holds(folder: Path, site: Site, path: str) -> None:
    (folder.parent / "secret.json").write_text('{"sample_index": 1, "secret": "of another"}')
    (folder.parent / "trace_secret.json").write_text('{"sample_index": 1, "secret": "of another"}')
    status, _, body = site.ask(path)
    assert status in (400, 404, 405), path
    assert b"of another" not in body
    assert b"root:" not in body
    assert b"import" not in body


def test_a_mark_is_written_for_a_trace_of_the_index_alone(folder: Path, site: Site) -> None:
    for asked in (
        {}, [], "x", {"run": 0}, {"run": 0, "file": "../trace_secret.json", "mark": "keep"},
        {"run": 1, "file": "trace_00000.json", "mark": "keep"}, {"run": True, "file": "trace_00000.json"},
        {"run": 0, "file": "trace_00000.json", "mark": "delete"}, {"run": 0, "file": "trace_00000.json", "note": 5},
        {"run": -1, "file": "trace_00000.json", "mark": "keep"}, {"run": 0, "file": "trace_00000.json", "note": "x" * 20_000},
    ):  # fmt: skip
        status, answer = site.post("/api/mark", asked)
        assert status == 400, asked
        assert answer["error"]
    long = b'{"run": 0, "file": "trace_00000.json", "mark": "keep"' + b" " * 200_000 + b"}"
    for body in (b"", b"{", b"[" * 100_000, b"\xff", long):
        assert site.ask("/api/mark", "POST", body, origin=f"http://127.0.0.1:{site.port}")[0] == 400
    assert not (folder / MARKS).exists()


# --- pages


def test_the_page_of_a_run_says_what_it_is_and_what_it_came_to(tmp_path: Path, show: Show) -> None:
    folder = tmp_path / "run"
    make_traces(folder, 20)
    trace = json.loads((folder / "trace_00000.json").read_text())
    record = {
        "started_at": "2026-01-02T03:04:05+00:00", "seconds": 60.0, "num_samples": 22, "num_finished": 20,
        "num_failed": 2, "settings": trace["settings"], "dataset": {"source": "/data/photos", "num_rows": 500},
        "warnings": ["All boxes are small."], "options": {"seed": 7}, "versions": {"distil": "9.9"},
    }  # fmt: skip
    (folder / "run_record.json").write_text(json.dumps({"runs": [record]}))
    (folder / "failed_samples.jsonl").write_text(failure(20, "no reply came") + failure(21, f"{SCRIPT} came"))
    (folder / "trace_00021.json").write_text("{ half")
    site = show(folder)
    text = site.text("/")
    for words in (
        trace["settings"]["model"], "/data/photos", "All boxes are small.", "no reply came", "9.9", "20",
        "trace_00021.json", "&lt;script&gt;alert(1)&lt;/script&gt; came", 'id="chart-data"', "median",
    ):  # fmt: skip
        assert words in text, words
    assert SCRIPT not in text
    now = site.json("/api/now")
    assert now["runs"][0]["state"] == "ended"
    assert now["runs"][0]["num_done"] == 21  # files, whatever is in them
    assert not now["is_live"]


def test_several_runs_stand_side_by_side_with_what_differs_marked(
    folder: Path, tmp_path: Path, show: Show
) -> None:
    folders = [tmp_path / "a" / "run", tmp_path / "b" / "run"]
    for number, each in enumerate(folders):
        make_traces(each, 10, seed=number)
        settings = json.loads((each / "trace_00000.json").read_text())["settings"] | {
            "temperature": 0.1 + number
        }
        (each / "run_record.json").write_text(json.dumps({"runs": [{"settings": settings}]}))
    text = show(*folders).text("/")
    assert "a/run" in text
    assert "b/run" in text
    differing = re.findall(r'<tr class="differs"><th scope="row">([^<]*)</th>', text)
    assert differing == ["temperature"]
    assert '<tr class="equal"><th scope="row">max_turns</th>' in text


def test_the_list_comes_in_pieces_filtered_sorted_and_searched(folder: Path, site: Site) -> None:
    page = site.text("/traces")
    state = json.loads(re.search(r'id="state">(.*?)</script>', page, re.DOTALL)[1])  # type: ignore[index]
    assert state["first"]["total"] == NUM_TRACES
    assert len(state["first"]["rows"]) == 100
    rest = site.json("/api/rows?offset=100")
    assert len(rest["rows"]) == NUM_TRACES - 100
    assert "total" not in rest
    best = site.json("/api/rows?sort=-score&cols=score&limit=5")
    scores = [json.loads(path.read_text())["reward_score"]["score"] for path in folder.glob("trace_*.json")]
    assert [row["score"] for row in best["rows"]] == sorted(scores, reverse=True)[:5]
    assert set(best["rows"][0]) == {"run", "file", "sample_index", "rollout", "mark", "note", "score"}
    high = site.json("/api/rows?" + urlencode({"f": "score>=0.5"}))["total"]
    assert high == sum(score >= 0.5 for score in scores)
    assert site.json("/api/rows?" + urlencode({"where": "score < 0.5"}))["total"] == NUM_TRACES - high
    found = site.json("/api/rows?q=bollard")["total"]
    assert 0 < found < NUM_TRACES
    assert site.json("/api/values?column=stop_reason")["values"][0][0] == "answered"


@pytest.mark.parametrize(
    "params",
    [
        {"where": "score <"}, {"where": "1; DROP TABLE traces"}, {"where": "(SELECT 1 FROM sqlite_master)"},
        {"f": "nothing=1"}, {"f": "no sense"}, {"f": "score>=x"}, {"sort": "nothing"}, {"offset": "-1"}, {"limit": "x"},
        {"where": "load_extension('x')"},
    ],
)  # fmt: skip
def test_what_cannot_be_asked_is_said_in_a_line_on_the_page_and_by_the_api(
    site: Site, params: dict[str, str]
) -> None:
    status, _, body = site.ask("/api/rows?" + urlencode(params))
    error = json.loads(body)["error"]
    assert status == 400
    assert "\n" not in error
    assert "Traceback" not in error
    status, _, body = site.ask("/traces?" + urlencode(params))
    assert status == 200
    assert ("offset" in params or "limit" in params) or b'"error"' in body


def test_hostile_words_of_traces_and_urls_stay_words(tmp_path: Path, show: Show) -> None:
    folder = tmp_path / f"run {SCRIPT.replace('/', '∕')}"
    make_traces(folder, 3)
    hostile = {
        "</script><script>alert(2)</script>": "</script><script>alert(3)</script>",
        "name": '"><img src=x>',
    }
    changed(folder, 1, sample_data=hostile | {"lat": 1, "lon": 2}, final_response=SCRIPT)
    site = show(folder)
    attack = quote("</script><script>alert(4)</script>\"'")
    for path in ("/", "/traces", f"/traces?q={attack}", f"/traces?where={attack}", f"/traces?f={attack}", f"/{attack}",
                 f"/traces?cols={attack}", f"/api/rows?f={attack}", f"/compare?sort={attack}"):  # fmt: skip
        _, headers, body = site.ask(path)
        if "html" in headers["content-type"]:
            text = body.decode()
            assert "<script>alert" not in text
            assert "<img src=x>" not in text
            assert not re.search(r"<script(?![^>]*(src=|type=\"application/json\"))", text)
            assert not re.search(r"\son[a-z]+=|\sstyle=", text)


def test_half_characters_and_characters_that_turn_a_line_around_are_shown_by_their_numbers(
    tmp_path: Path, show: Show
) -> None:
    folder = tmp_path / os.fsdecode(b"run \xff")
    make_traces(folder, 2)
    changed(folder, 1, sample_data={"name\ud800": "gpj.\u202eexe\udfff", "lat": 1, "lon": 2})
    record = {"settings": {"model": "m\u202e\ud800", "x": "\udc00"}, "warnings": ["w\ud800"]}
    (folder / "run_record.json").write_text(json.dumps({"runs": [record]}))
    (folder / "failed_samples.jsonl").write_text(failure(5, "no \u202e\ud83d reply"))
    site = show(folder, folder)
    for path in (
        "/",
        "/traces",
        "/traces?cols=row_name,name",
        "/compare",
        "/api/rows",
        "/api/now",
        "/trace/0/00001",
    ):
        status, _, body = site.ask(path)
        assert status == 200, path
        assert "\u202e" not in body.decode(), path
    assert "U+202E" in site.text("/")


def test_traces_of_the_earlier_system_and_of_no_system_are_shown(tmp_path: Path, show: Show) -> None:
    old = {
        "sample_index": 5, "conversation_history": [{"turn": 1, "response": "\\boxed{1, 2}"}], "tool_calls": [],
        "sample_data": {"lat": 1.0, "lon": 2.0}, "final_response": "\\boxed{1, 2}",
        "reward_score": {"score": 1.0, "distance@km": 0.0, "parse_success": True},
    }  # fmt: skip
    (tmp_path / "trace_00005.json").write_text(json.dumps(old))
    (tmp_path / "trace_00006.json").write_text("{}")
    site = show(tmp_path)
    assert "trace_00006.json" in site.text("/")
    assert [row["sample_index"] for row in site.json("/api/rows")["rows"]] == [5]
    assert '"num_broken": 1' in site.text("/traces")


def test_a_query_is_the_same_after_a_url() -> None:
    query = Query(
        (Filter("score", ">=", "0.5"), Filter("answer", "contains", "a=b&c"), Filter("x", "is null"), Filter("y", "is not null")),
        'wo"rds', "a > 1", ("-score", "turns"),
    )  # fmt: skip
    assert read_query(QueryParams(urlencode(list(query_pairs(query))))) == query
    assert read_query(QueryParams("")) == Query()


@given(st.text(max_size=60))
@example(" ~")
def test_any_condition_of_a_url_is_read_or_refused(text: str) -> None:
    try:
        query = read_query(QueryParams([("f", text)]))
    except UsageError:
        return
    assert read_query(QueryParams(list(query_pairs(query)))) == query


# --- compare


def test_runs_are_paired_by_row_and_ordered_by_what_differs(tmp_path: Path, show: Show) -> None:
    a, b = tmp_path / "a", tmp_path / "b"
    for each in (a, b):
        make_traces(each, 4)
    make_traces(b, 5)
    scores = {0: 0.5, 1: 0.5, 2: 0.9, 3: 0.2}
    for index, score in scores.items():
        for each, value in ((a, score), (b, score + {1: -0.4, 3: 0.3}.get(index, 0))):
            trace = json.loads((each / f"trace_{index:05d}.json").read_text())
            changed(each, index, reward_score=trace["reward_score"] | {"score": value})
    site = show(a, b)
    text = site.text("/compare")
    assert re.findall(r'class="id" href="([^"]*)"', text)[0] == "/trace/0/00001?beside=1%2F00001"
    assert re.findall(r'class="id"[^>]*>(\d+)<', text) == ["1", "3", "0", "2"]
    assert "1 better" in text
    assert "2 equal" in text
    assert "1 worse" in text
    assert re.findall(r'class="id"[^>]*>(\d+)<', site.text("/compare?sort=gain"))[0] == "3"
    assert "4" in re.findall(r'class="id"[^>]*>(\d+)<', site.text("/compare?rows=all"))
    for page in ("0", "-1", "x", "99999999999", "²"):
        assert site.status(f"/compare?page={quote(page)}") == 200


def test_rows_of_different_datasets_are_paired_by_their_photos(tmp_path: Path, show: Show) -> None:
    a, b = tmp_path / "a", tmp_path / "b"
    make_traces(a, 3)
    make_traces(b, 3)
    for index in range(3):  # the same photos in another order, in another dataset
        own = json.loads((a / f"trace_{2 - index:05d}.json").read_text())["image"]
        dataset = json.loads((b / f"trace_{index:05d}.json").read_text())["dataset"]
        changed(b, index, image=own, dataset=dataset | {"fingerprint": "another"})
    text = show(a, b).text("/compare?sort=sample")
    assert "/trace/0/00000?beside=1%2F00002" in text


# --- marks


def test_a_mark_is_kept_beside_the_run_and_shown_at_once(tmp_path: Path, show: Show) -> None:
    make_traces(tmp_path, 5)
    site = show(tmp_path)
    asked = {"run": 0, "file": "trace_00002.json"}
    assert site.post("/api/mark", asked | {"mark": "keep"}) == (200, asked | {"mark": "keep", "note": None})
    assert site.post("/api/mark", asked | {"note": " a sign "}) == (
        200,
        asked | {"mark": "keep", "note": "a sign"},
    )
    rows = site.json("/api/rows?f=mark%3Dkeep")
    assert [(row["sample_index"], row["note"]) for row in rows["rows"]] == [(2, "a sign")]
    assert rows["marks"] == {"keep": 1, "drop": 0}
    site.post("/api/mark", asked | {"mark": None, "note": ""})
    assert site.json("/api/rows")["marks"] == {"keep": 0, "drop": 0}
    assert read_marks(tmp_path) == {}


def test_two_people_who_mark_at_once_lose_nothing(tmp_path: Path, show: Show) -> None:
    make_traces(tmp_path, 24)
    sites = [show(tmp_path), show(tmp_path)]

    def mark(number: int) -> None:
        for index in range(24):
            field = {"mark": "drop"} if number else {"note": f"of {index}"}
            assert (
                sites[number].post("/api/mark", {"run": 0, "file": f"trace_{index:05d}.json"} | field)[0]
                == 200
            )

    threads = [threading.Thread(target=mark, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    marks = read_marks(tmp_path)
    assert {(each.index, mark.mark, mark.note) for each, mark in marks.items()} == {
        (index, "drop", f"of {index}") for index in range(24)
    }


# --- a folder that is being written


def test_what_is_written_while_somebody_looks_is_seen(tmp_path: Path, show: Show) -> None:
    (tmp_path / ".lock").touch()
    site = show(tmp_path)
    assert "No traces yet" in site.text("/")
    before = site.json("/api/now")["generation"]
    make_traces(tmp_path, 3)
    deadline = time.monotonic() + 20
    while site.json("/api/now")["generation"] == before:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert site.json("/api/rows")["total"] == 3
    assert "No traces yet" not in site.text("/")


# --- starting and ending


def start(*arguments: object, **environment: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "distil", "view", *map(str, arguments), "--serve", "--no_open"]
    return subprocess.Popen(
        command, cwd=PACKAGE.parent, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env={**os.environ, **environment},
    )  # fmt: skip


def said_url(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    for line in process.stdout:
        if found := re.search(r"http://\S+", line):
            return found[0]
    raise AssertionError("it says no address")


def test_it_says_its_address_and_ends_at_once_with_the_first_ctrl_c_while_a_page_is_open(
    folder: Path,
) -> None:
    process = start(folder, "--port", 0)
    url = said_url(process)
    open_page = socket.create_connection(("127.0.0.1", int(url.split(":")[2].strip("/"))))
    try:
        open_page.sendall(b"GET /")  # half a request
        assert Site(int(url.split(":")[2].strip("/"))).status("/") == 200
        began = time.monotonic()
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 0
        assert time.monotonic() - began < 3
        assert process.stdout is not None
        assert "Traceback" not in process.stdout.read()
    finally:
        open_page.close()
        process.kill()


def test_a_taken_port_is_left_alone_another_taken_unless_it_was_asked_for(folder: Path) -> None:
    with bind("127.0.0.1", 0, may_be_another=False) as taken:
        port = taken.getsockname()[1]
        with bind("127.0.0.1", port, may_be_another=True) as other:
            assert other.getsockname()[1] != port
        with pytest.raises(UsageError, match="choose another --port"):
            bind("127.0.0.1", port, may_be_another=False)
    with pytest.raises(UsageError, match="there is no such address"):
        bind("no such host", 0, may_be_another=False)


def test_urls_name_ipv6_addresses_and_hold_the_token() -> None:
    with bind("127.0.0.1", 0, may_be_another=False) as listening:
        port = listening.getsockname()[1]
        assert url_of(listening, "::1") == f"http://[::1]:{port}/"
        assert (
            url_of(listening, "127.0.0.1", "abc", "traces?where=x")
            == f"http://127.0.0.1:{port}/traces?where=x&token=abc"
        )


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["{tmp}/none"], "there is no folder"),
        (["{tmp}"], "holds no trace_"),
        (["{tmp}/file.txt"], "is no trace_"),
        (["{folder}", "--port", "70000"], "must be a port"),
        (["{folder}", "--host", "no such host"], "there is no such address"),
        (["{folder}", "{tmp}/none"], "there is no folder"),
    ],
)
def test_what_cannot_be_served_is_said(
    folder: Path, tmp_path: Path, arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file.txt").touch()
    given = [each.format(tmp=tmp_path, folder=folder) for each in arguments]
    try:
        status: object = main(["view", *given, "--serve"])
    except SystemExit as leaving:
        status = leaving.code
    assert status == 2
    assert words in capsys.readouterr().err


def test_without_its_packages_one_line_says_what_to_install(folder: Path, tmp_path: Path) -> None:
    code = (
        "import sys, importlib.util as util\n"
        "find = util.find_spec\n"
        "util.find_spec = lambda name, *others: None if name == 'starlette' else find(name, *others)\n"
        f"sys.argv = ['distil', 'view', {str(folder)!r}, '--serve']\n"
        "from distil.cli import enter\nenter()"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=PACKAGE.parent, capture_output=True, text=True, check=False
    )
    assert result.returncode == 2
    assert result.stderr.strip() == 'distil: the web page needs starlette: pip install "distil[view]"'


def test_the_script_serves_too_and_a_trace_file_opens_its_page(folder: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "view_traces_enhanced.py", str(folder / "trace_00003.json"), "--serve", "--no_open", "--port", "0"],
        cwd=PACKAGE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert said_url(process).endswith("/trace/0/00003")
    finally:
        process.kill()
        process.wait()


def test_folders_are_called_by_what_tells_them_apart(tmp_path: Path) -> None:
    assert short_names([tmp_path / "a", tmp_path / "b"]) == ["a", "b"]
    assert short_names([tmp_path / "a" / "run", tmp_path / "b" / "run"]) == ["a/run", "b/run"]


def test_the_package_holds_every_template_and_static_file() -> None:
    project = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text(encoding="utf-8"))
    held = project["tool"]["setuptools"]["package-data"]["distil.viewer"]
    viewer = PACKAGE / "viewer"
    others = [
        path.relative_to(viewer)
        for path in viewer.rglob("*")
        if path.is_file() and path.suffix not in (".py", ".pyc")
    ]
    assert len(others) > 15
    for path in others:
        assert any(path.match(pattern) and len(path.parts) == len(Path(pattern).parts) for pattern in held), (
            path
        )
