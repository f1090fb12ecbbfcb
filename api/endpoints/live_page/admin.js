// What only an admin may do. Each action asks first; a deletion counts first.

import { $, el } from "./dom.js";
import { savedKey, saveKey, send } from "./client.js";

const BREAKER = {
  "force-open": ["Force the breaker open?", "Every replica rejects all calls to Ollama until you reset the breaker. Cached answers are still served."],
  "force-close": ["Force the breaker closed?", "Every replica calls Ollama until you reset the breaker, whatever fails."],
  reset: ["Reset the breaker?", "The breaker closes, its counts start at zero, and any override ends."],
};
const BACKEND = {
  drain: (name) => [`Drain ${name}?`, "No replica sends it new calls until you resume it. Calls in progress end."],
  resume: (name) => [`Resume ${name}?`, "Every replica sends it calls again."],
  force: (name) => [`Drain ${name}, the last backend?`, "Every replica rejects all calls to Ollama until you resume a backend. Cached answers are still served."],
};
const CONFLICT = 409;

function confirmed(title, text) {
  const dialog = $("confirm");
  $("confirm-title").textContent = title;
  $("confirm-text").textContent = text;
  dialog.returnValue = "cancel";
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => resolve(dialog.returnValue === "ok"), { once: true });
  });
}

export function setUpAdmin() {
  const said = (text) => ($("breaker-result").textContent = text);
  for (const button of document.querySelectorAll("[data-breaker]")) {
    button.addEventListener("click", async () => {
      const action = button.dataset.breaker;
      const [title, text] = BREAKER[action];
      const name = $("breaker-name").value;
      if (!(await confirmed(name ? title.replace("the breaker", `the breaker ${name}`) : title, text))) return;
      said("");
      const query = name ? `?breaker=${encodeURIComponent(name)}` : "";
      await attempt(() => send("POST", `/api/circuit-breaker/${action}${query}`), said);
    });
  }
  $("backends").addEventListener("click", ({ target }) => {
    const button = target.closest("[data-action]");
    if (button) changeBackend(button.dataset.action, button.dataset.name);
  });
  $("invalidate-form").addEventListener("submit", (event) => {
    event.preventDefault();
    invalidate();
  });
  setUpKey();
}

// Offers each breaker by its name if there are several.
export function nameBreakers(names) {
  const select = $("breaker-name");
  const known = [...select.options].slice(1).map((option) => option.value);
  if (names.join() !== known.join()) select.replaceChildren(select.options[0], ...names.map((name) => el("option", { value: name }, name)));
  $("breaker-choice").hidden = names.length < 2;
}

async function changeBackend(action, name) {
  const said = (text) => ($("backends-result").textContent = text);
  const change = (query = "") => send("POST", `/api/backends/${encodeURIComponent(name)}/${action}${query}`);
  if (!(await confirmed(...BACKEND[action](name)))) return;
  said("");
  await attempt(async () => {
    try {
      await change();
    } catch (error) {
      if (error.status !== CONFLICT) throw error;
      if (!(await confirmed(...BACKEND.force(name)))) return said("Nothing was changed.");
      await change("?force=true");
    }
    said(action === "drain" ? `${name} is drained.` : `${name} is in use.`);
  }, said);
}

async function invalidate() {
  const by = $("invalidate-by").value;
  const chosen = new URLSearchParams([[by, by === "all" ? "true" : $("invalidate-value").value]]);
  const said = (text) => ($("invalidate-result").textContent = text);
  await attempt(async () => {
    const { matched } = await send("DELETE", `/api/semantic-cache?${chosen}&dry_run=true`);
    if (!matched) return said("No cached answer matches.");
    if (!(await confirmed(`Delete ${matched} cached answers?`, "They are generated again when they are asked for."))) return said("Nothing was deleted.");
    const { deleted } = await send("DELETE", `/api/semantic-cache?${chosen}`);
    said(`Deleted ${deleted}.`);
  }, said);
}

async function attempt(action, said) {
  try {
    await action();
  } catch (error) {
    said(error.status === 401 || error.status === 403 ? `${error.message} Enter one with “Key” at the top.` : error.message);
  }
}

function setUpKey() {
  const dialog = $("key-dialog");
  $("key").addEventListener("click", () => {
    $("key-value").value = savedKey();
    dialog.returnValue = "cancel"; // unless a button says otherwise
    dialog.showModal();
  });
  dialog.addEventListener("close", () => {
    if (dialog.returnValue === "forget") saveKey("");
    if (dialog.returnValue === "ok") saveKey($("key-value").value.trim());
    if (["forget", "ok"].includes(dialog.returnValue)) location.reload();
  });
}
