// The list of traces: only the rows in sight are in the page, the others come in pieces as they are scrolled to.
// What is shown is what the address says: conditions, search, SQL, order, columns.

import { bindKeys, fetchJson, postJson, say } from "./base.js";
import { element, whole } from "./dom.js";

const given = JSON.parse(document.getElementById("state").textContent);
const columns = new Map(given.columns.map((column) => [column.name, column]));
const PIECE = given.piece_size;
const ROW_PX = 32;
const THUMB_ROW_PX = 86;
const BEYOND = 12; // rows drawn above and below what is seen
const POLL_MS = 2000;
const TYPING_MS = 250;
const at = (id) => document.getElementById(id);
const scroller = at("scroller");
const body = at("rows");

// --- what the address says ---

let view = readAddress();

function readAddress() {
  const params = new URLSearchParams(location.search);
  const asked = (params.get("cols") ?? "").split(",").filter((name) => columns.has(name));
  return {
    filters: params.getAll("f"),
    search: params.get("q") ?? "",
    where: params.get("where") ?? "",
    sort: (params.get("sort") ?? "").split(",").filter(Boolean),
    columns: asked.length ? asked : given.defaults,
    thumbs: params.get("photos") === "1",
  };
}

/** The part of the address that says which traces, in what order: a trace's page keeps it. */
function queryOf(shown) {
  const params = new URLSearchParams();
  for (const filter of shown.filters) params.append("f", filter);
  if (shown.search) params.set("q", shown.search);
  if (shown.where) params.set("where", shown.where);
  if (shown.sort.length) params.set("sort", shown.sort.join(","));
  return params;
}

function addressOf(shown) {
  const params = queryOf(shown);
  if (shown.columns !== given.defaults && shown.columns.join() !== given.defaults.join()) params.set("cols", shown.columns.join(","));
  if (shown.thumbs) params.set("photos", "1");
  return params;
}

/** Show something else: the address says it, and Back leads to what was before. */
function change(what, { replaces = false } = {}) {
  const before = queryOf(view).toString();
  view = { ...view, ...what };
  const params = addressOf(view).toString();
  history[replaces ? "replaceState" : "pushState"](null, "", params ? `?${params}` : location.pathname);
  if (queryOf(view).toString() !== before) {
    active = null;
    scroller.scrollTop = 0;
    reload({ keepsOld: true });
  } else {
    reload({ keepsOld: false });
  }
  showTools();
}

addEventListener("popstate", () => {
  view = readAddress();
  reload({ keepsOld: true });
  showTools();
});

// --- rows, in pieces ---

let pieces = new Map(); // number of a piece → its rows, or a promise of them
let stale = new Map(); // as they were before a change: shown until the new ones are there
let total = 0;
let generation = given.now.generation;
let asked = 0; // counts changes: answers to earlier questions are thrown away
let active = null; // the row that keys move

function rowAt(index) {
  const number = Math.floor(index / PIECE);
  const piece = pieces.get(number);
  if (Array.isArray(piece)) return piece[index % PIECE];
  const old = stale.get(number);
  return Array.isArray(old) ? old[index % PIECE] : undefined;
}

async function load(number) {
  if (pieces.has(number)) return;
  const mine = asked;
  const params = addressOf(view);
  params.delete("photos");
  params.set("offset", number * PIECE);
  params.set("limit", PIECE);
  const coming = fetchJson(`/api/rows?${params}`);
  pieces.set(number, coming);
  try {
    const piece = await coming;
    if (mine !== asked) return;
    take(number, piece);
    showError("");
  } catch (error) {
    if (mine !== asked) return;
    pieces.delete(number);
    showError(error.message);
  }
  draw();
}

function take(number, piece) {
  pieces.set(number, piece.rows);
  stale.delete(number);
  if (piece.total !== undefined) {
    total = piece.total;
    at("num-keep").textContent = whole.format(piece.marks.keep);
    at("num-drop").textContent = whole.format(piece.marks.drop);
  }
}

async function reload({ keepsOld = true, first = null } = {}) {
  asked += 1;
  stale = keepsOld ? new Map([...pieces, ...stale].filter(([, piece]) => Array.isArray(piece))) : new Map();
  pieces = new Map();
  if (first?.error) {
    total = 0;
    showError(first.error);
  } else if (first) {
    take(0, first);
  }
  drawHeads();
  await load(0);
  stale.clear();
  draw();
}

function showError(text) {
  at("list-error").hidden = !text;
  at("list-error").textContent = text;
  if (text) { total = 0; stale.clear(); draw(); }
}

// --- the table ---

const WIDTHS = { number: 92, flag: 84, text: 190 };
const NARROW = { sample_index: 92, turns: 66, calls: 66, failed_calls: 96, rollout: 76, mark: 70, stop_reason: 120, score: 116, tools: 230 };

function widthOf(column) {
  if (column.name === "run") return Math.min(230, Math.max(96, 44 + 8 * Math.max(...given.runs.map((name) => name.length))));
  return NARROW[column.name] ?? WIDTHS[column.kind];
}

function shownColumns() {
  return view.columns.map((name) => columns.get(name));
}

function isFigure(column) {
  return column.kind === "number" && !["sample_index", "run"].includes(column.name);
}

let drawnHeads = ""; // what the heads were made for: a click begins and ends on the same button

function drawHeads() {
  const shown = shownColumns();
  const made = JSON.stringify([view.columns, view.sort, view.thumbs]);
  showFilters();
  if (made === drawnHeads) return;
  drawnHeads = made;
  const cols = [element("col", { dataset: { width: "40" } }), ...(view.thumbs ? [element("col", { dataset: { width: "124" } })] : []),
    ...shown.map((column) => element("col", { dataset: { width: widthOf(column) } })), element("col")];
  for (const col of cols) if (col.dataset.width) col.style.width = `${col.dataset.width}px`;
  at("cols").replaceChildren(...cols);
  const markHead = element("th", { scope: "col" }, element("span", { className: "unseen", textContent: "mark" }));
  const heads = [markHead];
  if (view.thumbs) heads.push(element("th", { scope: "col" }, element("span", { className: "unseen", textContent: "photo" })));
  for (const column of shown) heads.push(headOf(column));
  at("heads").replaceChildren(...heads, element("th", { ariaHidden: "true" }));
  at("filters").replaceChildren(element("td"), ...(view.thumbs ? [element("td")] : []), ...shown.map(filterOf), element("td"));
  at("traces").classList.toggle("thumbs", view.thumbs);
}

/** The fields say what the address says, but for the one that somebody writes in. */
function showFilters() {
  for (const input of at("filters").querySelectorAll("input, select")) {
    if (input === document.activeElement) continue;
    input.value = textOf(columns.get(input.dataset.filter));
    input.classList.toggle("set", input.value !== "");
  }
}

function headOf(column) {
  const place = view.sort.findIndex((name) => name.replace(/^-/, "") === column.name);
  const way = place < 0 ? "none" : view.sort[place].startsWith("-") ? "descending" : "ascending";
  const button = element("button", { type: "button", className: "head", title: `${column.name}: sort; Shift adds to the order` },
    element("span", { textContent: column.heading }),
    element("span", { className: "way", ariaHidden: "true", textContent: way === "none" ? "" : way === "ascending" ? "▲" : "▼" }));
  button.addEventListener("click", (event) => sortBy(column, event.shiftKey));
  const head = element("th", { scope: "col", className: isFigure(column) ? "num" : "" }, button);
  head.setAttribute("aria-sort", way);
  return head;
}

function sortBy(column, adds) {
  const first = column.kind === "number" && column.name !== "sample_index" && column.name !== "run" ? `-${column.name}` : column.name;
  const other = first.startsWith("-") ? column.name : `-${column.name}`;
  const now = view.sort.find((name) => name.replace(/^-/, "") === column.name);
  const next = now === undefined ? [first] : now === first ? [other] : [];
  const others = adds ? view.sort.filter((name) => name.replace(/^-/, "") !== column.name) : [];
  change({ sort: [...others, ...next] });
}

// --- conditions: a field under each heading; those of other columns are chips ---

const SIGN = /^(<=|>=|!=|=|<|>|~|!)?(.*)$/s;

/** What is typed under a heading, as conditions of the address; null where it makes no sense. */
function conditionsOf(column, text) {
  const trimmed = text.trim();
  if (!trimmed) return [];
  if (trimmed === "null" || trimmed === "–") return [`${column.name}:null`];
  if (trimmed === "!null" || trimmed === "known") return [`${column.name}:known`];
  if (column.kind === "text") {
    const [, sign = "~", value] = trimmed.match(SIGN);
    return [`${column.name}${sign === "!" ? "!=" : sign}${value.trim()}`];
  }
  const range = trimmed.match(/^(-?[\d.eE+]+)\s*(?:\.\.|–)\s*(-?[\d.eE+]+)$/);
  if (range) return [`${column.name}>=${range[1]}`, `${column.name}<=${range[2]}`];
  return trimmed.replace(/([<>=!]+)\s+/g, "$1").split(/[\s,]+/).map((part) => {
    const [, sign = "=", value] = part.match(SIGN);
    return `${column.name}${sign === "!" ? "!=" : sign}${value}`;
  });
}

/** A condition of the address as its column, its sign and its value; a sign without a value is `:null` or `:known`. */
function partsOf(filter) {
  const known = filter.match(/^(.*)(:null|:known)$/s);
  if (known) return [known[1], known[2], ""];
  const [, name, sign, value] = filter.match(/^([^<>=!~]+)(<=|>=|!=|=|<|>|~)?(.*)$/s) ?? ["", filter, "", ""];
  return [name, sign ?? "", value];
}

function columnOfFilter(filter) {
  return partsOf(filter)[0];
}

/** The other way round: what stands in the field for a column's conditions. */
function textOf(column) {
  const isText = column.kind === "text";
  const typed = { ":null": "null", ":known": "!null", [isText ? "~" : "="]: "", ...(isText ? { "!=": "!" } : {}) };
  const own = view.filters.map(partsOf).filter(([name]) => name === column.name);
  return own.map(([, sign, value]) => (typed[sign] ?? sign) + value).join(isText ? " & " : " ");
}

const HINTS = { number: "> 0.5, 1..9", flag: "yes, no", text: "contains" };

/** Runs are chosen by their names, not by their numbers. */
function runChoice() {
  const select = element("select", { ariaLabel: "Filter by run", dataset: { filter: "run" } },
    element("option", { value: "", textContent: "all" }), ...given.runs.map((name, value) => element("option", { value, textContent: name })));
  select.value = textOf(columns.get("run"));
  select.addEventListener("change", () => {
    const others = view.filters.filter((filter) => columnOfFilter(filter) !== "run");
    change({ filters: select.value === "" ? others : [...others, `run=${select.value}`] });
  });
  return element("td", {}, select);
}

function filterOf(column) {
  if (column.name === "run") return runChoice();
  const text = textOf(column);
  const input = element("input", {
    value: text, placeholder: HINTS[column.kind], className: text ? "set" : "", autocomplete: "off", spellcheck: false,
    ariaLabel: `Filter by ${column.heading}`, dataset: { filter: column.name },
  });
  let typed = 0;
  const apply = () => {
    clearTimeout(typed);
    const [own, others] = [true, false].map((isOwn) => view.filters.filter((filter) => (columnOfFilter(filter) === column.name) === isOwn));
    const conditions = conditionsOf(column, input.value);
    if (conditions.join() === own.join() || input.value === textOf(column)) return;
    input.classList.toggle("set", conditions.length > 0);
    change({ filters: [...others, ...conditions] }, { replaces: true });
  };
  input.addEventListener("input", () => { clearTimeout(typed); if (!/(^|[<>=!~])$/.test(input.value.trim()) || !input.value.trim()) typed = setTimeout(apply, TYPING_MS); });
  input.addEventListener("change", apply);
  input.addEventListener("keydown", (event) => {
    if (event.key === "Enter") { apply(); scroller.focus(); }
    if (event.key === "ArrowDown") { event.preventDefault(); apply(); move(0); }
  });
  input.addEventListener("focus", () => offerValues(column, input), { once: true });
  return element("td", {}, input);
}

async function offerValues(column, input) {
  if (column.kind !== "text") return;
  try {
    const { values } = await fetchJson(`/api/values?column=${encodeURIComponent(column.name)}`);
    if (values.length > 30 || values.some(([value]) => value.length > 60)) return;
    const list = element("datalist", { id: `values-${column.name}` }, ...values.map(([value]) => element("option", { value })));
    input.after(list);
    input.setAttribute("list", list.id);
  } catch {
    // it can be typed
  }
}

const WORDED = { "!=": "is not ", "<=": "≤ ", ">=": "≥ ", "~": "contains ", "=": "= ", "<": "< ", ">": "> ", ":null": "is not known", ":known": "is known" };

function worded(filter) {
  const [name, sign, value] = partsOf(filter);
  const heading = columns.get(name)?.heading ?? name;
  const run = name === "run" && value ? given.runs[Number(value)] : undefined;
  return `${heading} ${WORDED[sign] ?? ""}${run ?? value}`;
}

function showTools() {
  const shown = new Set(view.columns);
  const hidden = view.filters.filter((filter) => !shown.has(columnOfFilter(filter)));
  const chips = hidden.map((filter) => chip(worded(filter), () => change({ filters: view.filters.filter((each) => each !== filter) })));
  if (view.where && at("where-row").hidden) chips.push(chip(`where ${view.where}`, () => change({ where: "" })));
  const isFiltered = view.filters.length || view.search || view.where;
  at("clear-all").hidden = !isFiltered;
  at("chips").replaceChildren(...chips);
  at("chips").hidden = !chips.length;
  if (document.activeElement !== at("search")) at("search").value = view.search;
  if (document.activeElement !== at("where")) at("where").value = view.where;
  at("thumbs-button").setAttribute("aria-pressed", view.thumbs);
  for (const button of document.querySelectorAll("[data-mark]")) {
    button.setAttribute("aria-pressed", view.filters.includes(`mark=${button.dataset.mark}`));
  }
  document.title = document.title.replace(/^[^·]*/, isFiltered ? "Traces (filtered) " : "Traces ");
}

function chip(text, remove) {
  const button = element("button", { type: "button", textContent: "×", ariaLabel: `Remove: ${text}`, onclick: remove });
  return element("span", { className: "chip" }, element("span", { textContent: text, title: text }), button);
}

function clearAll() {
  change({ filters: [], search: "", where: "" });
  at("where-row").hidden = true;
  at("where-button").setAttribute("aria-expanded", "false");
  showTools();
}

// --- rows in sight ---

const drawn = new Map(); // index → its row in the page, and what it was made of

function rowHeight() {
  return view.thumbs ? THUMB_ROW_PX : ROW_PX;
}

function draw() {
  const height = rowHeight();
  const headPx = at("traces").tHead.offsetHeight;
  const first = Math.max(0, Math.floor(scroller.scrollTop / height) - BEYOND);
  const last = Math.min(total, Math.ceil((scroller.scrollTop + scroller.clientHeight - headPx) / height) + BEYOND);
  for (const [index, row] of drawn) {
    if (index < first || index >= last) {
      row.node.remove();
      drawn.delete(index);
    }
  }
  let before = null;
  for (let index = first; index < last; index += 1) {
    const data = rowAt(index);
    let row = drawn.get(index);
    const key = data ? `${JSON.stringify(data)}${view.columns}${view.thumbs}` : "";
    if (!row || row.key !== key) {
      const node = data ? rowOf(index, data) : waitingRow(index);
      const hadFocus = row?.node.contains(document.activeElement);
      if (row) row.node.replaceWith(node);
      row = { node, key };
      drawn.set(index, row);
      if (hadFocus) node.querySelector("a")?.focus({ preventScroll: true });
    }
    row.node.toggleAttribute("aria-current", index === active);
    if (index === active) row.node.setAttribute("aria-current", "true");
    const follows = before ? before.nextSibling : body.firstChild;
    if (follows !== row.node) body.insertBefore(row.node, follows);
    before = row.node;
  }
  at("above").style.height = `${first * height}px`;
  at("below").style.height = `${Math.max(0, total - last) * height}px`;
  at("traces").setAttribute("aria-rowcount", total + 2);
  const noun = total === 1 ? "trace" : "traces";
  at("total").textContent = at("list-error").hidden ? `${whole.format(total)} ${noun}` : "";
  at("nothing").hidden = total > 0 || pieces.size === 0 || !Array.isArray(pieces.get(0)) || !at("list-error").hidden;
  for (let number = Math.floor(first / PIECE); number <= Math.floor(Math.max(first, last - 1) / PIECE); number += 1) {
    if (number * PIECE < total) load(number);
  }
}

function waitingRow(index) {
  const cells = 2 + view.columns.length + view.thumbs;
  const row = element("tr", { className: "waiting" }, ...Array.from({ length: cells }, () => element("td")));
  row.setAttribute("aria-rowindex", index + 3);
  return row;
}

function placeOf(data) {
  const part = data.file.replace(/^trace_/, "").replace(/\.json$/, "").replace(/\p{Surrogate}/gu, "\ufffd");
  return `${data.run}/${encodeURIComponent(part)}`;
}

function linkOf(data) {
  const query = queryOf(view).toString();
  return `/trace/${placeOf(data)}${query ? `?${query}` : ""}`;
}

function rowOf(index, data) {
  const row = element("tr", { dataset: { index } }, markCell(data));
  row.setAttribute("aria-rowindex", index + 3);
  if (view.thumbs) row.append(element("td", {}, thumbOf(data)));
  const shown = shownColumns();
  const hasId = shown.some((column) => column.name === "sample_index");
  shown.forEach((column, place) => row.append(cellOf(column, data, linkOf(data), hasId ? column.name === "sample_index" : place === 0)));
  row.append(element("td"));
  return row;
}

function markCell(data) {
  const cell = element("td", { className: "mark" });
  if (data.mark === "keep") cell.append(element("span", { className: "mark-sign keep", textContent: "✓", title: "keep" }));
  if (data.mark === "drop") cell.append(element("span", { className: "mark-sign drop", textContent: "✗", title: "drop" }));
  if (data.note) cell.append(element("span", { className: "note-sign", textContent: "✎", title: data.note }));
  return cell;
}

function thumbOf(data) {
  const image = element("img", { className: "thumb", loading: "lazy", alt: "", src: `/picture/${placeOf(data)}/0?view=thumb` });
  image.addEventListener("error", () => image.classList.add("failed"), { once: true });
  return image;
}

function cellOf(column, data, link, isLink) {
  const value = data[column.name];
  const cell = element("td", { className: isFigure(column) ? "num" : "" });
  let content;
  if (column.name === "sample_index" && value !== null) {
    content = String(value) + (data.rollout ? `_r${data.rollout}` : "");
  } else if (column.name === "run") {
    content = given.runs[value];
    cell.title = content;
    cell.append(element("span", { className: `swatch s${value}`, ariaHidden: "true" }));
  } else if (value === null || value === undefined) {
    cell.classList.add("null");
    content = "–";
  } else if (column.name === "score") {
    const bar = element("i");
    bar.style.setProperty("--share", Math.min(1, Math.max(0, value)));
    content = element("span", { className: "score-cell" }, element("span", { className: "score-bar", ariaHidden: "true" }, bar), element("span", { textContent: value.toFixed(3) }));
  } else if (column.kind === "flag") {
    content = element("span", { className: value ? "yes" : "no", textContent: value ? "yes" : "no" });
  } else if (column.kind === "number") {
    content = figure(value);
  } else {
    content = String(value).slice(0, 300);
    if (column.name === "tools") content = content.replaceAll(",", ", ");
    cell.title = String(value).slice(0, 2000);
  }
  cell.append(isLink ? element("a", { className: "id", href: link }, content) : content);
  return cell;
}

function figure(value) {
  if (Number.isInteger(value)) return whole.format(value);
  const size = Math.abs(value);
  if (size >= 1e9 || size < 1e-4) return value.toPrecision(3);
  return value.toLocaleString("en", { maximumFractionDigits: size >= 100 ? 1 : size >= 1 ? 2 : 4 });
}

body.addEventListener("click", (event) => {
  const row = event.target.closest("tr[data-index]");
  if (!row || event.target.closest("a") || getSelection().toString()) return;
  const link = row.querySelector("a.id").href;
  if (event.ctrlKey || event.metaKey) open(link);
  else location.href = link;
});
body.addEventListener("focusin", (event) => {
  const row = event.target.closest("tr[data-index]");
  if (row && Number(row.dataset.index) !== active) {
    active = Number(row.dataset.index);
    draw();
  }
});

let isDrawing = false;
function drawSoon() {
  if (isDrawing) return;
  isDrawing = true;
  requestAnimationFrame(() => { isDrawing = false; draw(); });
}
scroller.addEventListener("scroll", drawSoon, { passive: true });
new ResizeObserver(drawSoon).observe(scroller);

// --- keys ---

function show(index) {
  const height = rowHeight();
  const headPx = at("traces").tHead.offsetHeight;
  const top = index * height;
  const bottom = top + height;
  const seen = scroller.clientHeight - headPx;
  if (top < scroller.scrollTop) scroller.scrollTop = top;
  else if (bottom > scroller.scrollTop + seen) scroller.scrollTop = bottom - seen;
}

function move(step, isPlace = false) {
  if (!total) return;
  const from = active === null ? Math.floor(scroller.scrollTop / rowHeight()) - (step > 0 ? 1 : 0) : active;
  active = Math.min(total - 1, Math.max(0, isPlace ? step : active === null && step === 0 ? 0 : from + step));
  show(active);
  draw();
  drawn.get(active)?.node.querySelector("a")?.focus({ preventScroll: true });
}

async function markActive(changes) {
  const data = active === null ? undefined : rowAt(active);
  if (!data) return say("Choose a row first: j and k move.");
  const before = { mark: data.mark, note: data.note };
  if ("mark" in changes && changes.mark === data.mark) changes.mark = null; // the same key again takes it away
  Object.assign(data, changes);
  draw();
  try {
    Object.assign(data, await postJson("/api/mark", { run: data.run, file: data.file, ...changes }));
    say("note" in changes ? "Note saved" : changes.mark ? `Marked: ${changes.mark}` : "Mark taken away");
    await refreshCounts();
  } catch (error) {
    Object.assign(data, before);
    say(error.message, "bad");
  }
  draw();
}

async function refreshCounts() {
  const params = addressOf(view);
  params.delete("photos");
  params.set("limit", "0");
  const { marks } = await fetchJson(`/api/rows?${params}`);
  at("num-keep").textContent = whole.format(marks.keep);
  at("num-drop").textContent = whole.format(marks.drop);
}

function writeNote() {
  const data = active === null ? undefined : rowAt(active);
  if (!data) return say("Choose a row first: j and k move.");
  at("note-title").textContent = `Note on sample ${data.sample_index}${data.rollout ? `_r${data.rollout}` : ""}`;
  at("note-text").value = data.note ?? "";
  at("note").returnValue = "";
  at("note").showModal();
  at("note-text").focus();
}

at("note").addEventListener("close", () => {
  if (at("note").returnValue === "save") markActive({ note: at("note-text").value.trim() || null });
});
at("note-text").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) { event.preventDefault(); at("note").close("save"); }
});

const seenRows = () => Math.max(1, Math.floor((scroller.clientHeight - at("traces").tHead.offsetHeight) / rowHeight()) - 1);
bindKeys(["j", "ArrowDown"], "next trace", () => move(1));
bindKeys(["k", "ArrowUp"], "previous trace", () => move(-1));
bindKeys(["Enter", "o"], "open it", (event) => {
  if (event.target.closest?.("a, button, summary, label") || active === null) return false;
  location.href = linkOf(rowAt(active));
  return true;
});
bindKeys(["PageDown"], "", () => move(seenRows()));
bindKeys(["PageUp"], "", () => move(-seenRows()));
bindKeys(["g", "Home"], "first trace", () => move(0, true));
bindKeys(["G", "End"], "last trace", () => move(total - 1, true));
bindKeys(["m"], "mark: keep (again takes it away)", () => { markActive({ mark: "keep" }); });
bindKeys(["d"], "mark: drop (again takes it away)", () => { markActive({ mark: "drop" }); });
bindKeys(["u"], "take the mark away", () => { markActive({ mark: null }); });
bindKeys(["n"], "write a note", writeNote);
bindKeys(["/"], "search conversations", () => at("search").select());
bindKeys(["f"], "filter by a column", () => at("filters").querySelector("input")?.select());
bindKeys(["s"], "any SQL condition", toggleWhere);
bindKeys(["c"], "choose columns", showColumns);
bindKeys(["t"], "photos", () => change({ thumbs: !view.thumbs }));
bindKeys(["x"], "clear all conditions", clearAll);

// --- search, SQL, columns, marks ---

let typing = 0;
at("search").addEventListener("input", () => {
  clearTimeout(typing);
  typing = setTimeout(() => change({ search: at("search").value.trim() }, { replaces: true }), TYPING_MS);
});
at("search").addEventListener("keydown", (event) => {
  if (event.key === "ArrowDown" || event.key === "Enter") { event.preventDefault(); move(0, true); }
});

function toggleWhere() {
  const row = at("where-row");
  row.hidden = !row.hidden;
  at("where-button").setAttribute("aria-expanded", !row.hidden);
  if (!row.hidden) at("where").focus();
  showTools();
}
at("where-button").addEventListener("click", toggleWhere);
at("where-row").addEventListener("submit", (event) => {
  event.preventDefault();
  change({ where: at("where").value.trim() });
});
at("thumbs-button").addEventListener("click", () => change({ thumbs: !view.thumbs }));
at("clear").addEventListener("click", clearAll);
at("clear-all").addEventListener("click", clearAll);
for (const button of document.querySelectorAll("[data-mark]")) {
  button.addEventListener("click", () => {
    const filter = `mark=${button.dataset.mark}`;
    const others = view.filters.filter((each) => columnOfFilter(each) !== "mark");
    change({ filters: view.filters.includes(filter) ? others : [...others, filter] });
  });
}

const GROUPS = [["trace", "Of the trace"], ["metric", "What was measured"], ["row", "Of the dataset's row"], ["mark", "Marks"]];

function showColumns() {
  const dialog = at("columns");
  const chosen = new Set(view.columns);
  const list = GROUPS.flatMap(([source, title]) => {
    const own = given.columns.filter((column) => column.source === source && (column.name !== "run" || given.runs.length > 1));
    return own.length ? [element("h3", { textContent: title }), ...own.map((column) => columnChoice(column, chosen))] : [];
  });
  at("columns-list").replaceChildren(...list);
  at("columns-search").value = "";
  if (!dialog.open) dialog.showModal();
  at("columns-search").focus();
}

function columnChoice(column, chosen) {
  const box = element("input", { type: "checkbox", checked: chosen.has(column.name) });
  box.addEventListener("change", () => {
    const names = box.checked ? [...view.columns, column.name] : view.columns.filter((name) => name !== column.name);
    if (names.length) change({ columns: names });
    else box.checked = true;
  });
  return element("label", { className: "column-choice", dataset: { find: `${column.name} ${column.heading}`.toLowerCase() } },
    box, element("span", { textContent: column.heading }), element("code", { textContent: column.name }));
}
at("columns-button").addEventListener("click", showColumns);
at("columns-default").addEventListener("click", () => { change({ columns: given.defaults }); showColumns(); });
at("columns-search").addEventListener("input", () => {
  const words = at("columns-search").value.toLowerCase();
  for (const choice of at("columns-list").querySelectorAll(".column-choice")) choice.hidden = !choice.dataset.find.includes(words);
});

// --- a run that goes on ---

let timer = 0;
async function poll() {
  clearTimeout(timer);
  if (document.hidden) return;
  let now = { is_live: true, is_read: true };
  try {
    now = await fetchJson("/api/now");
    if (now.generation !== generation) {
      generation = now.generation;
      const key = active === null ? null : rowAt(active);
      await reload({ keepsOld: true });
      keepActive(key);
    }
  } catch (error) {
    say(error.message, "bad");
  }
  plan(now);
}

/** Rows that came in before the active one do not move the choice to another trace. */
function keepActive(key) {
  if (!key || sameTrace(rowAt(active), key)) return;
  for (const [number, piece] of pieces) {
    const place = Array.isArray(piece) ? piece.findIndex((row) => sameTrace(row, key)) : -1;
    if (place >= 0) active = number * PIECE + place;
  }
  draw();
}

function sameTrace(a, b) {
  return a !== undefined && a.run === b.run && a.file === b.file;
}

function plan(now) {
  if (!now.is_read || now.is_live) timer = setTimeout(poll, now.is_read ? POLL_MS : 400);
}
document.addEventListener("visibilitychange", () => { if (!document.hidden) poll(); });

if (given.num_broken) {
  at("broken").hidden = false;
  at("broken").textContent = `${whole.format(given.num_broken)} unreadable`;
}
if (view.where) {
  at("where-row").hidden = false;
  at("where-button").setAttribute("aria-expanded", "true");
}
showTools();
reload({ first: given.first });
plan(given.now);
