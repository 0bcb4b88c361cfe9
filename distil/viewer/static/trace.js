// The page of one trace: pictures as they are made, a lightbox, marks, steps, and what is loaded when asked for.

import { bindKeys, fetchJson, postJson, say } from "./base.js";
import { element } from "./dom.js";

const TREE_PIECE = 200; // entries of a list that are shown at once
const TEXT_CHARS = 2000; // of a text in the tree
const CHUNK_CHARS = 8000; // of a long text
const SHOWN_PLACES = 400; // marks of unseen letters in one text, above which they are plain text
// Letters that show nothing by themselves; distil/viewer/visible.py says the same.
const UNSEEN = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u00ad\u0600-\u0605\u061c\u06dd\u070f\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufe00-\ufe0e\ufeff\ufff9-\ufffc\ud800-\udfff\ue000-\uf8ff\u{e0000}-\u{10ffff}]/gu;
const WORDS = {
  matched: ["good", "verified"],
  differs: ["bad", "differs"],
  unstated: ["", "no hash kept"],
  missing: ["warn", "cannot be made"],
};

/** A text into an element, with a mark for each letter that shows nothing. */
function put(target, text) {
  if (text.length > CHUNK_CHARS) {
    // Only what is in sight is laid out: a browser takes a minute for five million characters in one piece.
    target.replaceChildren(...chunksOf(text).map((chunk) => put(element("span", { className: "chunk" }), chunk)));
    return target;
  }
  const found = [...text.matchAll(UNSEEN)];
  const number = (letter) => `U+${letter.codePointAt(0).toString(16).toUpperCase().padStart(4, "0")}`;
  if (found.length > SHOWN_PLACES) {
    target.textContent = text.replace(UNSEEN, (letter) => `⟨${number(letter)}⟩`);
    return target;
  }
  const parts = [];
  let start = 0;
  for (const match of found) {
    parts.push(text.slice(start, match.index), element("span", { className: "unseen-letter", textContent: number(match[0]) }));
    start = match.index + match[0].length;
  }
  target.replaceChildren(...parts, text.slice(start));
  return target;
}

/** The text in pieces that end with a line where there is one. */
function chunksOf(text) {
  const chunks = [];
  for (let start = 0; start < text.length;) {
    const line = text.lastIndexOf("\n", start + CHUNK_CHARS - 1);
    let end = line > start ? line + 1 : start + CHUNK_CHARS;
    if (/[\ud800-\udbff]/.test(text[end - 1] ?? "")) end += 1; // not within a letter
    chunks.push(text.slice(start, end));
    start = end;
  }
  return chunks;
}

// --- pictures: shown as they are made, each with what its hash says

async function readMarks(article) {
  const { run, part } = article.dataset;
  const counts = { matched: 0, differs: 0, unstated: 0, missing: 0 };
  const pill = article.querySelector("[data-verified]");
  const told = new Set();
  try {
    const response = await fetch(`/api/pictures/${run}/${part}`);
    if (!response.ok) throw new Error(`the viewer answered with ${response.status}`);
    for await (const line of linesOf(response.body)) {
      const mark = JSON.parse(line);
      if (mark.error) throw new Error(mark.error);
      counts[mark.match] += 1;
      if (mark.match === "missing") {
        if (mark.number === 0) sayDataset(article, mark.detail);
        if (told.has(mark.detail)) mark.detail = "cannot be made, for the same reason";
        told.add(mark.detail);
      }
      showPicture(article, mark);
    }
  } catch (error) {
    sayDataset(article, error.message);
    for (const figure of article.querySelectorAll(".pic")) giveUp(figure, error.message);
  }
  pill.replaceChildren(element("span", { className: `pill ${summaryClass(counts)}`, textContent: summary(counts) }));
}

async function* linesOf(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) break;
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    yield* lines.filter(Boolean);
  }
  if (rest) yield rest;
}

function summary({ matched, differs, unstated, missing }) {
  const total = matched + differs + unstated + missing;
  if (!total) return "no pictures";
  const plural = total === 1 ? "picture" : "pictures";
  if (matched === total) return total === 1 ? "picture verified" : `all ${total} pictures verified`;
  const parts = [`${matched} of ${total} ${plural} verified`];
  if (differs) parts.push(`${differs} differ${differs === 1 ? "s" : ""}`);
  if (missing) parts.push(`${missing} cannot be made`);
  return parts.join(", ");
}

function summaryClass({ matched, differs, unstated, missing }) {
  if (differs) return "bad";
  return missing || unstated ? "warn" : matched ? "good" : "";
}

function showPicture(article, mark) {
  const [kind, words] = WORDS[mark.match];
  for (const figure of article.querySelectorAll(`.pic[data-number="${mark.number}"]`)) {
    const pill = element("span", { className: `pill ${kind}`, textContent: mark.is_kept ? `${words}, kept in the trace` : words });
    pill.title = mark.detail;
    pill.setAttribute("aria-label", `${words}: ${mark.detail}`);
    pill.setAttribute("role", "img");
    figure.querySelector(".hash").replaceChildren(pill);
    if (mark.match === "missing") giveUp(figure, mark.detail);
    else show(figure, mark);
  }
}

function show(figure, mark) {
  const img = figure.querySelector("img");
  const sizes = figure.querySelector("[data-sizes]");
  if ("unsized" in img.dataset && mark.sent_size) {
    const scale = Math.min(1, 368 / mark.sent_size[0], 300 / mark.sent_size[1]);
    img.width = Math.max(1, Math.round(mark.sent_size[0] * scale));
    img.height = Math.max(1, Math.round(mark.sent_size[1] * scale));
  }
  if (!sizes.textContent && mark.size) sizes.textContent = mark.size.join("×");
  if (mark.num_bytes) sizes.title = `${mark.num_bytes.toLocaleString("en-US")} bytes as sent${mark.mode ? `, mode ${mark.mode}` : ""}`;
  img.src = img.dataset.src;
}

function giveUp(figure, reason) {
  if (figure.classList.contains("is-missing") || figure.querySelector("img")?.src) return;
  figure.classList.add("is-missing");
  const button = figure.querySelector(".pic-open");
  button.disabled = true;
  button.setAttribute("aria-label", `${figure.querySelector("img").alt}: ${reason}`);
  button.replaceChildren(put(element("span", { className: "pic-missing" }), reason));
}

function sayDataset(article, reason) {
  const notice = article.querySelector(".dataset-problem");
  if (!notice) return;
  put(notice, `The photo cannot be shown: ${reason}`);
  notice.hidden = false;
}

// --- the lightbox

const box = document.getElementById("lightbox");
const stage = box.querySelector(".lightbox-stage");
const mover = box.querySelector(".lightbox-move");
const large = box.querySelector(".lightbox-img");
const problem = box.querySelector(".lightbox-problem");
const zoomText = box.querySelector(".lightbox-zoom");
const view = { scale: 1, x: 0, y: 0, isFit: true, asSent: false, hasBox: true };
let opened = null;

function figures() {
  return [...document.querySelectorAll(".pic:not(.is-missing)")];
}

function open(figure) {
  opened = figure;
  const img = figure.querySelector("img");
  const url = `${img.dataset.src}?view=${view.asSent ? "sent" : "full"}`;
  const size = figure.querySelector("[data-sizes]").textContent.trim();
  box.querySelector(".lightbox-name").textContent = `${img.alt}${size ? ` · ${size}` : ""}`;
  problem.hidden = true;
  mover.querySelector("svg")?.remove();
  large.alt = img.alt;
  stage.setAttribute("aria-label", img.alt);
  large.hidden = true;
  view.isFit = true;
  large.onload = () => {
    large.hidden = false;
    const drawing = figure.querySelector("svg.overlay");
    if (drawing) mover.append(drawing.cloneNode(true));
    showBox();
    fit();
  };
  large.onerror = () => {
    problem.hidden = false;
    problem.textContent = "This picture could not be loaded.";
  };
  large.src = url;
  if (!box.open) box.showModal();
  stage.focus();
}

function fit() {
  const [width, height] = [large.naturalWidth, large.naturalHeight];
  if (!width) return;
  const scale = Math.min(stage.clientWidth / width, stage.clientHeight / height, 8);
  place(scale, (stage.clientWidth - width * scale) / 2, (stage.clientHeight - height * scale) / 2);
  view.isFit = true;
}

function place(scale, x, y) {
  const [width, height] = [large.naturalWidth * scale, large.naturalHeight * scale];
  const keep = 40; // of the picture stays in sight
  view.scale = scale;
  view.x = Math.min(stage.clientWidth - keep, Math.max(keep - width, x));
  view.y = Math.min(stage.clientHeight - keep, Math.max(keep - height, y));
  view.isFit = false;
  mover.style.width = `${width}px`; // not by a scale: lines that are drawn keep their width
  mover.style.height = `${height}px`;
  mover.style.transform = `translate(${view.x}px, ${view.y}px)`;
  large.classList.toggle("is-large", view.scale >= 3);
  zoomText.textContent = `${Math.round(view.scale * 100)} %`;
}

function zoom(factor, x = stage.clientWidth / 2, y = stage.clientHeight / 2) {
  if (!large.naturalWidth) return;
  const least = Math.min(1, stage.clientWidth / large.naturalWidth, stage.clientHeight / large.naturalHeight) / 2;
  const scale = Math.min(40, Math.max(least, view.scale * factor));
  place(scale, x - ((x - view.x) * scale) / view.scale, y - ((y - view.y) * scale) / view.scale);
}

function step(by) {
  const all = figures();
  const next = all[all.indexOf(opened) + by];
  if (next) open(next);
}

function showBox() {
  const drawing = mover.querySelector("svg");
  if (drawing) drawing.toggleAttribute("hidden", !view.hasBox);
  const button = box.querySelector('[data-act="box"]');
  button.setAttribute("aria-pressed", String(view.hasBox));
  button.disabled = !drawing;
}

const ACTS = {
  in: () => zoom(1.4),
  out: () => zoom(1 / 1.4),
  fit: () => fit(),
  before: () => step(-1),
  after: () => step(1),
  box: () => { view.hasBox = !view.hasBox; showBox(); },
  sent: () => {
    view.asSent = !view.asSent;
    box.querySelector('[data-act="sent"]').setAttribute("aria-pressed", String(view.asSent));
    open(opened);
  },
};
const KEYS = {
  "+": "in", "=": "in", "-": "out", 0: "fit", f: "fit", b: "box", s: "sent",
  ArrowLeft: "before", ArrowRight: "after", k: "before", j: "after",
};

box.addEventListener("click", (event) => {
  const act = event.target.closest("[data-act]")?.dataset.act;
  if (act) ACTS[act]();
});

box.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const pan = { ArrowUp: [0, 60], ArrowDown: [0, -60] }[event.key];
  const shifted = event.shiftKey && { ArrowLeft: [60, 0], ArrowRight: [-60, 0] }[event.key];
  if (event.key === "1") zoom(1 / view.scale);
  else if (pan || shifted) place(view.scale, view.x + (pan ?? shifted)[0], view.y + (pan ?? shifted)[1]);
  else if (KEYS[event.key]) ACTS[KEYS[event.key]]();
  else return;
  event.preventDefault();
});

stage.addEventListener("wheel", (event) => {
  event.preventDefault();
  const edge = stage.getBoundingClientRect();
  const lines = event.deltaMode === 1 ? 16 : 1;
  zoom(Math.exp(-event.deltaY * lines * 0.0016), event.clientX - edge.left, event.clientY - edge.top);
}, { passive: false });

stage.addEventListener("dblclick", (event) => {
  const edge = stage.getBoundingClientRect();
  if (view.isFit) zoom(Math.max(2, 1 / view.scale), event.clientX - edge.left, event.clientY - edge.top);
  else fit();
});

const fingers = new Map();
stage.addEventListener("pointerdown", (event) => {
  stage.setPointerCapture(event.pointerId);
  fingers.set(event.pointerId, event);
});
stage.addEventListener("pointermove", (event) => {
  const before = fingers.get(event.pointerId);
  if (!before) return;
  const others = [...fingers.values()].filter((finger) => finger.pointerId !== event.pointerId);
  if (others.length) pinch(others[0], before, event);
  else place(view.scale, view.x + event.clientX - before.clientX, view.y + event.clientY - before.clientY);
  fingers.set(event.pointerId, event);
});
for (const name of ["pointerup", "pointercancel"]) stage.addEventListener(name, (event) => fingers.delete(event.pointerId));

function pinch(still, before, now) {
  const edge = stage.getBoundingClientRect();
  const distance = (one) => Math.hypot(one.clientX - still.clientX, one.clientY - still.clientY);
  const [x, y] = [(still.clientX + now.clientX) / 2 - edge.left, (still.clientY + now.clientY) / 2 - edge.top];
  zoom(distance(now) / Math.max(1, distance(before)), x, y);
}

addEventListener("resize", () => {
  if (box.open && view.isFit) fit();
});
box.addEventListener("close", () => {
  fingers.clear();
  opened?.querySelector(".pic-open").focus();
});

// --- what is loaded when it is asked for

async function showAll(button) {
  button.disabled = true;
  try {
    const response = await fetch(button.dataset.text);
    if (!response.ok) throw new Error(`The viewer answered with ${response.status}.`);
    put(button.previousElementSibling, await response.text());
    button.remove();
  } catch (error) {
    button.disabled = false;
    say(error.message, "bad");
  }
}

async function loadInto(details) {
  const body = details.querySelector(".lazy-body");
  if (body.childElementCount) return;
  body.replaceChildren(element("p", { className: "muted", textContent: "Loading …" }));
  try {
    if (details.dataset.messages) showMessages(body, await fetchJson(details.dataset.messages), details.dataset.messages);
    else await showTree(body, details.dataset.raw);
  } catch (error) {
    body.replaceChildren(put(element("p", { className: "muted" }), error.message));
  }
}

function showMessages(body, sent, url) {
  if (sent.problem) throw new Error(sent.problem);
  const ends = new Map(sent.requests.map((request) => [request.num_messages, request]));
  const nodes = [element("p", { className: "muted small" },
    "A request carries all messages above its line. ", element("a", { href: `${url}?whole=1`, textContent: "All of it as JSON", target: "_blank", rel: "noopener" })),
  element("details", { className: "fold" }, element("summary", { textContent: "The other fields of each request" }), put(element("pre", { className: "words" }), JSON.stringify(sent.body, null, 1)))];
  sent.messages.forEach((message, position) => {
    nodes.push(oneMessage(message));
    const request = ends.get(position + 1);
    if (request) nodes.push(element("p", { className: "sent-request", textContent: `request of turn ${request.turn}${sent.sends_seed ? `, seed ${request.seed}` : ""}` }));
  });
  body.replaceChildren(...nodes);
}

function oneMessage(message) {
  const node = element("div", { className: `sent-message of-${["system", "user", "assistant", "tool"].includes(message.role) ? message.role : "other"}` },
    put(element("span", { className: "label" }), String(message.role)));
  const parts = Array.isArray(message.content) ? message.content : [{ type: "text", text: message.content ?? "" }];
  for (const part of parts) {
    if (part.type === "picture") {
      const text = `picture ${part.number}: ${part.size.join("×")}, ${part.media_type}, ${part.num_bytes.toLocaleString("en-US")} bytes`;
      node.append(element("div", {}, element("span", { className: "sent-picture", title: `sha256 ${part.sha256}`, textContent: text })));
    } else if (part.text) node.append(put(element("pre", { className: "words", dir: "auto" }), String(part.text)));
  }
  const { role, content, ...others } = message;
  if (Object.keys(others).length) node.append(put(element("pre", { className: "words muted" }), JSON.stringify(others, null, 1)));
  return node;
}

async function showTree(body, url) {
  const response = await fetch(url);
  if (!response.ok) throw new Error(`The viewer answered with ${response.status}.`);
  const text = await response.text();
  const save = element("a", { href: url, download: "", textContent: "Save the file" });
  let value;
  try {
    value = JSON.parse(text);
  } catch {
    body.replaceChildren(save, put(element("pre", { className: "raw-text" }), text.slice(0, 100000)));
    return;
  }
  body.replaceChildren(element("p", {}, save), element("div", { className: "tree" }, ...entries(value)));
}

/** The entries of an object or a list; what is inside of them is made when it is opened. */
function entries(value, from = 0) {
  const all = Object.entries(value);
  const nodes = all.slice(from, from + TREE_PIECE).map(([name, item]) => entry(name, item));
  if (all.length > from + TREE_PIECE) {
    const more = element("button", { type: "button", className: "plain", textContent: `${(all.length - from - TREE_PIECE).toLocaleString("en-US")} more` });
    more.addEventListener("click", () => more.replaceWith(...entries(value, from + TREE_PIECE)));
    nodes.push(more);
  }
  return nodes;
}

function entry(name, item) {
  const label = put(element("span", { className: "name" }), name);
  if (item === null || typeof item !== "object") {
    const leaf = element("div", { className: "leaf" }, label, ": ");
    if (typeof item !== "string") return leaf.append(element("span", { className: "other", textContent: String(item) })), leaf;
    const text = put(element("span", { className: "text", dir: "auto" }), item.slice(0, TEXT_CHARS));
    leaf.append(text);
    if (item.length > TEXT_CHARS) {
      const all = element("button", { type: "button", className: "plain", textContent: `show all ${item.length.toLocaleString("en-US")} characters` });
      all.addEventListener("click", () => { put(text, item); all.remove(); });
      leaf.append(all);
    }
    return leaf;
  }
  const count = Object.keys(item).length;
  const details = element("details", {}, element("summary", {}, label, element("span", { className: "muted", textContent: Array.isArray(item) ? ` [${count}]` : ` {${count}}` })));
  details.addEventListener("toggle", () => {
    if (details.open && details.childElementCount === 1) details.append(...entries(item));
  });
  return details;
}

// --- marks

function marking(article) {
  const panel = article.querySelector(".marking");
  if (!panel) return null;
  const note = panel.querySelector("textarea");
  let kept = note.value;
  const about = { run: Number(article.dataset.run), file: `trace_${decodeURIComponent(article.dataset.part)}.json` };

  async function send(change) {
    try {
      const row = await postJson("/api/mark", { ...about, ...change });
      panel.dataset.mark = row.mark ?? "";
      for (const button of panel.querySelectorAll("[data-set]")) button.setAttribute("aria-pressed", String(button.dataset.set === row.mark));
      say("mark" in change ? (row.mark ? `Marked: ${row.mark}` : "Mark taken away") : "Note kept");
      return true;
    } catch (error) {
      say(error.message, "bad");
      return false;
    }
  }

  function set(mark) {
    return send({ mark: panel.dataset.mark === mark ? null : mark });
  }

  async function keepNote() {
    const text = note.value;
    if (text !== kept && (await send({ note: text.trim() || null }))) kept = text;
  }

  for (const button of panel.querySelectorAll("[data-set]")) button.addEventListener("click", () => set(button.dataset.set));
  note.addEventListener("change", keepNote);
  note.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) note.blur();
  });
  return { set, write: () => note.focus() };
}

// --- copies

async function copy(text, what) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    const area = element("textarea", { value: text, className: "unseen", readOnly: true });
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  }
  say(`Copied: ${what}`);
}

// --- the page

const articles = [...document.querySelectorAll("article.trace")];
const marker = articles.length ? marking(articles[0]) : null;
articles.slice(1).forEach(marking);

document.addEventListener("click", (event) => {
  const target = event.target;
  const picture = target.closest(".pic-open:not(:disabled)");
  const all = target.closest(".show-all");
  const copied = target.closest("[data-copy]");
  const link = target.closest("[data-copy-link]");
  if (picture?.querySelector("img")?.src) open(picture.closest(".pic"));
  else if (all) showAll(all);
  else if (copied) copy(copied.dataset.copy, copied.textContent.trim());
  else if (link) copy(location.origin + link.dataset.copyLink, "the link");
});

for (const details of document.querySelectorAll("details.lazy")) {
  details.addEventListener("toggle", () => {
    if (details.open) loadInto(details);
  });
}

for (const article of articles) {
  if (article.querySelector("[data-verified]")) readMarks(article);
}

function follow(id) {
  const link = document.getElementById(id);
  if (!link) return say(id === "after" ? "This is the last of the list" : "This is the first of the list");
  location.href = link.href;
  return true;
}

bindKeys(["j", "ArrowRight"], "next trace of the list", () => follow("after"));
bindKeys(["k", "ArrowLeft"], "trace before", () => follow("before"));
bindKeys(["l"], "back to the list", () => { location.href = document.querySelector(".crumbs a").href; });
if (marker) {
  bindKeys(["m"], "mark: keep (again takes it away)", () => { marker.set("keep"); });
  bindKeys(["d"], "mark: drop (again takes it away)", () => { marker.set("drop"); });
  bindKeys(["u"], "take the mark away", () => { marker.set(null); });
  bindKeys(["n"], "write a note (Ctrl+Enter when done)", () => { marker.write(); });
}
bindKeys(["o"], "open the first picture", () => {
  const first = figures().find((figure) => figure.querySelector("img").src);
  if (first) open(first);
});
