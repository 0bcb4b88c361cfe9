// The world with every answer joined to its truth, on a canvas; distil/viewer/charts.py says what `data` holds:
//   {pairs: [[link, words, answer north, answer east, truth north, truth east, score], …], total}
//
// Ten thousand pairs stay fluid: everything is projected once, what lies outside the window is passed over,
// and while the map moves only a part of the lines is drawn; all of them are as soon as it rests. Whoever
// sees no map has the same pairs as a table of links.

import { element } from "./dom.js";

const TURN = Math.PI / 180;
const MAX_ZOOM = 400;
const HIT_PX = 10;
const GRID = 256; // cells across the world, to find the pair under the pointer
const NUM_COLOURS = 5; // from bad to good
const LINES_A_STROKE = 48; // lines of one stroke do not add up where they cross, those of two do
const MAX_MOVING = 2500; // lines drawn while the map moves
const MAX_LISTED = 200;
const REST_MS = 140;
const SQUARE_PX = 2; // ends this small are squares, which are drawn faster
const EDGE = 0.8707 * Math.PI; // of the projection at the equator
const TOP = northing(Math.PI / 2);
const HEIGHT = TOP / EDGE; // of the world, which is 1 wide

const [LINK, WORDS, ANSWER, TRUTH, SCORE] = [0, 1, 2, 4, 6]; // where a pair's parts stand

/** Natural Earth's projection (Šavrič, Jenny, Patterson): a point of the globe on a world 1 wide, from its top left. */
export function project(north, east) {
  const phi = north * TURN;
  const squared = phi * phi;
  const fourth = squared * squared;
  const x = east * TURN * (0.8707 - 0.131979 * squared + fourth * (-0.013791 + fourth * (0.003971 * squared - 0.001529 * fourth)));
  return [(x / EDGE + 1) / 2, (TOP - northing(phi)) / (2 * EDGE)];
}

function northing(phi) {
  const squared = phi * phi;
  const fourth = squared * squared;
  return phi * (1.007226 + squared * (0.015085 + fourth * (-0.044475 + 0.028874 * squared - 0.005916 * fourth)));
}

/** The shortest way between two points as [north, east] steps; a null where it leaves the map for its other side. */
export function greatCircle(northA, eastA, northB, eastB) {
  const [a, b] = [vector(northA, eastA), vector(northB, eastB)];
  const angle = Math.acos(Math.min(1, Math.max(-1, a[0] * b[0] + a[1] * b[1] + a[2] * b[2])));
  const steps = Math.min(32, Math.max(1, Math.ceil(angle / (5 * TURN))));
  const way = [[northA, eastA]];
  for (let step = 1; step <= steps; step += 1) {
    const part = step / steps;
    const [left, right] = angle < 1e-9 || Math.PI - angle < 1e-9
      ? [1 - part, part]
      : [Math.sin((1 - part) * angle) / Math.sin(angle), Math.sin(part * angle) / Math.sin(angle)];
    const [x, y, z] = [0, 1, 2].map((axis) => left * a[axis] + right * b[axis]);
    const place = step === steps ? [northB, eastB] : [Math.atan2(z, Math.hypot(x, y)) / TURN, Math.atan2(y, x) / TURN];
    const before = way[way.length - 1];
    if (Math.abs(place[1] - before[1]) > 180) {
      const side = before[1] > 0 ? 180 : -180;
      const share = Math.abs(side - before[1]) / (360 - Math.abs(place[1] - before[1]) || 1);
      const north = before[0] + share * (place[0] - before[0]);
      way.push([north, side], null, [north, -side]);
    }
    way.push(place);
  }
  return way;
}

function vector(north, east) {
  const [phi, lambda] = [north * TURN, east * TURN];
  return [Math.cos(phi) * Math.cos(lambda), Math.cos(phi) * Math.sin(lambda), Math.sin(phi)];
}

// --- everything projected once

function landPath(outlines) {
  const path = new Path2D();
  for (const ring of [...outlines.land, ...outlines.lakes]) {
    for (let place = 0; place < ring.length; place += 2) {
      const [x, y] = project(ring[place + 1], ring[place]);
      if (place) path.lineTo(x, y);
      else path.moveTo(x, y);
    }
    path.closePath();
  }
  return path;
}

function spherePath() {
  const path = new Path2D();
  for (let north = -90; north <= 90; north += 2) path.lineTo(...project(north, 180));
  for (let north = 90; north >= -90; north -= 2) path.lineTo(...project(north, -180));
  path.closePath();
  return path;
}

function graticulePath() {
  const path = new Path2D();
  for (let east = -150; east < 180; east += 30) {
    for (let north = -90; north <= 90; north += 5) path[north > -90 ? "lineTo" : "moveTo"](...project(north, east));
  }
  for (let north = -60; north <= 60; north += 30) {
    path.moveTo(...project(north, -180));
    path.lineTo(...project(north, 180));
  }
  return path;
}

/** The pairs ready to be drawn: ways as flat arrays, what they span, ends by cell of a grid. */
function prepare(pairs) {
  const cells = new Map();
  const ready = pairs.map((pair, index) => {
    const way = greatCircle(...pair.slice(ANSWER, ANSWER + 2), ...pair.slice(TRUTH, TRUTH + 2));
    const flat = new Float32Array(way.length * 2);
    const box = [Infinity, Infinity, -Infinity, -Infinity];
    way.forEach((place, step) => {
      const [x, y] = place ? project(...place) : [NaN, NaN];
      flat[2 * step] = x;
      flat[2 * step + 1] = y;
      if (!place) return;
      [box[0], box[1]] = [Math.min(box[0], x), Math.min(box[1], y)];
      [box[2], box[3]] = [Math.max(box[2], x), Math.max(box[3], y)];
    });
    for (const end of [0, flat.length - 2]) {
      const cell = cellOf(flat[end], flat[end + 1]);
      if (!cells.has(cell)) cells.set(cell, []);
      cells.get(cell).push(index);
    }
    return { flat, box, colour: 0 };
  });
  const scores = pairs.map((pair) => pair[SCORE]).filter((score) => score !== null);
  const low = scores.reduce((least, score) => Math.min(least, score), 0);
  const high = scores.reduce((most, score) => Math.max(most, score), 1);
  ready.forEach((pair, index) => {
    const share = ((pairs[index][SCORE] ?? low) - low) / (high - low);
    pair.colour = Math.min(NUM_COLOURS - 1, Math.floor(share * NUM_COLOURS));
  });
  return { ready, cells };
}

function cellOf(x, y) {
  return Math.floor(y * GRID) * GRID + Math.floor(x * GRID);
}

// --- the map in the page

/** Draws a map into `figure`; `fit` shows the part of the world where the pairs are. */
export function drawMap(figure, outlines, data, { fit = false, label = "Answers and truths on a map" } = {}) {
  const { ready, cells } = prepare(data.pairs);
  const paths = { land: landPath(outlines), sphere: spherePath(), graticule: graticulePath() };
  const canvas = element("canvas", { tabIndex: 0, role: "application", ariaLabel: `${label}. Arrow keys move, plus and minus zoom, 0 shows the whole; the table below has the same.` });
  const above = element("canvas", { className: "map-above", ariaHidden: "true" });
  const tip = element("div", { className: "chart-tip", hidden: true });
  const tools = element("div", { className: "map-tools" });
  const plot = element("div", { className: "map-plot" }, canvas, above, tip, tools);
  const probe = element("span", { hidden: true });
  figure.classList.add("map");
  figure.replaceChildren(plot, probe, legend(data), tableOf(data.pairs));

  const context = canvas.getContext("2d");
  const overlay = above.getContext("2d");
  let [width, height, ratio] = [0, 0, 1];
  let view = { scale: 1, x: 0, y: 0 }; // of the world, 1 wide, in CSS pixels
  let colours = readColours(probe);
  let hovered = -1;
  let asked = 0;
  let resting = 0;

  function home() {
    const world = { scale: Math.min(width, height / HEIGHT), x: 0, y: 0 };
    if (!fit || !ready.length) return centred(world, 0.5, HEIGHT / 2);
    const box = ready.reduce((all, { box: one }) => [Math.min(all[0], one[0]), Math.min(all[1], one[1]), Math.max(all[2], one[2]), Math.max(all[3], one[3])], [1, 1, 0, 0]);
    const span = Math.max((box[2] - box[0]) / width, (box[3] - box[1]) / height, 0.05 / width);
    return centred({ ...world, scale: Math.max(world.scale, 0.7 / span) }, (box[0] + box[2]) / 2, (box[1] + box[3]) / 2);
  }

  function centred(state, x, y) {
    return bounded({ scale: state.scale, x: width / 2 - x * state.scale, y: height / 2 - y * state.scale });
  }

  /** The view without empty edges where the world is larger than the window, in the middle where it is smaller. */
  function bounded({ scale, x, y }) {
    const hold = (place, room, size) => (size <= room ? (room - size) / 2 : Math.min(0, Math.max(room - size, place)));
    return { scale, x: hold(x, width, scale), y: hold(y, height, scale * HEIGHT) };
  }

  function zoom(factor, x = width / 2, y = height / 2) {
    const least = Math.min(width, height / HEIGHT);
    const scale = Math.min(least * MAX_ZOOM, Math.max(least, view.scale * factor));
    const grown = scale / view.scale;
    move({ scale, x: x - (x - view.x) * grown, y: y - (y - view.y) * grown });
  }

  function move(state) {
    view = bounded(state);
    hover(-1);
    later(true);
    clearTimeout(resting);
    resting = setTimeout(() => later(false), REST_MS);
  }

  function later(moving) {
    cancelAnimationFrame(asked);
    asked = requestAnimationFrame(() => draw(moving));
  }

  function draw(moving = false) {
    const started = performance.now();
    drawWorld();
    const visible = ready.filter(isVisible);
    const every = moving ? Math.ceil(visible.length / MAX_MOVING) : 1;
    const shown = every > 1 ? visible.filter((_, index) => index % every === 0) : visible;
    drawPairs(shown, visible.length);
    plot.dataset.drawn = String(shown.length);
    plot.dataset.drawMs = (performance.now() - started).toFixed(1);
  }

  function drawWorld() {
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.clearRect(0, 0, width, height);
    context.setTransform(ratio * view.scale, 0, 0, ratio * view.scale, ratio * view.x, ratio * view.y);
    context.fillStyle = colours.sea;
    context.fill(paths.sphere);
    context.lineWidth = 1 / view.scale;
    context.strokeStyle = colours.line;
    context.globalAlpha = 0.5;
    context.stroke(paths.graticule);
    context.globalAlpha = 1;
    context.fillStyle = colours.land;
    context.fill(paths.land, "evenodd");
    context.stroke(paths.sphere);
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
  }

  function isVisible({ box }) {
    return box[2] * view.scale + view.x > 0 && box[0] * view.scale + view.x < width && box[3] * view.scale + view.y > 0 && box[1] * view.scale + view.y < height;
  }

  function drawPairs(shown, num) {
    context.lineWidth = num > 1000 ? 1 : 1.4;
    const alpha = Math.min(0.8, Math.max(0.1, 12 / Math.sqrt(num + 1)));
    const size = num <= 5 ? 5 : Math.min(1, Math.max(0.6, width / 900)) * (num > 3000 ? SQUARE_PX : num > 400 ? 2.4 : 3.6);
    for (let colour = 0; colour < NUM_COLOURS; colour += 1) {
      const group = shown.filter((pair) => pair.colour === colour);
      context.strokeStyle = context.fillStyle = colours.scale[colour];
      context.globalAlpha = alpha;
      for (let start = 0; start < group.length; start += LINES_A_STROKE) {
        context.beginPath();
        for (const pair of group.slice(start, start + LINES_A_STROKE)) trace(context, pair.flat);
        context.stroke();
      }
      context.globalAlpha = Math.min(1, 2.5 * alpha + 0.5);
      for (const { flat } of group) drawEnds(context, flat, size);
    }
    context.globalAlpha = 1;
  }

  function trace(target, flat) {
    let isDown = false;
    for (let place = 0; place < flat.length; place += 2) {
      if (Number.isNaN(flat[place])) isDown = false;
      else {
        target[isDown ? "lineTo" : "moveTo"](flat[place] * view.scale + view.x, flat[place + 1] * view.scale + view.y);
        isDown = true;
      }
    }
  }

  /** The truth as a full dot, the answer as a ring; of small ones the truth alone, as a square. */
  function drawEnds(target, flat, size) {
    const last = flat.length - 2;
    const [truthX, truthY] = [flat[last] * view.scale + view.x, flat[last + 1] * view.scale + view.y];
    if (size <= SQUARE_PX) {
      target.fillRect(truthX - size / 2, truthY - size / 2, size, size);
      return;
    }
    target.beginPath();
    target.arc(truthX, truthY, size, 0, 2 * Math.PI);
    target.fill();
    target.beginPath();
    target.arc(flat[0] * view.scale + view.x, flat[1] * view.scale + view.y, size, 0, 2 * Math.PI);
    target.stroke();
  }

  // --- hovering

  function nearest(x, y) {
    const [worldX, worldY] = [(x - view.x) / view.scale, (y - view.y) / view.scale];
    const reach = HIT_PX / view.scale;
    let [best, closest] = [-1, HIT_PX * HIT_PX];
    for (let row = Math.floor((worldY - reach) * GRID); row <= (worldY + reach) * GRID; row += 1) {
      for (let column = Math.floor((worldX - reach) * GRID); column <= (worldX + reach) * GRID; column += 1) {
        for (const index of cells.get(row * GRID + column) ?? []) {
          const { flat } = ready[index];
          for (const end of [0, flat.length - 2]) {
            const away = ((flat[end] - worldX) * view.scale) ** 2 + ((flat[end + 1] - worldY) * view.scale) ** 2;
            if (away < closest) [best, closest] = [index, away];
          }
        }
      }
    }
    return best;
  }

  function hover(index, x = 0, y = 0) {
    if (index === hovered) return;
    hovered = index;
    overlay.setTransform(ratio, 0, 0, ratio, 0, 0);
    overlay.clearRect(0, 0, width, height);
    canvas.classList.toggle("on-pair", index >= 0 && Boolean(data.pairs[index][LINK]));
    tip.hidden = index < 0;
    if (index < 0) return;
    const { flat, colour } = ready[index];
    for (const [stroke, line, size] of [[colours.surface, 5, 6], [colours.scale[colour], 2.2, 4.5]]) {
      overlay.strokeStyle = overlay.fillStyle = stroke;
      overlay.lineWidth = line;
      overlay.beginPath();
      trace(overlay, flat);
      overlay.stroke();
      drawEnds(overlay, flat, size);
    }
    tip.textContent = data.pairs[index][WORDS];
    tip.style.left = `${Math.max(0, Math.min(x + 12, width - tip.offsetWidth - 4))}px`;
    tip.style.top = `${y + 16 + tip.offsetHeight > height ? Math.max(0, y - tip.offsetHeight - 10) : y + 16}px`;
  }

  // --- pointer, wheel and keys

  const pointers = new Map();
  let hasMoved = false;

  canvas.addEventListener("pointerdown", (event) => {
    canvas.setPointerCapture(event.pointerId);
    pointers.set(event.pointerId, [event.offsetX, event.offsetY]);
    hasMoved = pointers.size > 1;
  });
  canvas.addEventListener("pointermove", (event) => {
    const now = [event.offsetX, event.offsetY];
    const before = pointers.get(event.pointerId);
    if (!before) return hover(nearest(...now), ...now);
    const other = [...pointers].find(([id]) => id !== event.pointerId)?.[1];
    if (!hasMoved && Math.hypot(now[0] - before[0], now[1] - before[1]) < 4) return;
    hasMoved = true;
    pointers.set(event.pointerId, now);
    if (other) {
      const apart = ([x, y]) => Math.hypot(x - other[0], y - other[1]) || 1;
      return zoom(apart(now) / apart(before), (now[0] + other[0]) / 2, (now[1] + other[1]) / 2);
    }
    move({ ...view, x: view.x + now[0] - before[0], y: view.y + now[1] - before[1] });
  });
  const release = (event) => pointers.delete(event.pointerId);
  canvas.addEventListener("pointerup", (event) => {
    release(event);
    if (hasMoved || event.button) return;
    const index = nearest(event.offsetX, event.offsetY);
    if (event.pointerType === "touch") return hover(index, event.offsetX, event.offsetY);
    open(index, event);
  });
  canvas.addEventListener("pointercancel", release);
  canvas.addEventListener("pointerleave", () => hover(-1));
  canvas.addEventListener("dblclick", (event) => zoom(2, event.offsetX, event.offsetY));
  // Whoever scrolls the page past the map goes on scrolling: the wheel is the map's once it was clicked.
  canvas.addEventListener("wheel", (event) => {
    if (!event.ctrlKey && document.activeElement !== canvas) return;
    event.preventDefault();
    zoom(Math.exp(-event.deltaY * (event.deltaMode ? 0.05 : 0.002)), event.offsetX, event.offsetY);
  }, { passive: false });
  canvas.addEventListener("keydown", (event) => {
    if (event.altKey || event.ctrlKey || event.metaKey) return;
    const step = 60;
    const actions = {
      ArrowLeft: () => move({ ...view, x: view.x + step }),
      ArrowRight: () => move({ ...view, x: view.x - step }),
      ArrowUp: () => move({ ...view, y: view.y + step }),
      ArrowDown: () => move({ ...view, y: view.y - step }),
      "+": () => zoom(1.5),
      "=": () => zoom(1.5),
      "-": () => zoom(1 / 1.5),
      0: () => move(home()),
    };
    if (!actions[event.key]) return;
    event.preventDefault();
    event.stopPropagation();
    actions[event.key]();
  });

  function open(index, event) {
    const link = data.pairs[index]?.[LINK];
    if (!link) return;
    if (link.startsWith("#")) location.hash = link;
    else if (event.ctrlKey || event.metaKey) window.open(link, "_blank", "noopener");
    else location.assign(link);
  }

  for (const [sign, words, action] of [["+", "Zoom in", () => zoom(1.6)], ["−", "Zoom out", () => zoom(1 / 1.6)], ["⤢", "Show the whole map", () => move(home())]]) {
    const button = element("button", { type: "button", ariaLabel: words, title: words }, sign);
    button.addEventListener("click", action);
    tools.append(button);
  }

  // --- size and theme

  function resize() {
    if (plot.clientWidth === width && plot.clientHeight === height) return;
    const first = width === 0;
    const centre = [(width / 2 - view.x) / view.scale, (height / 2 - view.y) / view.scale];
    const grown = plot.clientWidth / (width || 1);
    [width, height, ratio] = [plot.clientWidth, plot.clientHeight, window.devicePixelRatio || 1];
    if (!width || !height) return;
    for (const each of [canvas, above]) [each.width, each.height] = [Math.round(width * ratio), Math.round(height * ratio)];
    view = first ? home() : centred({ scale: Math.max(view.scale * grown, Math.min(width, height / HEIGHT)) }, ...centre);
    draw();
  }

  function recolour() {
    colours = readColours(probe);
    draw();
  }

  resize();
  new ResizeObserver(resize).observe(plot);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", recolour);
  new MutationObserver(recolour).observe(document.documentElement, { attributeFilter: ["data-theme"] });
}

/** The theme's colours as a canvas takes them; tokens may be of any form, so the browser works them out. */
function readColours(probe) {
  const read = (token) => {
    probe.className = `map-colour ${token}`;
    return getComputedStyle(probe).color;
  };
  const [bad, warn, good] = ["bad", "warn", "good"].map((token) => parts(read(token)));
  const scale = Array.from({ length: NUM_COLOURS }, (_, step) => {
    const share = (2 * step) / (NUM_COLOURS - 1);
    const [from, to] = share <= 1 ? [bad, warn] : [warn, good];
    return `rgb(${from.map((part, index) => Math.round(part + (to[index] - part) * (share <= 1 ? share : share - 1))).join(" ")})`;
  });
  return { sea: read("sea"), land: read("land"), line: read("line"), surface: read("surface"), scale };
}

function parts(colour) {
  const canvas = new OffscreenCanvas(1, 1).getContext("2d");
  canvas.fillStyle = colour;
  canvas.fillRect(0, 0, 1, 1);
  return [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3);
}

function legend(data) {
  const shown = data.pairs.length;
  const few = data.total > shown ? `, ${shown.toLocaleString("en-US")} of them shown` : "";
  return element("p", { className: "map-key" },
    element("span", { className: "map-truth" }, "truth"), element("span", { className: "map-answer" }, "answer"),
    element("span", { className: "map-scale" }, element("span", { className: "map-bad" }), element("span", { className: "map-warn" }), element("span", { className: "map-good" }), "score, low to high"),
    shown === 1 ? "" : element("span", { className: "map-total" }, `${data.total.toLocaleString("en-US")} with both${few}`));
}

/** The same pairs for who sees no map: links, the lowest scores first. */
function tableOf(pairs) {
  const listed = [...pairs].sort((one, other) => (one[SCORE] ?? 0) - (other[SCORE] ?? 0)).slice(0, MAX_LISTED);
  const details = element("details", { className: "chart-table" }, element("summary", {}, listed.length < pairs.length ? `as a table (the ${MAX_LISTED} lowest scores)` : "as a table"));
  details.addEventListener("toggle", () => {
    if (!details.open || details.childElementCount > 1) return;
    const rows = listed.map((pair) => {
      const link = pair[LINK] ? element("a", { href: pair[LINK] }, pair[WORDS]) : pair[WORDS];
      return element("tr", {}, element("th", { scope: "row" }, link), element("td", {}, degrees(pair, TRUTH)), element("td", {}, degrees(pair, ANSWER)));
    });
    const head = element("tr", {}, ...["trace", "truth", "answer"].map((words) => element("th", { scope: "col" }, words)));
    details.append(element("div", { className: "chart-scroll", tabIndex: 0, role: "region", ariaLabel: "Answers and truths" },
      element("table", {}, element("thead", {}, head), element("tbody", {}, ...rows))));
  });
  return details;
}

function degrees(pair, place) {
  return `${pair[place].toFixed(2)}, ${pair[place + 1].toFixed(2)}`;
}

// --- maps that a page asks for: <figure data-map="/api/pairs?…" data-land="/static/land.json"></figure>

async function load(figure) {
  const [outlines, data] = await Promise.all([figure.dataset.land, figure.dataset.map].map(async (url) => {
    const answer = await fetch(url);
    if (!answer.ok) throw new Error(`${url}: ${answer.status}`);
    return answer.json();
  }));
  if (!data.pairs.length) figure.hidden = true;
  else drawMap(figure, outlines, data, { fit: "fit" in figure.dataset });
}

for (const figure of document.querySelectorAll("[data-map]")) {
  load(figure).catch((error) => figure.replaceChildren(element("p", { className: "map-error" }, `The map cannot be drawn: ${error.message}`)));
}
