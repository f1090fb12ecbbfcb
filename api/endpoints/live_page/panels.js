// Each panel turns a part of the latest figures into elements.

import { $, ago, clock, el, facts, list, milliseconds, number, percent, pill, seconds, show, table } from "./dom.js";

const STATE = { CLOSED: "good", HALF_OPEN: "warn", OPEN: "bad" };
const HEALTH = { healthy: "good", degraded: "warn", unhealthy: "bad" };
const CACHE = { hit: "good", stale: "warn", coalesced: "plain", miss: "plain", bypass: "plain", error: "bad", left: "plain" };

const counted = (count, name) => `${number(count)} ${name}${count === 1 ? "" : "s"}`;
const words = (name) => name.replaceAll("_", " ");

export const cachePill = (status, kind) => pill(CACHE[status] ?? "plain", kind ? `${status}, ${kind}` : status);

export function health(report) {
  const status = $("status");
  status.className = `pill ${HEALTH[report.status] ?? "plain"}`;
  const down = [!report.database && "Redis down", !report.ollama && "Ollama down",
    report.drained.length && `${report.drained.join(", ")} drained`].filter(Boolean);
  status.textContent = [report.status, ...down].join(", ");
  $("version").textContent = `Ragherd ${report.version}`;
}

function tile(name, value, note) {
  return el("div", { class: "tile" }, el("div", { class: "name" }, name), el("div", { class: "value" }, value), el("div", { class: "note" }, note));
}

const interval = (rate) => (rate?.estimate === null || rate?.estimate === undefined
  ? "no labels yet"
  : `${percent(rate.low)} to ${percent(rate.high)}, ${number(rate.samples)} labels`);

// The minutes of a point that have figures.
export const minutes = (point, step) => step / 60 - (point.missing_minutes ?? 0);

export function tiles(now, { points, step }) {
  const last = points.filter((point) => !point.gap).at(-1);
  const sum = (counts) => Object.values(counts ?? {}).reduce((total, count) => total + count, 0);
  const { cache, breaker, workers } = now;
  show($("tiles"), [
    tile("Queries a minute", last ? number(sum(last.queries) / minutes(last, step)) : "–", last ? `at ${clock(last.at)}` : "no history yet"),
    tile("Hit rate", cache ? percent(cache.hit_rate) : "–", cache ? `${number(cache.exact_hits)} exact, ${number(cache.semantic_hits)} semantic` : ""),
    tile("Wrong hits", cache ? percent(cache.false_hit_rate.estimate) : "–", interval(cache?.false_hit_rate)),
    tile("Latency p95, hit", milliseconds(last?.latency_ms?.hit?.p95), `miss ${milliseconds(last?.latency_ms?.miss?.p95)}`),
    tile("Breaker", breaker ? pill(STATE[breaker.state], breaker.state) : "–",
      breaker?.state === "OPEN" ? `next probe in ${breaker.retry_after_seconds} s` : breaker?.forced ? "forced" : ""),
    tile("Workers", workers ? number(workers.length) : "–", workers ? counted(new Set(workers.map((worker) => worker.host)).size, "replica") : "Redis is down"),
  ]);
}

// The states of one breaker over the chosen range, from its log.
function timeline(state, transitions, rangeSeconds) {
  const now = Date.now();
  const from = now - rangeSeconds * 1000;
  const changes = [...transitions].reverse().map((change) => ({ at: Date.parse(change.time), from: change.from, to: change.to }));
  const inside = changes.filter((change) => change.at > from);
  let current = inside.length ? inside[0].from : state;
  let since = from;
  const pieces = [];
  for (const change of [...inside, { at: now, to: state }]) {
    pieces.push([current, change.at - since, since]);
    [current, since] = [change.to, change.at];
  }
  const total = now - from;
  const share = {};
  for (const [name, length] of pieces) share[name] = (share[name] ?? 0) + length / total;
  const text = Object.entries(share).map(([name, part]) => `${name} ${percent(part, part > 0.999 ? 0 : 1)}`).join(", ");
  const strip = el("div", { class: "timeline", role: "img", "aria-label": `Over the last ${seconds(rangeSeconds)}: ${text}` },
    pieces.map(([name, length, began]) => {
      const piece = el("span", { class: `state-${name}`, title: `${name} for ${seconds(length / 1000)}, from ${clock(began)}` });
      piece.style.flex = `${Math.max(length / total, 0.0005)} 0 auto`;
      return piece;
    }));
  return [strip, el("div", { class: "axis" }, el("span", {}, `${seconds(rangeSeconds)} ago`), el("span", {}, text), el("span", {}, "now"))];
}

export function breakers(report, logs, rangeSeconds) {
  show($("breakers"), Object.entries(report.breakers).map(([name, one]) => el("div", { class: "breaker" },
    el("h3", {}, `${name} `, pill(STATE[one.state], one.state), one.forced ? pill("warn", `forced ${one.forced}`) : null,
      one.store === "local" ? pill("warn", "without Redis") : null),
    timeline(one.state, logs[name] ?? [], rangeSeconds),
    facts([
      ["calls", number(one.total_calls)],
      ["failed", number(one.failure_count)],
      ["rejected", number(one.rejected_calls)],
      ["failure rate", percent(one.failure_rate / 100)],
      ["last failure", ago(one.last_failure_time)],
      ...(one.state === "OPEN" ? [["next probe in", `${one.retry_after_seconds} s`]] : []),
      ...(one.reason ? [["reason", words(one.reason)]] : []),
    ]))));
}

// `recoveries`: the report of each breaker, by name.
export function outages(recoveries) {
  const all = Object.entries(recoveries).flatMap(([name, report]) => report.outages.map((outage) => ({ name, ...outage })));
  all.sort((one, other) => Date.parse(other.began) - Date.parse(one.began));
  show($("outages"), [
    table("Of each breaker, over the last 24 hours", [
      ["Breaker", ([name]) => name],
      ["Available", ([, report]) => percent(report.availability_24h, 2), true],
      ["Mean outage", ([, report]) => seconds(report.mean_seconds), true],
      ["Longest", ([, report]) => seconds(report.longest_seconds), true],
      ["Mean probes", ([, report]) => number(report.mean_probes), true],
    ], Object.entries(recoveries)),
    table("Outages, newest first", [
      ["Began", (outage) => new Date(outage.began).toLocaleString()],
      ["Breaker", (outage) => outage.name],
      ["Recovered after", (outage) => (outage.ended ? seconds(outage.seconds) : "still open"), true],
      ["Probes", (outage) => number(outage.probes), true],
      ["Reason", (outage) => words(outage.reason)],
    ], all, "No outages."),
  ]);
}

const share = (report, hits) => hits / (report.hits + report.misses);

export function cache(report) {
  show($("cache"), list([
    ["Entries", `${number(report.cache_size)} of ${number(report.max_cache_size)}`],
    ["Hit rate", `${percent(report.hit_rate)}: ${percent(share(report, report.exact_hits))} exact, ${percent(share(report, report.semantic_hits))} semantic`],
    ["Hits", `${number(report.exact_hits)} exact, ${number(report.semantic_hits)} semantic, ${number(report.stale_hits)} stale, ${number(report.coalesced)} coalesced`],
    ["Misses", number(report.misses)],
    ["Stored, evicted", `${number(report.stores)}, ${number(report.evictions)}`],
    ["Rejected by guards", number(report.guard_rejections)],
    ["Threshold", `${report.similarity_threshold}${report.policy ? `, policy ${report.policy}` : ""}${report.tightened ? ", tightened" : ""}`],
    ["Wrong hits", `${percent(report.false_hit_rate.estimate)} (${interval(report.false_hit_rate)})`],
    ["Feedback", `${number(report.feedback_good)} good, ${number(report.feedback_bad)} bad`],
    ["Embedder", [report.embedder.name, report.embedder.dimension && `${report.embedder.dimension} dimensions`].filter(Boolean).join(", ") || "not known"],
  ]));
}

const UP = { true: ["good", "up"], false: ["bad", "down"], null: ["plain", "not probed"] };

// `pool`: the connections of the worker that serves this page.
export function backends(found, pool) {
  const tiered = found.some((one) => one.tier !== 1 || one.weight !== 1);
  const connections = (one) => pool?.backends[one.name];
  show($("backends"), table("Calls are those of the whole fleet, speed and connections those of the worker that serves this page", [
    ["Backend", (one) => [el("span", {}, one.name), el("span", { class: "url" }, one.url)]],
    ...(tiered ? [["Tier", (one) => number(one.tier), true], ["Weight", (one) => number(one.weight), true]] : []),
    ["State", (one) => el("span", { class: "pills" }, one.drained ? pill("warn", one.drained_at ? `drained ${ago(one.drained_at)}` : "drained") : null, pill(...UP[one.reachable]))],
    ["Action", drainButton],
    ["Breaker", (one) => el("span", { class: "pills" }, Object.entries(one.breakers).map(([name, state]) => pill(STATE[state], name.endsWith("-embed") ? `embed ${state}` : state)))],
    ["In memory", (one) => one.resident.join(", ") || "none"],
    ["Calls", (one) => `${number(one.in_use)} of ${number(one.limit)}`, true],
    ["Queue", (one) => `${number(one.waiting)} of ${number(one.max_queue)}`, true],
    ["Tokens/s", (one) => number(one.tokens_per_second), true],
    ["Connections", (one) => (connections(one) ? `${connections(one).active} of ${connections(one).pool_maxsize}` : "–"), true],
    ["Reused", (one) => percent(connections(one)?.reuse_rate, 0), true],
  ], found));
}

function drainButton(one) {
  const action = one.drained ? "resume" : "drain";
  const label = one.drained ? "Resume" : "Drain";
  return el("button", { type: "button", "data-action": action, "data-name": one.name, "data-keep": `drain ${one.name}`, "aria-label": `${label} ${one.name}` }, label);
}

export function bulkheads(report) {
  show($("bulkheads"), table("Calls to Ollama over the whole fleet", [
    ["Backend", (row) => row.name],
    ["In use", (row) => `${row.in_use} of ${row.limit}`, true],
    ["Waiting", (row) => `${row.waiting} of ${row.max_queue}`, true],
    ["Batch", (row) => `${row.waiting_by_priority.batch}`, true],
    ["By tenant", (row) => (row.waiting_by_tenant === null ? "admins only" : Object.entries(row.waiting_by_tenant).map(([tenant, count]) => `${tenant} ${count}`).join(", ") || "–")],
    ["Served", (row) => number(row.served), true],
    ["Rejected", (row) => number(Object.values(row.rejected).reduce((total, count) => total + count, 0)), true],
  ], Object.entries(report.bulkheads).map(([name, row]) => ({ name, ...row }))));
}

export function workers(found) {
  show($("workers"), found === null ? el("p", { class: "summary" }, "Redis is down, so only each worker knows about itself.") : table("Live workers of every replica", [
    ["Worker", (worker) => worker.id],
    ["Host", (worker) => worker.host],
    ["Version", (worker) => worker.version],
    ["Up", (worker) => seconds((Date.now() - Date.parse(worker.started)) / 1000), true],
    ["Queries", (worker) => number(worker.requests), true],
    ["Connections", (worker) => `${worker.pool.active} active, ${worker.pool.idle} idle`, true],
  ], found));
}

export function recent(outcomes) {
  const texts = outcomes.some((outcome) => outcome.question);
  show($("recent"), table(texts ? "Newest first" : "Newest first. With LOG_QUESTIONS=true, admins see the questions.", [
    ["Time", (outcome) => clock(outcome.at)],
    ["Outcome", (outcome) => cachePill(outcome.status, outcome.kind)],
    ...(texts ? [["Question", (outcome) => outcome.question ?? "–"]] : []),
    ["Similarity", (outcome) => (outcome.similarity === null ? "–" : outcome.similarity.toFixed(3)), true],
    ["Took", (outcome) => milliseconds(outcome.ms), true],
    ["Model", (outcome) => outcome.model],
    ["Worker", (outcome) => outcome.worker],
  ], outcomes, "No questions yet."));
}

// What the cache saved in the range: an answer from the cache is taken to be worth a mean generated one.
export function savings(points, step, price) {
  const total = { served: 0, generated: 0, tokens: 0, hitMs: 0, missMs: 0 };
  for (const point of points) {
    if (point.gap) continue;
    const { hit = 0, stale = 0, coalesced = 0, miss = 0, bypass = 0 } = point.queries;
    total.served += hit + stale + coalesced;
    total.generated += miss + bypass;
    total.tokens += (point.tokens?.prompt ?? 0) + (point.tokens?.completion ?? 0);
    total.hitMs += hit * (point.latency_ms?.hit?.p50 ?? 0);
    total.missMs += miss * (point.latency_ms?.miss?.p50 ?? 0);
  }
  const hits = points.reduce((count, point) => count + (point.queries?.hit ?? 0), 0);
  const misses = points.reduce((count, point) => count + (point.queries?.miss ?? 0), 0);
  const tokens = total.generated ? (total.tokens / total.generated) * total.served : null;
  const saved = hits && misses ? ((total.missMs / misses - total.hitMs / hits) * hits) / 1000 : null;
  show($("savings"), [
    list([
      ["Answers without a generation", `${number(total.served)} of ${number(total.served + total.generated)}`],
      ["Tokens not generated or read", tokens === null ? "–" : `about ${number(Math.round(tokens))}`],
      ["Waiting time", saved === null ? "–" : `about ${seconds(Math.max(0, saved))}`],
      ["Money", tokens === null || !price ? "set PRICE_PER_MILLION_TOKENS" : `about ${((tokens / 1e6) * price).toLocaleString("en", { maximumSignificantDigits: 3 })}`],
    ]),
    el("p", { class: "summary" }, "In the chosen range. One answer from the cache counts as a mean generated answer."),
  ]);
}
