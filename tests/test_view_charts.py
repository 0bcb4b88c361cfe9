"""Charts and the map: the figures that they are made of, and what a browser makes of them."""

from __future__ import annotations

import json
import math
import random
import sys
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import Browser, Serve, overflow_px, serious_violations, set_theme
from hypothesis import given
from hypothesis import strategies as st
from playwright.sync_api import Page
from run_folders import a_trace, write_run
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from distil.index.index import TraceIndex
from distil.index.query import Filter, Query
from distil.records import Json
from distil.tasks.geolocation import GEOLOCATION
from distil.viewer.charts import bin_edges, charts, pairs, task_with_map, wilson_interval
from distil.viewer.pages import LAND_FILE
from distil.viewer.run_facts import read_columns

sys.path.append(str(Path(__file__).parent.parent / "docs"))

from make_map import cut, land_text, outlines

STATIC = LAND_FILE.parent


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("charts") / "traces", 200)


@pytest.fixture(scope="module")
def index(run: Path) -> TraceIndex:
    return TraceIndex.open([run])


def traces_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in sorted(folder.glob("trace_*.json"))]


def by_id(found: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {chart["id"]: chart for chart in found}


def charts_of(index: TraceIndex, labels: Sequence[str], query: Query | None = None) -> list[dict[str, Json]]:
    return charts(index, read_columns(index, labels, query))


# --- figures


def test_every_trace_is_counted_once_in_each_chart(run: Path, index: TraceIndex) -> None:
    found, traces = by_id(charts_of(index, ["a"])), traces_of(run)
    answered = [each for each in traces if each["reward_score"]["parse_success"]]
    assert sum(found["score"]["series"][0]["counts"]) == 200
    series = found["distance_km"]["series"][0]
    assert (sum(series["counts"]), series["missing"]) == (len(answered), 200 - len(answered))
    distances = [each["reward_score"]["distance@km"] for each in answered]
    assert series["median"] == pytest.approx(np.median(distances))
    edges = found["distance_km"]["edges"]
    assert edges[0] <= min(distances) and max(distances) <= edges[-1]
    turns = Counter(each["metadata"]["total_turns"] for each in traces)
    assert {row["label"]: row["counts"] for row in found["turns"]["rows"]} == {
        str(number): [turns[number]] for number in range(1, 6)
    }
    reasons = Counter(each["metadata"]["stop_reason"] for each in traces)
    assert [(row["label"], row["counts"][0]) for row in found["stop_reason"]["rows"]] == reasons.most_common()


def test_shares_are_of_all_traces_and_have_intervals(run: Path, index: TraceIndex) -> None:
    rows = {row["label"]: row["shares"][0] for row in by_id(charts_of(index, ["a"]))["shares"]["rows"]}
    assert list(rows) == ["with an answer", "acc@1km", "acc@25km", "acc@200km", "acc@750km", "acc@2500km"]
    near = sum(each["reward_score"]["acc@25km"] for each in traces_of(run))
    share = rows["acc@25km"]
    assert (share["count"], share["of"], share["share"]) == (near, 200, near / 200)
    assert 0 <= share["low"] < share["share"] < share["high"] <= 1


def test_a_metric_that_is_the_score_in_another_unit_has_no_chart_of_its_own(index: TraceIndex) -> None:
    assert "geoguessr_point" in {column.name for column in index.columns}
    assert "geoguessr_point" not in by_id(charts_of(index, ["a"]))


def test_charts_of_a_query_are_of_what_it_finds(index: TraceIndex) -> None:
    query = Query((Filter("turns", "=", 1),))
    found = by_id(charts_of(index, ["a"], query))
    assert [row["label"] for row in found["turns"]["rows"]] == ["1"]
    assert "calls" not in found, "none of them has a call: there is nothing to compare"
    assert charts_of(index, ["a"], Query((Filter("turns", ">", 99),))) == []


def test_two_runs_are_two_series(tmp_path: Path, run: Path) -> None:
    other = write_run(tmp_path / "other", 30, seed=5)
    found = by_id(charts_of(TraceIndex.open([run, other]), ["a", "b"]))
    assert [sum(each["counts"]) for each in found["score"]["series"]] == [200, 30]
    assert [share["of"] for share in found["shares"]["rows"][0]["shares"]] == [200, 30]
    assert len(found["turns"]["rows"][0]["counts"]) == 2


def test_charts_of_traces_that_say_little_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "trace_00000.json").write_text(json.dumps({"sample_index": 0, "conversation_history": []}))
    found = by_id(charts_of(TraceIndex.open([tmp_path]), ["a"]))
    assert "score" not in found and "distance_km" not in found and found["shares"]
    assert found["stop_reason"]["rows"] == [{"label": "not stated", "counts": [1]}]
    for number, reason in ((1, ""), (2, ""), (3, "answered")):
        trace = {"sample_index": number, "conversation_history": [], "metadata": {"stop_reason": reason}}
        (tmp_path / f"trace_{number:05d}.json").write_text(json.dumps(trace))
    assert by_id(charts_of(TraceIndex.open([tmp_path]), ["a"]))["stop_reason"]["rows"] == [
        {"label": "not stated", "counts": [3]},
        {"label": "answered", "counts": [1]},
    ]


@pytest.mark.parametrize(("count", "num"), [(0, 10), (3, 10), (10, 10), (1, 1), (0, 1), (999, 1000)])
def test_wilsons_interval_solves_its_equation(count: int, num: int) -> None:
    """Its ends are the shares from which what was seen is 1.96 standard deviations away."""
    low, high = wilson_interval(count, num)
    share = count / num
    for end in (low, high):
        if 0 < end < 1:
            deviation = math.sqrt(end * (1 - end) / num)
            assert abs(share - end) / deviation == pytest.approx(1.959964, rel=1e-6)
    assert 0 <= low <= share <= high <= 1
    assert wilson_interval(0, 0) == (0.0, 1.0)


@given(st.lists(st.floats(-1e7, 1e7), min_size=1, max_size=50))
def test_bins_hold_all_values_and_are_few(values: list[float]) -> None:
    edges = bin_edges(np.asarray(values))
    assert edges[0] <= min(values) and max(values) <= edges[-1]
    assert all(one < other for one, other in pairwise(edges))
    assert 2 <= len(edges) <= 45


def test_rewards_have_equal_bins_and_what_differs_by_orders_has_growing_ones() -> None:
    rewards = bin_edges(np.asarray([1e-6, 1e-5, 1e-4, 1.0]))
    assert rewards == pytest.approx(np.linspace(0, 1, 21))
    assert bin_edges(np.asarray([0.0, 0.5, 3.0, 40.0, 9000.0])) == pytest.approx(
        [0, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000]
    )
    assert bin_edges(np.asarray([3.0, 40.0, 90.0])) == pytest.approx(np.arange(0, 96, 5))


# --- the map's pairs


def test_every_answer_is_joined_to_its_truth(run: Path, index: TraceIndex) -> None:
    found = pairs(index, Query(), GEOLOCATION, "sort=-score")
    answered = [each for each in traces_of(run) if each["reward_score"]["parse_success"]]
    assert found["total"] == len(found["pairs"]) == len(answered)
    link, words, *degrees, value = found["pairs"][0]
    first = answered[0]
    assert link == f"/trace/0/{first['sample_index']:05d}?sort=-score"
    assert f"sample {first['sample_index']}" in words and "km" in words
    answer, truth = first["metadata"]["answer"], first["metadata"]["truth"]
    assert degrees == pytest.approx([answer["lat"], answer["lon"], truth["lat"], truth["lon"]], abs=1e-4)
    assert value == pytest.approx(first["reward_score"]["score"])


def test_of_very_many_pairs_some_are_taken_and_all_counted(
    index: TraceIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    total = pairs(index, Query(), GEOLOCATION)["total"]
    monkeypatch.setattr("distil.viewer.charts.MAX_PAIRS", 50)
    few = pairs(index, Query(), GEOLOCATION)
    assert few["total"] == total and 40 <= len(few["pairs"]) <= 50


def test_what_is_no_place_on_a_globe_is_left_out(tmp_path: Path) -> None:
    for number, answer in enumerate(
        ({"lat": 1e300, "lon": 2}, {"lat": "north", "lon": 2}, {"lat": 1, "lon": 2})
    ):
        trace = a_trace(number, random.Random(number))
        trace["metadata"]["answer"] = answer
        (tmp_path / f"trace_{number:05d}.json").write_text(json.dumps(trace))
    assert [pair[2:4] for pair in pairs(TraceIndex.open([tmp_path]), Query(), GEOLOCATION)["pairs"]] == [
        [1, 2]
    ]


def test_only_a_task_with_places_has_a_map() -> None:
    assert task_with_map(["a task of another program", "geolocation"]) is GEOLOCATION
    assert task_with_map([]) is None


# --- the outlines


def test_outlines_stay_on_the_map_and_hold_the_continents() -> None:
    land = json.loads(LAND_FILE.read_text())
    rings = [list(zip(ring[::2], ring[1::2], strict=True)) for ring in land["land"]]
    assert all(abs(x) <= 180 and abs(y) <= 90 for ring in rings for x, y in ring)
    inside = [(2.35, 48.86), (139.3, 35.9), (151, -33.5), (-100, 40), (20, 10), (-175, 66.5), (0, -80)]
    outside = [(-30, 40), (-140, 0), (80, -30), (160, 30), (0, 0)]
    lakes = [list(zip(ring[::2], ring[1::2], strict=True)) for ring in land["lakes"]]
    assert all(any(is_inside(ring, place) for ring in rings) for place in inside)
    assert not any(is_inside(ring, place) for ring in rings for place in outside)
    assert any(is_inside(ring, (51, 42)) for ring in lakes), "the Caspian Sea"


def is_inside(ring: list[tuple[float, float]], place: tuple[float, float]) -> bool:
    crossings = 0
    for (x1, y1), (x2, y2) in zip(ring, ring[1:] + ring[:1], strict=True):
        if (y1 > place[1]) != (y2 > place[1]) and place[0] < x1 + (place[1] - y1) * (x2 - x1) / (y2 - y1):
            crossings += 1
    return crossings % 2 == 1


def test_a_ring_over_the_edge_of_the_map_is_cut_in_two() -> None:
    pieces = cut([(170, 0), (-170, 0), (-170, 10), (170, 10), (170, 0)])
    assert sorted((min(x for x, _ in piece), max(x for x, _ in piece)) for piece in pieces) == [
        (-180, -170),
        (170, 180),
    ]


def test_outlines_are_read_from_topojson() -> None:
    topology = {
        "transform": {"scale": [1, 1], "translate": [-10, 0]},
        "arcs": [[[0, 0], [20, 0], [0, 20]], [[20, 20], [-20, 0], [0, -20]], [[5, 5], [5, 0], [0, 5], [-5, -5]]],
        "objects": {"land": {"type": "MultiPolygon", "arcs": [[[0, 1], [~2]]]}},
    }  # fmt: skip
    land, lakes = outlines(topology)
    assert land == [[(-10, 0), (10, 0), (10, 20), (-10, 20), (-10, 0)]]
    assert lakes == [[(-5, 5), (0, 10), (0, 5), (-5, 5)]]
    assert json.loads(land_text(topology, "9.9"))["lakes"] == [[-5, 5, 0, 10, 0, 5, -5, 5]]


# --- in a browser

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'"
)
FRAME = """<!doctype html><html lang="en"><head><title>charts</title><link rel="icon" href="data:,">
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="stylesheet" href="/static/base.css"><link rel="stylesheet" href="/static/charts.css"></head>
<body><main class="page"><h1>A run</h1>
<figure data-map="/pairs" data-land="/static/land.json"></figure><div data-charts="found"></div></main>
<script type="application/json" id="found">{found}</script>
<script type="module" src="/static/charts.js"></script><script type="module" src="/static/map.js"></script>
</body></html>"""


@pytest.fixture(scope="module")
def address(serve: Serve, tmp_path_factory: pytest.TempPathFactory, run: Path) -> str:
    """A page of charts of two runs and a map, with the policy that pages have; `/pairs?num=…` makes pairs up."""
    other = write_run(tmp_path_factory.mktemp("charts") / "other", 40, seed=9)
    index = TraceIndex.open([run, other])

    def page(request: Request) -> HTMLResponse:
        found = json.dumps(charts_of(index, ["with tools", "without"]))
        text = FRAME.replace("{found}", found).replace("/pairs", f"/pairs?{request.url.query}")
        return HTMLResponse(text, headers={"content-security-policy": POLICY})

    def some_pairs(request: Request) -> JSONResponse:
        num = int(request.query_params.get("num", 0))
        return JSONResponse(made_up_pairs(num) if num else pairs(index, Query(), GEOLOCATION))

    def trace(request: Request) -> HTMLResponse:
        return HTMLResponse(f"<title>{request.url.path}</title><link rel=icon href=data:,>")

    routes = [
        Route("/", page),
        Route("/pairs", some_pairs),
        Route("/trace/{run}/{part}", trace),
        Mount("/static", StaticFiles(directory=STATIC)),
    ]
    return serve(Starlette(routes=routes))


def made_up_pairs(num: int) -> dict[str, Any]:
    rng = random.Random(3)
    found = [
        [f"/trace/0/{number:05d}", f"sample {number}", rng.uniform(-60, 75), rng.uniform(-180, 180),
         rng.uniform(-60, 75), rng.uniform(-180, 180), rng.random()]
        for number in range(num)
    ]  # fmt: skip
    return {"pairs": found, "total": num}


def opened(browser: Browser, url: str, **options: Any) -> Page:
    page = browser.open(url, **options)
    page.wait_for_selector(".map-plot[data-drawn]")
    return page


def test_a_chart_is_read_by_keys_by_pointer_and_as_a_table(browser: Browser, address: str) -> None:
    page = opened(browser, address)
    plot, tip = page.locator("#chart-turns .chart-plot"), page.locator("#chart-turns .chart-tip")
    assert tip.is_hidden()
    plot.focus()
    page.keyboard.press("ArrowRight")
    assert tip.is_visible() and tip.text_content().startswith("with tools: 1: ")
    page.keyboard.press("ArrowRight")
    assert tip.text_content().startswith("without: 1: ")
    assert page.locator("#chart-turns [role=status]").text_content() == tip.text_content()
    page.keyboard.press("Escape")
    assert tip.is_hidden()
    page.locator("#chart-stop_reason .chart-bar").first.hover()
    assert "answered" in page.locator("#chart-stop_reason .chart-tip").text_content()
    page.locator("#chart-shares summary").click()
    cells = page.locator("#chart-shares tbody tr").nth(2).locator("th, td").all_text_contents()
    assert cells[0] == "acc@25km" and " of 200" in cells[1] and " of 40" in cells[2]


def test_bars_are_as_high_as_their_counts(browser: Browser, address: str) -> None:
    page = opened(browser, address)
    heights = [
        float(bar.get_attribute("height") or 0) for bar in page.locator("#chart-turns .s0 .chart-bar").all()
    ]
    page.locator("#chart-turns summary").click()
    counts = [int(cell) for cell in page.locator("#chart-turns tbody td:nth-child(2)").all_text_contents()]
    assert heights == pytest.approx([max(heights) * count / max(counts) for count in counts], rel=1e-6)


def test_words_of_traces_are_no_markup_in_charts_and_map(
    browser: Browser, serve: Serve, tmp_path: Path
) -> None:
    evil = '</script><img src=x onerror="window.hit=1"><script>window.hit=1</script>'
    trace = a_trace(0, random.Random(1))
    trace["metadata"] |= {"stop_reason": evil, "answer": {"lat": 1, "lon": 2}}
    trace["reward_score"][evil] = 0.5
    (tmp_path / "trace_00000.json").write_text(json.dumps(trace))
    index = TraceIndex.open([tmp_path])
    script = "import {drawCharts} from '/static/charts.js'; import {drawMap} from '/static/map.js';"
    script += "const [charts, data, land] = await Promise.all(['/charts', '/pairs', '/static/land.json'].map(async (url) => (await fetch(url)).json()));"
    script += "drawCharts(document.getElementById('charts'), charts); drawMap(document.getElementById('map'), land, data); document.title = 'drawn';"
    body = '<title>a</title><link rel=icon href="data:,"><div id=charts></div><div id=map></div><script type=module src=/script.js></script>'

    def answer(text: str, media_type: str) -> Any:
        return lambda request: HTMLResponse(text, media_type=media_type)

    found = pairs(index, Query(), GEOLOCATION)
    found["pairs"][0][1] = evil
    routes = [
        Route("/", answer(body, "text/html")),
        Route("/script.js", answer(script, "text/javascript")),
        Route("/charts", lambda request: JSONResponse(charts_of(index, [evil]))),
        Route("/pairs", lambda request: JSONResponse(found)),
        Mount("/static", StaticFiles(directory=STATIC)),
    ]
    page = browser.open(serve(Starlette(routes=routes)))
    page.wait_for_function("document.title === 'drawn'")
    page.evaluate("for (const each of document.querySelectorAll('details')) each.open = true")
    page.wait_for_selector("#map tbody")
    assert page.evaluate("window.hit") is None and page.locator("img").count() == 0
    assert page.get_by_text("onerror").count() > 0


def test_hovering_a_pair_says_which_and_a_click_opens_it(browser: Browser, address: str) -> None:
    page = opened(browser, f"{address}?num=3")
    pair = made_up_pairs(3)["pairs"][1]
    x, y = place_on_map(page, *pair[4:6])
    page.mouse.move(x + 2, y - 2)
    tip = page.locator(".map-plot .chart-tip")
    assert tip.text_content() == "sample 1" and tip.is_visible()
    page.mouse.click(x, y)
    page.wait_for_url("**/trace/0/00001")


def place_on_map(page: Page, north: float, east: float) -> tuple[float, float]:
    """Where in the window a point of the globe is on the whole map."""
    world = page.evaluate(
        "async ([north, east]) => (await import('/static/map.js')).project(north, east)", [north, east]
    )
    box = page.locator(".map-plot canvas").first.bounding_box()
    assert box is not None
    height = page.evaluate("async () => (await import('/static/map.js')).project(-90, 0)[1]")
    scale = min(box["width"], box["height"] / height)
    return (
        box["x"] + (box["width"] - scale) / 2 + world[0] * scale,
        box["y"] + (box["height"] - scale * height) / 2 + world[1] * scale,
    )


@pytest.mark.parametrize(
    ("north", "length", "up"),
    [(0, 1.0, 0.0), (45, 0.9006, 0.5571), (60, 0.8196, 0.7346), (75, 0.7160, 0.8936)],
)
def test_parallels_are_as_long_and_as_far_up_as_the_projections_table_says(
    browser: Browser, address: str, north: float, length: float, up: float
) -> None:
    page = browser.open(address)
    (left, y), (_, middle), (_, top) = page.evaluate(
        "async (north) => { const {project} = await import('/static/map.js');"
        "return [project(north, -180), project(0, 0), project(90, 0)] }",
        north,
    )
    assert 1 - 2 * left == pytest.approx(length, abs=0.012)
    assert (middle - y) / (middle - top) == pytest.approx(up, abs=0.012)


def test_the_shortest_way_goes_over_the_edge_of_the_map(browser: Browser, address: str) -> None:
    page = browser.open(address)
    way = page.evaluate("async () => (await import('/static/map.js')).greatCircle(50, 170, 52, -160)")
    assert way.count(None) == 1
    before, after = way[: way.index(None)], way[way.index(None) + 1 :]
    assert before[0] == [50, 170] and after[-1] == [52, -160]
    assert before[-1][1] == 180 and after[0][1] == -180 and before[-1][0] == after[0][0]
    assert all(east >= 170 for _, east in before) and all(east <= -160 for _, east in after)


def test_ten_thousand_pairs_stay_fluid(browser: Browser, address: str) -> None:
    page = opened(browser, f"{address}?num=10000")
    plot = page.locator(".map-plot")
    assert plot.get_attribute("data-drawn") == "10000"
    moved = page.evaluate(
        """async () => {
            const [plot, canvas] = [".map-plot", ".map-plot canvas"].map((each) => document.querySelector(each));
            const found = [];
            for (const key of "++++" + "lurd".repeat(5)) {
                const name = { l: "ArrowLeft", u: "ArrowUp", r: "ArrowRight", d: "ArrowDown" }[key] ?? key;
                canvas.dispatchEvent(new KeyboardEvent("keydown", { key: name, bubbles: true }));
                await new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)));
                found.push([Number(plot.dataset.drawn), Number(plot.dataset.drawMs)]);
            }
            return found;
        }"""
    )
    assert min(drawn for drawn, _ in moved) <= 2500, "while it moves only some are drawn"
    spent = sorted(milliseconds for _, milliseconds in moved)
    assert spent[len(spent) // 4] < 33, "30 frames a second, also where others use the processor"
    page.get_by_role("button", name="Show the whole map").click()
    page.wait_for_selector(".map-plot[data-drawn='10000']")  # all of them as soon as it rests


def test_the_map_moves_by_keys_and_buttons_and_comes_back(browser: Browser, address: str) -> None:
    page = opened(browser, address)
    canvas = page.locator(".map-plot canvas").first

    def settled() -> str:
        page.wait_for_timeout(300)
        return str(canvas.evaluate("(canvas) => canvas.toDataURL()"))

    whole = settled()
    page.get_by_role("button", name="Zoom in").click()
    near = settled()
    assert near != whole
    canvas.focus()
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("Tab")
    assert settled() != near
    page.get_by_role("button", name="Show the whole map").click()
    assert settled() == whole
    set_theme(page, "dark")
    assert settled() != whole


def test_who_sees_no_map_has_the_pairs_as_links(browser: Browser, address: str) -> None:
    page = opened(browser, address)
    page.locator(".map summary").click()
    page.wait_for_selector(".map tbody a")
    links = page.locator(".map tbody a")
    assert links.count() > 100 and links.first.get_attribute("href").startswith("/trace/")


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_charts_and_map_can_be_used_by_everybody(browser: Browser, address: str, theme: str) -> None:
    page = opened(browser, address, theme=theme)
    page.evaluate("for (const each of document.querySelectorAll('details')) each.open = true")
    page.wait_for_selector(".map tbody")
    assert serious_violations(page) == []


@pytest.mark.parametrize("width", [320, 400, 1280])
def test_nobody_has_to_scroll_sideways(browser: Browser, address: str, width: int) -> None:
    page = opened(browser, address, width=width)
    assert overflow_px(page) == 0
