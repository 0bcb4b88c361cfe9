// The page of runs: where they stand, again and again while one goes on; figures as soon as there are others.

import { bindKeys, fetchJson } from "./base.js";
import { drawCharts } from "./charts.js";
import { element, whole } from "./dom.js";

const POLL_MS = 2000;
const MAP_MS = 10000; // at least, between two drawings of the map
const READING_MS = 400; // until the first look at the folders has come back

const WORDS = {
  running: ["running", "accent running"],
  ended: ["ended", "good"],
  stopped: ["stopped", "warn"],
  "broken off": ["broken off", "warn"],
  "no record": ["no run record", ""],
};

let now = JSON.parse(document.getElementById("now").textContent);
let shownGeneration = now.generation;
let timer = 0;
let mapDrawn = -Infinity;
let isMapStale = false;

function duration(seconds) {
  if (seconds < 90) return `${Math.round(seconds)} s`;
  return seconds < 5400 ? `${Math.round(seconds / 60)} min` : `${(seconds / 3600).toFixed(1)} h`;
}

function showRun(run, number) {
  const [words, kind] = WORDS[run.state] ?? (now.is_read ? ["no run here", ""] : ["reading …", ""]);
  const pill = document.querySelector(`[data-state="${number}"]`);
  pill.className = `pill ${kind}`;
  pill.querySelector("[data-text]").textContent = words;
  const standing = document.querySelector(`[data-standing="${number}"]`);
  const progress = document.querySelector(`[data-progress="${number}"]`);
  if (!run.state) return;
  const rows = [["done", whole.format(run.num_done) + (run.num_samples ? ` of ${whole.format(run.num_samples)}` : "")]];
  if (run.num_failed) rows.push(["failed", whole.format(run.num_failed)]);
  const isRunning = run.state === "running";
  if (isRunning) rows.push(["in flight", whole.format(run.num_in_flight)]);
  if (run.num_left) rows.push(["left", whole.format(run.num_left)]);
  if (run.num_unfinished && !isRunning) rows.push(["unfinished, with paid turns", whole.format(run.num_unfinished)]);
  if (run.rate_per_minute) rows.push(["a minute", run.rate_per_minute.toFixed(1)]);
  if (isRunning && run.seconds_left !== null) rows.push(["to go", duration(run.seconds_left)]);
  if (run.cost_usd !== null) rows.push(["spent", `$${run.cost_usd.toFixed(4)}`]);
  if (!isRunning && run.seconds_of_all_runs) rows.push(["run time", duration(run.seconds_of_all_runs)]);
  if (run.stopped_by) rows.push(["stopped it", run.stopped_by]);
  if (run.state === "broken off" && run.seconds_since_change !== null) rows.push(["since the last change", duration(run.seconds_since_change)]);
  standing.replaceChildren(...rows.map(([name, value]) => element("div", {}, element("dt", { textContent: name }), element("dd", { textContent: value }))));
  const total = Math.max(run.num_samples ?? 0, run.num_done + run.num_failed);
  progress.hidden = !total || (run.num_done >= total && !isRunning);
  const [done, failed] = [run.num_done, run.num_failed].map((each) => (100 * each) / (total || 1));
  progress.querySelector(".done").setAttribute("width", done);
  progress.querySelector(".failed").setAttribute("x", done);
  progress.querySelector(".failed").setAttribute("width", failed);
  progress.querySelector("svg").setAttribute("aria-label", `${Math.round(done)} percent done, ${Math.round(failed)} percent failed`);
}

function showNow() {
  now.runs.forEach(showRun);
  const problem = document.getElementById("problem");
  problem.hidden = !now.problem;
  problem.textContent = now.problem ?? "";
  document.body.dataset.live = now.is_live ? "yes" : "no";
}

// The page as the server has it now: the parts that are others than before are put in the place of the old ones.
async function refreshFigures() {
  const response = await fetch("/", { credentials: "same-origin" });
  if (!response.ok) return;
  const fresh = new DOMParser().parseFromString(await response.text(), "text/html");
  for (const part of fresh.querySelectorAll("[data-live]")) {
    const old = document.querySelector(`[data-live="${CSS.escape(part.dataset.live)}"]`);
    if (old && old.innerHTML !== part.innerHTML && !old.contains(document.activeElement)) old.replaceWith(part);
  }
  const freshCharts = fresh.getElementById("chart-data");
  const charts = document.getElementById("chart-data");
  if (freshCharts && !charts) return location.reload(); // the first trace
  if (freshCharts && charts.textContent !== freshCharts.textContent) {
    charts.textContent = freshCharts.textContent;
    drawCharts(document.querySelector("[data-charts]"), JSON.parse(charts.textContent));
    isMapStale = true;
  }
}

// The map anew, unless somebody is at it: it would jump back under their hands.
async function refreshMap() {
  const old = document.querySelector("[data-map]");
  if (!isMapStale || !old || performance.now() - mapDrawn < MAP_MS || old.matches(":hover, :focus-within")) return;
  mapDrawn = performance.now();
  isMapStale = false;
  const [outlines, data, { drawMap }] = await Promise.all([fetchJson(old.dataset.land), fetchJson(old.dataset.map), import("./map.js")]);
  if (!data.pairs.length) return;
  const figure = element("figure", { dataset: { ...old.dataset } });
  figure.style.minHeight = `${old.offsetHeight}px`; // what is below stays where it is
  old.replaceWith(figure);
  drawMap(figure, outlines, data);
  figure.style.minHeight = "";
}

async function poll() {
  clearTimeout(timer);
  if (document.hidden) return;
  let pause = POLL_MS;
  const began = performance.now();
  try {
    now = await fetchJson("/api/now");
    showNow();
    if (now.generation !== shownGeneration) {
      shownGeneration = now.generation;
      await refreshFigures();
      pause = Math.max(pause, 5 * (performance.now() - began));
    }
    await refreshMap();
  } catch (error) {
    document.getElementById("problem").hidden = false;
    document.getElementById("problem").textContent = error.message;
    pause = 5 * POLL_MS;
    now.is_live = true; // ask again: it may be back
  }
  plan(pause);
}

function plan(pause) {
  if (!now.is_read) timer = setTimeout(poll, READING_MS);
  else if (now.is_live || isMapStale) timer = setTimeout(poll, pause);
}

document.addEventListener("visibilitychange", () => { if (!document.hidden) poll(); });
document.getElementById("all-settings")?.addEventListener("change", (event) => {
  document.getElementById("settings").classList.toggle("only-differing", !event.target.checked);
  const equal = document.getElementById("all-equal");
  if (equal) equal.hidden = event.target.checked;
});
bindKeys(["g", "Enter"], "to the list of traces", () => { location.href = "/traces"; });

showNow();
plan(POLL_MS);
