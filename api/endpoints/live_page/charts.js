// The two charts over time, drawn by uPlot. A gap in the history is a gap in the line.

import { color, milliseconds, number } from "./dom.js";
import { minutes } from "./panels.js";

export const STATUSES = [
  ["hit", "Hit", "s-hit"],
  ["coalesced", "Coalesced", "s-coalesced"],
  ["stale", "Stale", "s-stale"],
  ["miss", "Miss", "s-miss"],
  ["bypass", "Bypass", "s-bypass"],
];
const PERCENTILES = [["p50", "p50", "s-hit"], ["p95", "p95", "s-coalesced"], ["p99", "p99", "s-error"]];

const FEW = 3;

const at = (point) => Date.parse(point.at) / 1000;
const sum = (counts) => Object.values(counts ?? {}).reduce((total, count) => total + count, 0);

// Areas on top of each other: each series is drawn as the sum of itself and those below it.
export function drawQueries(target, points, step) {
  const rates = (count) => points.map((point) => (point.gap ? null : count(point) / minutes(point, step)));
  const rows = STATUSES.map(([status]) => rates((point) => point.queries[status] ?? 0));
  rows.push(rates((point) => sum(point.errors)));
  const names = [...STATUSES, ["error", "Error", "s-error"]];
  const stacked = [];
  for (const row of rows) {
    const below = stacked.at(-1);
    stacked.push(row.map((value, index) => (value === null ? null : value + (below ? below[index] : 0))));
  }
  const order = names.map((_, index) => names.length - 1 - index);
  draw(target, [points.map(at), ...order.map((index) => stacked[index])],
    order.map((index) => ({
      label: names[index][1],
      stroke: color(names[index][2]),
      fill: color(names[index][2]),
      width: 1,
      points: { show: points.filter((point) => !point.gap).length < FEW, size: 5 }, // a line needs two
      value: (_, __, ___, position) => (position === null ? "–" : number(rows[index][position])),
    })), (value) => number(value));
}

export function drawLatency(target, points, status) {
  const chosen = status === "all"
    ? STATUSES.map(([name, label, tint]) => [label, tint, (point) => point.latency_ms?.[name]?.p95])
    : PERCENTILES.map(([name, label, tint]) => [label, tint, (point) => point.latency_ms?.[status]?.[name]]);
  const drawn = chosen.map(([label, tint, read]) => [label, tint, points.map((point) => (point.gap ? null : read(point) ?? null))]);
  draw(target, [points.map(at), ...drawn.map(([, , values]) => values)],
    drawn.map(([label, tint, values]) => ({
      label,
      stroke: color(tint),
      width: 2,
      spanGaps: false,
      points: { show: values.filter((value) => value !== null).length < 40, size: 5 },
      value: (_, value) => milliseconds(value),
    })), (value) => milliseconds(value), { distr: 3, log: 10, range: logRange });
}

function logRange(_, low, high) {
  if (low === null || low <= 0) return [1, 1000];
  return [10 ** Math.floor(Math.log10(low)), 10 ** Math.ceil(Math.log10(Math.max(high, low * 1.01)))];
}

function decades(_, __, low, high) {
  const first = Math.round(Math.log10(low));
  return Array.from({ length: Math.round(Math.log10(high)) - first + 1 }, (_, power) => 10 ** (first + power));
}

const charts = new Map();

function draw(target, data, series, label, scale = { range: (_, __, high) => [0, Math.max(high ?? 0, 1) * 1.08] }) {
  charts.get(target)?.destroy();
  const axis = { stroke: color("soft"), grid: { stroke: color("line"), width: 1 }, ticks: { stroke: color("line"), width: 1 } };
  const options = {
    width: target.clientWidth,
    height: 220,
    cursor: { y: false },
    scales: { y: scale },
    axes: [axis, {
      ...axis,
      size: 64,
      values: (_, values) => values.map((value) => (value === null ? "" : label(value))),
      ...(scale.distr === 3 ? { splits: decades } : {}),
    }],
    series: [{ label: "Time", value: "{HH}:{mm}" }, ...series],
  };
  charts.set(target, new window.uPlot(options, data, target));
}

export function resize() {
  for (const [target, chart] of charts) chart.setSize({ width: target.clientWidth, height: 220 });
}
