// The live page: one stream of figures, the history once a minute, and the panels.

import { $, number, percent } from "./dom.js";
import { events, get } from "./client.js";
import { drawLatency, drawQueries, resize } from "./charts.js";
import { nameBreakers, setUpAdmin } from "./admin.js";
import { setUpAsk } from "./ask.js";
import * as panels from "./panels.js";

const RETRY_MS = 2000;
const now = {};
const history = { points: [], step: 60, range: 3600, logs: {}, recoveries: {} };

const PANELS = {
  health: panels.health,
  cache: panels.cache,
  bulkhead: panels.bulkheads,
  workers: panels.workers,
  recent: panels.recent,
};

function render(changed) {
  for (const name of changed) PANELS[name]?.(now[name]);
  if (now.backends && changed.some((name) => ["backends", "pool"].includes(name))) panels.backends(now.backends, now.pool);
  panels.tiles(now, history);
  if (changed.includes("price_per_million_tokens")) panels.savings(history.points, history.step, now.price_per_million_tokens);
  if (now.breaker) panels.breakers(now.breaker, history.logs, history.range);
}

async function follow() {
  for (;;) {
    try {
      for await (const { event, data } of events("/dashboard/events")) {
        if (event !== "figures") continue;
        const before = changes(now);
        Object.assign(now, data);
        say("Live");
        render(Object.keys(data));
        if (before !== changes(now)) await loadBreakers();
      }
      say("Reconnecting…");
    } catch (error) {
      say(error.status ? error.message : "The service does not answer. Trying again…");
    }
    await new Promise((resolve) => setTimeout(resolve, RETRY_MS));
  }
}

// Changes whenever a breaker's log has a new entry.
const changes = ({ breaker, backends }) =>
  JSON.stringify([Object.values(breaker?.breakers ?? {}).map((one) => [one.epoch, one.state, one.forced]), backends?.map((one) => one.drained)]);

const say = (text) => {
  if ($("live").textContent !== text) $("live").textContent = text;
};

async function loadBreakers() {
  const names = Object.keys(now.breaker?.breakers ?? {});
  nameBreakers(names);
  const each = (path, name) => get(`/api/circuit-breaker/${path}${encodeURIComponent(name)}`).catch(() => null);
  await Promise.all(names.map(async (name) => {
    const [log, recovery] = await Promise.all([each("history?limit=500&breaker=", name), each("recovery?breaker=", name)]);
    if (log) history.logs[name] = log.transitions;
    if (recovery) history.recoveries[name] = recovery;
  }));
  if (now.breaker) panels.breakers(now.breaker, history.logs, history.range);
  panels.outages(Object.fromEntries(names.filter((name) => history.recoveries[name]).map((name) => [name, history.recoveries[name]])));
}

async function loadHistory() {
  const chosen = $("range").value;
  const [range, step] = chosen.split("/").map(Number);
  const from = new Date(Date.now() - range * 1000).toISOString();
  const found = await get(`/api/history?from=${encodeURIComponent(from)}&step=${step}`).catch(() => null);
  if (!found || chosen !== $("range").value) return;
  const complete = found.points.filter((point) => !point.partial);
  Object.assign(history, { points: complete.length ? complete : found.points, step: found.step_seconds, range });
  drawHistory();
}

function drawHistory() {
  const { points, step } = history;
  drawQueries($("chart-queries"), points, step);
  drawLatency($("chart-latency"), points, $("latency-status").value);
  summarize(points);
  panels.savings(points, step, now.price_per_million_tokens);
  render([]);
}

// The charts in words, for those who cannot see them.
function summarize(points) {
  const known = points.filter((point) => !point.gap);
  const total = (read) => known.reduce((sum, point) => sum + read(point), 0);
  const queries = total((point) => Object.values(point.queries).reduce((sum, count) => sum + count, 0));
  const hits = total((point) => point.queries.hit ?? 0);
  const misses = total((point) => point.queries.miss ?? 0);
  const errors = total((point) => Object.values(point.errors).reduce((sum, count) => sum + count, 0));
  const gaps = points.length - known.length;
  $("sum-queries").textContent =
    `${number(queries)} queries, hit rate ${percent(hits + misses ? hits / (hits + misses) : null)}, ${number(errors)} errors` +
    (gaps ? `, ${number(gaps)} points without figures` : "") + ".";
  const slowest = (status) => Math.max(...known.map((point) => point.latency_ms?.[status]?.p95 ?? 0), 0);
  $("sum-latency").textContent = `Highest p95: hit ${number(slowest("hit"))} ms, miss ${number(slowest("miss"))} ms.`;
}

function setUpTheme() {
  const order = ["system", "light", "dark"];
  const name = () => localStorage.getItem("ragherd-theme") ?? "system";
  const label = () => ($("theme").textContent = `Theme: ${name()}`);
  $("theme").addEventListener("click", () => {
    const next = order[(order.indexOf(name()) + 1) % order.length];
    if (next === "system") localStorage.removeItem("ragherd-theme");
    else localStorage.setItem("ragherd-theme", next);
    if (next === "system") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = next;
    label();
    drawHistory();
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawHistory);
  label();
}

setUpTheme();
setUpAsk();
setUpAdmin();
$("range").addEventListener("change", loadHistory);
$("latency-status").addEventListener("change", drawHistory);
new ResizeObserver(resize).observe($("chart-queries"));
loadHistory().then(drawHistory);
setInterval(loadHistory, 60_000);
follow();
