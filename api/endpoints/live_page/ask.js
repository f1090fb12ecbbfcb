// The question box: an answer as it streams, then why the cache did or did not serve it.

import { $, el, list, milliseconds, percent, pill, show, table } from "./dom.js";
import { Problem, events, send } from "./client.js";
import { cachePill } from "./panels.js";

const MOST_CANDIDATES = 5;
let running = null;

export function setUpAsk() {
  $("ask-form").addEventListener("submit", (event) => {
    event.preventDefault();
    ask();
  });
  $("question").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey) {
      event.preventDefault();
      $("ask-form").requestSubmit();
    }
  });
  $("stop").addEventListener("click", () => running?.abort());
}

async function ask() {
  running?.abort();
  const call = (running = new AbortController());
  const body = { question: $("question").value.trim() };
  if ($("tenant").value.trim()) body.tenant = $("tenant").value.trim();
  const text = el("div", { class: "answer-text", id: "answer-text" });
  const facts = el("div", {});
  show($("answer"), [text, facts]);
  show($("explain"));
  $("stop").hidden = false;
  let sources = [];
  try {
    const extra = $("fresh").checked ? { "Cache-Control": "no-cache" } : {};
    // The look-up is explained first: afterwards the answer would be in the cache.
    const why = await send("POST", "/api/semantic-cache/explain", body, call.signal).catch(() => null);
    for await (const { event, data } of events("/query", { method: "POST", body, extra, signal: call.signal })) {
      if (event === "sources") sources = data;
      else if (event === "token") text.append(data.text);
      else if (event === "error") throw new Problem(data.status, data);
      else if (event === "done") show(facts, outcome(data, sources));
    }
    if (why) show($("explain"), explained(why));
  } catch (error) {
    if (error.name !== "AbortError") show(facts, el("p", { class: "problem", role: "alert" }, error.message));
  } finally {
    if (running === call) $("stop").hidden = true;
  }
}

function outcome(done, sources) {
  const { cache, timings_ms: timings, usage } = done;
  return [
    el("div", { class: "row" },
      cachePill(cache.status, cache.kind),
      cache.similarity === null ? null : pill("plain", `similarity ${cache.similarity.toFixed(3)}`),
      pill("plain", milliseconds(timings.total)),
      pill("plain", done.model),
      usage.completion_tokens ? pill("plain", `${usage.prompt_tokens} + ${usage.completion_tokens} tokens`) : null,
      feedback(done.request_id)),
    sources.length ? el("details", {}, el("summary", {}, `${sources.length} sources`),
      sources.map((source, index) => el("p", {}, `[${index + 1}] `, el("strong", {}, source.title), ` ${source.text.slice(0, 240)}`))) : null,
  ].filter(Boolean);
}

function feedback(request) {
  const state = el("span", { class: "summary", role: "status" });
  const vote = (verdict) => async () => {
    try {
      await send("POST", "/feedback", { request_id: request, verdict });
      state.textContent = verdict === "bad" ? "Thank you. This answer is no longer served." : "Thank you.";
    } catch (error) {
      state.textContent = error.message;
    }
  };
  return el("span", { class: "row" },
    el("button", { type: "button", on: { click: vote("good") } }, "Good answer"),
    el("button", { type: "button", on: { click: vote("bad") } }, "Wrong answer"),
    state);
}

const verdict = (outcomeOf) => outcomeOf.replaceAll("_", " ");

function explained(why) {
  return [
    el("h3", {}, "Why"),
    el("p", {}, `${verdict(why.decision)}: ${why.reason}`),
    why.candidates.length ? el("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "Nearest cached questions" }, table(`The nearest cached questions. Threshold ${why.threshold}, policy ${why.policy}.`, [
      ["Cached question", (candidate) => candidate.question],
      ["Similarity", (candidate) => candidate.similarity.toFixed(3), true],
      ["Guards", guards],
      ["Verifier", (candidate) => (candidate.verifier ? percent(candidate.verifier.score) : "–"), true],
      ["Verdict", (candidate) => pill(candidate.would_serve ? "good" : "plain", verdict(candidate.verdict))],
    ], why.candidates.slice(0, MOST_CANDIDATES))) : el("p", { class: "summary" }, "The cache has no similar question."),
    el("h3", {}, "What each policy would do"),
    list(Object.entries(why.policies ?? {}).map(([name, one]) => [name, verdict(one.outcome) + (one.reason ? `: ${one.reason}` : "")])),
  ];
}

function guards(candidate) {
  const rejecting = candidate.guards.filter((guard) => !guard.agrees);
  const agreeing = candidate.guards.filter((guard) => guard.agrees);
  return el("div", { class: "guards" },
    rejecting.map((guard) => pill("bad", guard.detail ? `${verdict(guard.guard)}: ${guard.detail}` : verdict(guard.guard))),
    agreeing.length ? el("details", { class: "agreeing" },
      el("summary", {}, `${agreeing.length} agree`),
      agreeing.map((guard) => verdict(guard.guard)).join(", ")) : null);
}
