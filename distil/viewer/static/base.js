// What every page has: keys and their help, requests, short notices; the theme that is kept.

import { element, toggleTheme } from "./dom.js";
import { letKeysScroll } from "./scrolling.js";

// --- requests ---

/** JSON of this server; throws an Error with the server's own words. */
export async function fetchJson(url, options = {}) {
  let response;
  try {
    response = await fetch(url, { credentials: "same-origin", ...options });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("The viewer does not answer any more. Was it ended?", { cause: error });
  }
  let body = null;
  try {
    body = await response.json();
  } catch {
    // said below
  }
  if (!response.ok) throw new Error(body?.error ?? `The viewer answered with ${response.status}.`);
  return body;
}

/** Send JSON, get JSON. */
export function postJson(url, body) {
  return fetchJson(url, {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify(body),
  });
}

// --- notices ---

let silence = 0;

/** A line that is shown for some seconds, and read out. */
export function say(text, kind = "") {
  const said = document.getElementById("said");
  said.textContent = text;
  said.className = kind;
  said.classList.add("shown");
  clearTimeout(silence);
  silence = setTimeout(() => said.classList.remove("shown"), kind === "bad" ? 8000 : 2500);
}

// --- keys ---

const bound = new Map();
const described = [];

/**
 * Bind keys of this page: `bindKeys(["j", "ArrowDown"], "next", event => …)`.
 * They do nothing while somebody writes in a field. `text` stands in the help; without it they are not listed.
 */
export function bindKeys(keys, text, action) {
  for (const key of keys) bound.set(key, action);
  if (text) described.push({ keys, text });
}

function isWriting(target) {
  return target instanceof HTMLElement
    && (target.isContentEditable || ["INPUT", "TEXTAREA", "SELECT"].includes(target.tagName));
}

addEventListener("keydown", (event) => {
  if (event.defaultPrevented || event.ctrlKey || event.metaKey || event.altKey) return;
  if (isWriting(event.target)) {
    if (event.key === "Escape") event.target.blur();
    return;
  }
  if (document.querySelector("dialog[open]")) return;
  const action = bound.get(event.key);
  if (!action || action(event) === false) return;
  event.preventDefault();
});

const NAMES = {
  ArrowDown: "↓", ArrowUp: "↑", ArrowLeft: "←", ArrowRight: "→", " ": "Space", Escape: "Esc", Enter: "↵",
};

const help = document.getElementById("help");

function showHelp() {
  const rows = described.flatMap(({ keys, text }) => [
    element("dt", {}, ...keys.map((key) => element("kbd", { textContent: NAMES[key] ?? key }))),
    element("dd", { textContent: text }),
  ]);
  document.getElementById("help-keys").replaceChildren(...rows);
  help.showModal();
}

function changeTheme() {
  const theme = toggleTheme();
  try {
    localStorage.setItem("distil-theme", theme);
  } catch {
    // storage is off: it holds for this page
  }
}

for (const dialog of document.querySelectorAll("dialog")) {
  dialog.addEventListener("click", (event) => {
    if (event.target === dialog || event.target.closest("[data-close]")) dialog.close();
  });
}
document.getElementById("help-button").addEventListener("click", showHelp);
document.getElementById("theme-button").addEventListener("click", changeTheme);
bindKeys(["?"], "these keys", showHelp);
bindKeys(["T"], "light or dark", changeTheme);

letKeysScroll(document.body);
