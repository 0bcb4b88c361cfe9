// Draws what distil/viewer/charts.py computes, as SVG made by hand.
//
// A page holds the charts as JSON, and a place for them:
//   <script type="application/json" id="chart-data">[…]</script> <div data-charts="chart-data"></div>
// Every chart can be read three ways: as a picture, mark by mark with the arrow keys (or the pointer), and as
// a table. No style is written into attributes: what a page's policy forbids, and its themes could not change.

import { element, whole } from "./dom.js";

const SVG = "http://www.w3.org/2000/svg";
const MARGIN = { left: 44, right: 12, top: 10, bottom: 30 };
const PLOT_HEIGHT_PX = 150;
const ROW_HEIGHT_PX = 26;
const LETTER_PX = 6.4; // of the axes' font, about
const MAX_LABEL_LETTERS = 24;

/** A number as an axis shows it. */
export function short(value) {
  const size = Math.abs(value);
  if (size >= 1e6) return `${trimmed(value / 1e6)}M`;
  if (size >= 1e4) return `${trimmed(value / 1e3)}k`;
  if (size >= 1000) return whole.format(Math.round(value));
  return trimmed(value);
}

function trimmed(value) {
  return String(Number(value.toPrecision(3)));
}

/** A share as a percentage; without `places` in as many digits as it needs, one behind the point at most. */
export function percent(share, places) {
  if (share === null) return "–";
  const hundredths = 100 * share;
  return `${places === undefined ? Number(hundredths.toFixed(1)) : hundredths.toFixed(places)} %`;
}

function node(name, attributes = {}, ...children) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

/** Round numbers from 0 to the first that is not under `highest`. */
export function ticks(highest, wanted = 4) {
  const rough = Math.max(highest, 1e-9) / wanted;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((each) => each * power).find((each) => each >= rough * (1 - 1e-9));
  const found = [];
  for (let number = 0; ; number += 1) {
    found.push(Number((number * step).toPrecision(12)));
    if (found[found.length - 1] >= highest * (1 - 1e-9)) return found;
  }
}

// --- what each kind of chart shows: marks {x, y, …} with words for each, and rows for a table

const KINDS = { histogram: drawHistogram, columns: drawColumns, bars: drawBars, shares: drawShares };

function ofSeries(chart, index) {
  return chart.series.length > 1 ? `${seriesLabel(chart, index)}: ` : "";
}

function seriesLabel(chart, index) {
  const series = chart.series[index];
  return typeof series === "string" ? series : series.label;
}

function drawHistogram(chart, width) {
  const { edges, series } = chart;
  const highest = Math.max(1, ...series.flatMap((each) => each.counts));
  const plot = frame(width, highest);
  const inner = width - MARGIN.left - MARGIN.right;
  const binWidth = inner / (edges.length - 1);
  const x = (position) => MARGIN.left + position * binWidth; // equal widths: on a log scale, too
  const every = Math.ceil((edges.length * labelWidth(edges.map(short))) / inner);
  for (let position = 0; position < edges.length; position += every) {
    plot.svg.append(tickLabel(x(position), plot.bottom + 16, short(edges[position])));
    plot.svg.append(node("line", { class: "tick", x1: x(position), x2: x(position), y1: plot.bottom, y2: plot.bottom + 4 }));
  }
  const barWidth = Math.max(1, (binWidth - 1) / series.length);
  const marks = [];
  for (let bin = 0; bin < edges.length - 1; bin += 1) {
    series.forEach((each, index) => {
      const count = each.counts[bin];
      const share = count / Math.max(1, sum(each.counts));
      marks.push(
        bar(plot, { x: x(bin) + index * barWidth, width: barWidth, y: plot.y(count), height: plot.bottom - plot.y(count), index },
          `${ofSeries(chart, index)}${short(edges[bin])} to ${short(edges[bin + 1])}: ${whole.format(count)} (${percent(share, 1)})`),
      );
    });
  }
  series.forEach((each, index) => {
    if (each.median === null) return;
    const place = x(positionOf(each.median, edges));
    plot.svg.append(node("line", { class: `median s${index}${series.length > 1 ? " many" : ""}`, x1: place, x2: place, y1: MARGIN.top, y2: plot.bottom }));
  });
  const rows = edges.slice(1).map((edge, bin) => [
    `${short(edges[bin])} to ${short(edge)}`, ...series.map((each) => whole.format(each.counts[bin])),
  ]);
  const notes = series
    .filter((each) => each.median !== null)
    .map((each, index) => `${ofSeries(chart, index)}median ${short(each.median)}${each.missing ? `, ${whole.format(each.missing)} without` : ""}`);
  return { svg: plot.svg, marks, heads: ["from – to"], rows, note: notes.join(" · ") };
}

/** Where among edges at equal distances a value lies. */
function positionOf(value, edges) {
  let bin = 0;
  while (bin < edges.length - 2 && edges[bin + 1] <= value) bin += 1;
  return bin + Math.min(1, Math.max(0, (value - edges[bin]) / (edges[bin + 1] - edges[bin])));
}

function drawColumns(chart, width) {
  const highest = Math.max(1, ...chart.rows.flatMap((row) => row.counts));
  const plot = frame(width, highest);
  const step = (width - MARGIN.left - MARGIN.right) / chart.rows.length;
  const gap = Math.min(6, step * 0.2);
  const barWidth = Math.min(40, (step - gap) / chart.series.length);
  const marks = [];
  const totals = chart.series.map((_, index) => sum(chart.rows.map((row) => row.counts[index])));
  chart.rows.forEach((row, position) => {
    const middle = MARGIN.left + (position + 0.5) * step;
    plot.svg.append(tickLabel(middle, plot.bottom + 16, row.label));
    row.counts.forEach((count, index) => {
      const left = middle + (index - row.counts.length / 2) * barWidth;
      marks.push(
        bar(plot, { x: left, width: Math.max(1, barWidth - 1), y: plot.y(count), height: plot.bottom - plot.y(count), index },
          `${ofSeries(chart, index)}${row.label}: ${whole.format(count)} (${percent(count / Math.max(1, totals[index]), 1)})`),
      );
    });
  });
  return { svg: plot.svg, marks, heads: [chart.title.toLowerCase()], rows: countRows(chart), note: "" };
}

function drawBars(chart, width) {
  const numSeries = chart.series.length;
  const rowHeight = Math.max(ROW_HEIGHT_PX, numSeries * 12 + 10);
  const left = leftOf(chart.rows, width);
  const highest = Math.max(1, ...chart.rows.flatMap((row) => row.counts));
  const room = width - left - MARGIN.right - LETTER_PX * whole.format(highest).length - 8;
  const svg = canvas(width, chart.rows.length * rowHeight + 8);
  const totals = chart.series.map((_, index) => sum(chart.rows.map((row) => row.counts[index])));
  const marks = [];
  chart.rows.forEach((row, position) => {
    const top = position * rowHeight + 4;
    svg.append(rowLabel(left - 8, top + rowHeight / 2, row.label, left));
    const height = (rowHeight - 8) / numSeries;
    row.counts.forEach((count, index) => {
      const y = top + 4 + index * height;
      const length = (room * count) / highest;
      marks.push(
        bar({ svg }, { x: left, width: length, y, height: Math.max(2, height - 1), index },
          `${ofSeries(chart, index)}${row.label}: ${whole.format(count)} (${percent(count / Math.max(1, totals[index]), 1)})`),
      );
      svg.append(node("text", { class: "chart-value", x: left + length + 6, y: y + height / 2, "dominant-baseline": "central" }, whole.format(count)));
    });
  });
  return { svg, marks, heads: [""], rows: countRows(chart), note: "" };
}

function drawShares(chart, width) {
  const numSeries = chart.series.length;
  const rowHeight = Math.max(ROW_HEIGHT_PX, numSeries * 14 + 8);
  const left = leftOf(chart.rows, width);
  const valueWidth = 50;
  const room = width - left - MARGIN.right - valueWidth;
  const bottom = chart.rows.length * rowHeight + 4;
  const svg = canvas(width, bottom + 20);
  const x = (share) => left + share * room;
  for (const share of [0, 0.25, 0.5, 0.75, 1]) {
    svg.append(node("line", { class: "grid", x1: x(share), x2: x(share), y1: 4, y2: bottom }));
    svg.append(tickLabel(x(share), bottom + 14, percent(share)));
  }
  const marks = [];
  chart.rows.forEach((row, position) => {
    const top = position * rowHeight + 4;
    svg.append(rowLabel(left - 8, top + rowHeight / 2, row.label, left));
    row.shares.forEach((share, index) => {
      const y = top + (rowHeight * (index + 0.5)) / numSeries;
      if (share.share === null) return;
      const mark = node("g", { class: `mark s${index}` },
        node("rect", { class: "hit", x: left, width: room, y: y - 7, height: 14 }),
        node("line", { class: "interval", x1: x(share.low), x2: x(share.high), y1: y, y2: y }),
        node("circle", { class: "chart-dot", cx: x(share.share), cy: y, r: 4.5 }));
      svg.append(mark);
      svg.append(node("text", { class: "chart-value", x: x(1) + 8, y, "dominant-baseline": "central" }, percent(share.share)));
      marks.push({
        node: mark, x: x(share.share), y: y - 6,
        words: `${ofSeries(chart, index)}${row.label}: ${percent(share.share, 1)}, ${whole.format(share.count)} of ${whole.format(share.of)}; 95 % interval ${percent(share.low, 1)} to ${percent(share.high, 1)}`,
      });
    });
  });
  const rows = chart.rows.map((row) => [
    row.label,
    ...row.shares.map((share) => share.share === null ? "–" : `${percent(share.share, 1)} (${percent(share.low, 1)} – ${percent(share.high, 1)}), ${whole.format(share.count)} of ${whole.format(share.of)}`),
  ]);
  return { svg, marks, heads: [""], rows, note: "with 95 % intervals" };
}

function countRows(chart) {
  return chart.rows.map((row) => [row.label, ...row.counts.map((count) => whole.format(count))]);
}

// --- parts of a drawing

function canvas(width, height) {
  return node("svg", { viewBox: `0 0 ${width} ${height}`, width, height, class: "plot", "aria-hidden": "true" });
}

/** The plot of a chart with an axis of counts: its grid, and where a count lies. */
function frame(width, highest) {
  const svg = canvas(width, MARGIN.top + PLOT_HEIGHT_PX + MARGIN.bottom);
  const bottom = MARGIN.top + PLOT_HEIGHT_PX;
  const steps = ticks(highest).filter(Number.isInteger);
  const top = Math.max(steps[steps.length - 1], highest);
  const y = (count) => bottom - (PLOT_HEIGHT_PX * count) / top;
  for (const step of steps) {
    svg.append(node("line", { class: step ? "grid" : "axis", x1: MARGIN.left, x2: width - MARGIN.right, y1: y(step), y2: y(step) }));
    svg.append(node("text", { class: "chart-label", x: MARGIN.left - 8, y: y(step), "text-anchor": "end", "dominant-baseline": "central" }, short(step)));
  }
  return { svg, bottom, y };
}

function tickLabel(x, y, words) {
  return node("text", { class: "chart-label", x, y, "text-anchor": "middle" }, words);
}

function rowLabel(x, y, words, width) {
  const fitting = Math.max(4, Math.floor((width - 12) / LETTER_PX));
  const shown = words.length > fitting ? `${words.slice(0, fitting - 1)}…` : words;
  return node("text", { class: "chart-label", x, y, "text-anchor": "end", "dominant-baseline": "central" }, shown);
}

function leftOf(rows, width) {
  const letters = Math.min(MAX_LABEL_LETTERS, Math.max(...rows.map((row) => row.label.length)));
  return Math.min(width * 0.45, 14 + LETTER_PX * letters);
}

function labelWidth(labels) {
  return LETTER_PX * (Math.max(...labels.map((label) => label.length)) + 1.5);
}

function bar(plot, { x, y, width, height, index }, words) {
  const mark = node("g", { class: `mark s${index}` },
    node("rect", { class: "chart-bar", x, y, width: Math.max(0, width), height: Math.max(0, height), rx: Math.min(1.5, width / 2) }));
  if (plot.bottom) mark.prepend(node("rect", { class: "hit", x, y: MARGIN.top, width, height: plot.bottom - MARGIN.top }));
  plot.svg.append(mark);
  return { node: mark, x: plot.bottom ? x + width / 2 : x + Math.min(width, 120), y, words };
}

function sum(numbers) {
  return numbers.reduce((total, each) => total + each, 0);
}

// --- a chart in the page

/** Draws a chart into `figure`, again whenever its width changes. */
function drawChart(figure, chart) {
  const head = element("figcaption", { className: "chart-title" }, chart.title);
  const note = element("span", { className: "chart-note" });
  head.append(" ", note);
  const tip = element("div", { className: "chart-tip", hidden: true });
  const said = element("span", { className: "unseen", role: "status" });
  const plot = element("div", { className: "chart-plot", tabIndex: 0, role: "group", ariaLabel: `${chart.title}: a chart. Arrow keys go from mark to mark.` });
  const table = element("details", { className: "chart-table" }, element("summary", {}, "as a table", element("span", { className: "unseen" }, `: ${chart.title}`)));
  figure.classList.add("chart");
  figure.replaceChildren(head, legend(chart), plot, said, table);

  let marks = [];
  let active = -1;

  function show(position) {
    marks[active]?.node.classList.remove("active");
    active = position;
    const mark = marks[active];
    tip.hidden = !mark;
    if (!mark) return;
    mark.node.classList.add("active");
    tip.textContent = mark.words;
    const half = tip.offsetWidth / 2;
    tip.style.left = `${Math.min(Math.max(mark.x - half, 0), Math.max(0, plot.clientWidth - tip.offsetWidth))}px`;
    tip.style.top = `${mark.y - tip.offsetHeight - 6}px`;
  }

  function draw() {
    const width = Math.max(180, Math.floor(plot.clientWidth || figure.clientWidth || 320));
    const drawn = KINDS[chart.kind](chart, width);
    marks = drawn.marks;
    active = -1;
    tip.hidden = true;
    note.textContent = drawn.note;
    plot.replaceChildren(drawn.svg, tip);
    if (table.childElementCount === 1) {
      const heads = [...drawn.heads, ...chart.series.map((_, index) => (chart.series.length > 1 ? seriesLabel(chart, index) : "traces"))];
      table.append(tableOf(chart.title, heads, drawn.rows));
    }
  }

  plot.addEventListener("pointermove", (event) => {
    const group = event.target.closest?.(".mark");
    const position = marks.findIndex((mark) => mark.node === group);
    if (position !== active) show(position);
  });
  plot.addEventListener("pointerleave", () => show(-1));
  plot.addEventListener("blur", () => show(-1));
  plot.addEventListener("keydown", (event) => {
    const steps = { ArrowRight: active + 1, ArrowDown: active + 1, ArrowLeft: active - 1, ArrowUp: active - 1, Home: 0, End: marks.length - 1 };
    if (event.key === "Escape") return show(-1);
    if (!(event.key in steps) || event.altKey || event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    event.stopPropagation();
    show(Math.min(Math.max(steps[event.key], 0), marks.length - 1));
    said.textContent = marks[active]?.words ?? "";
  });

  draw();
  let width = plot.clientWidth;
  new ResizeObserver(() => {
    if (plot.clientWidth === width || !plot.clientWidth) return;
    width = plot.clientWidth;
    draw();
  }).observe(plot);
}

function legend(chart) {
  if (chart.series.length < 2) return "";
  return element("ul", { className: "chart-legend" }, ...chart.series.map((_, index) => element("li", { className: `s${index}` }, seriesLabel(chart, index))));
}

function tableOf(title, heads, rows) {
  const head = element("tr", {}, ...heads.map((words) => element("th", { scope: "col" }, words)));
  const body = rows.map((cells) => element("tr", {}, element("th", { scope: "row" }, cells[0]), ...cells.slice(1).map((words) => element("td", {}, words))));
  return element("div", { className: "chart-scroll", tabIndex: 0, role: "region", ariaLabel: `${title}: a table` },
    element("table", {}, element("caption", { className: "unseen" }, title), element("thead", {}, head), element("tbody", {}, ...body)));
}

/** Draws all charts of a list into `place`, in the place of what it held. */
export function drawCharts(place, charts) {
  place.classList.add("charts");
  place.replaceChildren();
  for (const chart of charts) {
    const figure = element("figure", { id: `chart-${chart.id}` });
    place.append(figure);
    drawChart(figure, chart);
  }
}

for (const place of document.querySelectorAll("[data-charts]")) {
  drawCharts(place, JSON.parse(document.getElementById(place.dataset.charts).textContent));
}
