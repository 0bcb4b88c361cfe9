// A report's list and its traces: everything is in the file. It runs as one script with the modules below.
import { drawCharts } from "./charts.js";
import { element, toggleTheme } from "./dom.js";
import { drawMap } from "./map.js";
import { letKeysScroll } from "./scrolling.js";

const read = (id) => JSON.parse(document.getElementById(id).textContent);
const { columns, rows, runs } = read("list-data");
const world = read("map-data");
const [overview, reader, steps, place] = ["overview", "reader", "steps", "place"].map((id) => document.getElementById(id));
const [search, clear, count, heads, filters, body] = ["search", "clear", "count", "heads", "filters", "rows"].map((id) => document.getElementById(id));
const FLAGS = { true: "yes", false: "no" };
const COMPARISON = /^\s*(<=|>=|<|>|=|!=)?\s*(-?[\d.]+(?:e[+-]?\d+)?)\s*$/i;
const RANGE = /^\s*(-?[\d.]+)\s*(?:…|\.\.|–)\s*(-?[\d.]+)\s*$/;

let sorting = { name: null, down: false };
let listed = rows;
let lastSeen = null;
const searched = new Map(); // the words of a trace, in lower case, once they were asked for

// How many digits the numbers of a column have behind the point: all the same, so that they stand in line.
const decimals = new Map(columns.map(({ name }) => {
  const values = rows.map((row) => row[name]).filter((value) => typeof value === "number");
  const digits = values.every(Number.isInteger) ? 0 : values.every((value) => Math.abs(value) < 10) ? 3 : 1;
  return [name, { minimumFractionDigits: digits, maximumFractionDigits: digits, useGrouping: name !== "sample_index" }];
}));

function templateOf(id) {
  return document.querySelector(`template[data-trace="${CSS.escape(id)}"]`);
}

function wordsOf(row) {
  if (!searched.has(row.id)) {
    const cells = columns.map((column) => shown(row, column)).join(" ");
    searched.set(row.id, `${cells} ${templateOf(row.id)?.content.textContent ?? ""}`.toLowerCase());
  }
  return searched.get(row.id);
}

function shown(row, column) {
  const value = row[column.name];
  if (value === null || value === undefined) return "–";
  if (column.name === "run") return runs[value];
  if (column.kind === "flag") return FLAGS[value];
  if (typeof value === "number") return value.toLocaleString("en-US", decimals.get(column.name));
  return String(value);
}

/** What a filter's words ask of a value: `0.5`, `>0.5`, `1..3` of numbers, a part of the text of all others. */
function test(column, words) {
  if (column.kind === "number" && column.name !== "run") {
    const range = words.match(RANGE);
    if (range) return (value) => value !== null && value >= Number(range[1]) && value <= Number(range[2]);
    const match = words.match(COMPARISON);
    if (!match || Number.isNaN(Number(match[2]))) return null;
    const other = Number(match[2]);
    const compare = { "<": (a) => a < other, "<=": (a) => a <= other, ">": (a) => a > other, ">=": (a) => a >= other, "!=": (a) => a !== other };
    const passes = compare[match[1]] ?? ((a) => a === other);
    return (value) => value !== null && passes(value);
  }
  return (_, row) => shown(row, column).toLowerCase().includes(words.toLowerCase());
}

function refresh() {
  const tests = [];
  for (const input of filters.querySelectorAll("input")) {
    const words = input.value.trim();
    const column = columns[Number(input.dataset.column)];
    const passes = words ? test(column, words) : () => true;
    input.setAttribute("aria-invalid", String(!passes));
    if (words && passes) tests.push((row) => passes(row[column.name] ?? null, row));
  }
  const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
  if (words.length) tests.push((row) => words.every((word) => wordsOf(row).includes(word)));
  listed = rows.filter((row) => tests.every((passes) => passes(row)));
  const { name, down } = sorting;
  if (name) {
    listed.sort((one, other) => {
      const [a, b] = [one[name] ?? null, other[name] ?? null];
      if (a === null || b === null) return (a === null) - (b === null);
      const order = typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b), "en", { numeric: true });
      return down ? -order : order;
    });
  }
  count.textContent = listed.length === rows.length ? rows.length.toLocaleString("en-US") : `${listed.length.toLocaleString("en-US")} of ${rows.length.toLocaleString("en-US")}`;
  clear.hidden = !name && ![search, ...filters.querySelectorAll("input")].some((input) => input.value);
  body.replaceChildren(...listed.map(rowOf));
}

function rowOf(row) {
  const cells = columns.map((column, position) => {
    const words = shown(row, column);
    const isNumber = column.kind === "number" && column.name !== "run";
    const inside = position === firstColumn ? element("a", { href: `#${encodeURI(row.id)}`, textContent: words }) : words;
    return element("td", { className: isNumber ? "num" : "", title: words.length > 24 ? words : "" }, inside);
  });
  const made = element("tr", { className: row.id === lastSeen ? "seen" : "" }, ...cells);
  made.addEventListener("click", () => { location.hash = encodeURI(row.id); });
  return made;
}

const firstColumn = Math.max(0, columns.findIndex((column) => column.name === "sample_index"));

for (const [position, column] of columns.entries()) {
  const button = element("button", { type: "button", textContent: column.heading, title: `Sort by ${column.heading}` });
  const head = element("th", { scope: "col" }, button);
  button.addEventListener("click", () => {
    const before = sorting;
    if (before.name !== column.name) sorting = { name: column.name, down: column.kind === "number" && column.name !== "sample_index" };
    else sorting = { name: column.name, down: !before.down };
    for (const other of heads.children) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", sorting.down ? "descending" : "ascending");
    refresh();
  });
  heads.append(head);
  const isNumber = column.kind === "number" && column.name !== "run";
  const input = element("input", { type: "text", autocomplete: "off", spellcheck: false, size: 5, placeholder: isNumber ? ">0.5" : "has" });
  input.dataset.column = position;
  input.setAttribute("aria-label", `Filter by ${column.heading}`);
  input.addEventListener("input", refresh);
  filters.append(element("td", {}, input));
}
search.addEventListener("input", refresh);
clear.addEventListener("click", () => {
  for (const input of [search, ...filters.querySelectorAll("input")]) input.value = "";
  for (const head of heads.children) head.removeAttribute("aria-sort");
  sorting = { name: null, down: false };
  refresh();
  search.focus();
});

// --- one trace

const WORDS = { matched: "verified", differs: "differs", unstated: "no hash kept", missing: "missing" };
const KINDS = { matched: "good", differs: "bad", unstated: "", missing: "warn" };

function openTrace(id) {
  const article = templateOf(id).content.cloneNode(true);
  const pictures = JSON.parse(document.querySelector(`script[data-pictures="${CSS.escape(id)}"]`).textContent);
  for (const figure of article.querySelectorAll("figure.pic")) fill(figure, pictures[figure.dataset.number] ?? pictures[0]);
  for (const button of article.querySelectorAll(".show-all")) {
    button.replaceWith(element("p", { className: "muted small", textContent: `… cut: ${button.textContent.replace("Show all", "all are").trim()}` }));
  }
  for (const svg of article.querySelectorAll(".trace-map")) svg.hidden = true;
  reader.replaceChildren(article);
  const pair = world?.data.pairs.find((each) => each[0] && decodeURIComponent(each[0].slice(1)) === id);
  const map = reader.querySelector(".trace-map");
  if (pair && map) {
    map.hidden = false;
    drawMap(map, world.land, { pairs: [[null, ...pair.slice(1)]], total: 1 }, { fit: true, label: "Answer and truth" });
  }
}

/** Puts a picture of the file into its frame, or says why there is none. */
function fill(figure, picture) {
  const [image, pill] = [figure.querySelector("img"), figure.querySelector(".hash .pill")];
  const frame = figure.querySelector(".pic-frame");
  const open = figure.querySelector(".pic-open");
  const box = element("div", { className: "pic-open" }, ...open.childNodes);
  open.replaceWith(box);
  pill.textContent = WORDS[picture?.match] ?? "missing";
  pill.className = `pill ${KINDS[picture?.match] ?? "warn"}`;
  pill.title = picture?.detail ?? "";
  if (picture?.data) {
    image.removeAttribute("loading");
    image.src = picture.data;
  } else {
    figure.classList.add("is-missing");
    frame.replaceWith(element("span", { className: "pic-missing", textContent: picture?.detail ?? "There is no picture." }));
  }
}

/** The trace that the address names. */
function asked() {
  try {
    return decodeURIComponent(location.hash.slice(1));
  } catch {
    return "";
  }
}

function follow() {
  const id = asked();
  const isTrace = Boolean(id) && templateOf(id) !== null;
  overview.hidden = isTrace;
  reader.hidden = steps.hidden = !isTrace;
  if (isTrace) {
    openTrace(id);
    lastSeen = id;
    const position = listed.findIndex((row) => row.id === id);
    place.textContent = position < 0 ? "" : `${(position + 1).toLocaleString("en-US")} of ${listed.length.toLocaleString("en-US")}`;
    document.getElementById("before").disabled = position <= 0;
    document.getElementById("after").disabled = position < 0 || position + 1 >= listed.length;
    scrollTo(0, 0);
    document.getElementById("main").focus({ preventScroll: true });
  } else {
    refresh();
    body.querySelector(".seen")?.scrollIntoView({ block: "center" });
  }
}

function step(by) {
  const position = listed.findIndex((row) => row.id === asked());
  const next = position < 0 ? undefined : listed[position + by];
  if (next) location.hash = encodeURI(next.id);
}

document.getElementById("before").addEventListener("click", () => step(-1));
document.getElementById("after").addEventListener("click", () => step(1));
document.getElementById("theme").addEventListener("click", toggleTheme);
addEventListener("hashchange", follow);
addEventListener("keydown", (event) => {
  if (event.defaultPrevented || event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.target.closest?.("input, textarea")) {
    if (event.key === "Escape") event.target.blur();
    return;
  }
  const keys = { j: () => step(1), ArrowRight: () => step(1), k: () => step(-1), ArrowLeft: () => step(-1), Escape: () => { location.hash = ""; }, "/": () => search.focus() };
  if (!keys[event.key]) return;
  event.preventDefault();
  keys[event.key]();
});

if (world) drawMap(document.getElementById("map"), world.land, world.data);
follow();
letKeysScroll(document.body);
