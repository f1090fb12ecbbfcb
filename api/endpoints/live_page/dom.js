// Small helpers: elements, numbers, times. Text from the service only ever becomes text nodes, never HTML.

export const $ = (id) => document.getElementById(id);

export function el(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name === "on") for (const [event, handler] of Object.entries(value)) node.addEventListener(event, handler);
    else node.setAttribute(name, value === true ? "" : String(value));
  }
  node.append(...children.flat().filter((child) => child !== null && child !== undefined).map(asNode));
  return node;
}

const asNode = (child) => (child instanceof Node ? child : document.createTextNode(String(child)));

// Replaces the content. A control with a `data-keep` keeps the focus.
export function show(target, ...children) {
  const kept = target.contains(document.activeElement) ? document.activeElement.dataset.keep : undefined;
  target.replaceChildren(...children.flat().filter(Boolean));
  if (kept) [...target.querySelectorAll("[data-keep]")].find((one) => one.dataset.keep === kept)?.focus();
}

export const pill = (kind, text) => el("span", { class: `pill ${kind}` }, text);

// A table whose first column names the row. `columns`: [heading, cell of a row, is it a number?]
export function table(caption, columns, rows, empty = "None.") {
  if (!rows.length) return el("p", { class: "summary" }, empty);
  const cell = ([, value, number], row, index) =>
    el(index ? "td" : "th", { class: number ? "number" : null, scope: index ? null : "row" }, value(row) ?? "–");
  return el("table", {},
    el("caption", {}, caption),
    el("thead", {}, el("tr", {}, columns.map(([name, , number]) => el("th", { scope: "col", class: number ? "number" : null }, name)))),
    el("tbody", {}, rows.map((row) => el("tr", {}, columns.map((column, index) => cell(column, row, index))))),
  );
}

export const facts = (pairs) =>
  el("div", { class: "facts" }, pairs.map(([name, value]) => el("span", {}, `${name} `, el("b", {}, value))));

export const list = (pairs) => el("dl", {}, pairs.flatMap(([name, value]) => [el("dt", {}, name), el("dd", {}, value)]));

const plain = new Intl.NumberFormat("en", { maximumFractionDigits: 1 });
const compact = new Intl.NumberFormat("en", { notation: "compact", maximumFractionDigits: 1 });

export const number = (value) => (value === null || value === undefined ? "–" : Math.abs(value) < 10000 ? plain.format(value) : compact.format(value));
export const percent = (share, digits = 1) => (share === null || share === undefined || Number.isNaN(share) ? "–" : `${(share * 100).toFixed(digits)} %`);
export const milliseconds = (value) => (value === null || value === undefined ? "–" : value < 1000 ? `${plain.format(value)} ms` : `${plain.format(value / 1000)} s`);

export function seconds(value) {
  if (value === null || value === undefined) return "–";
  if (value < 90) return `${plain.format(value)} s`;
  if (value < 5400) return `${plain.format(value / 60)} min`;
  if (value < 129600) return `${plain.format(value / 3600)} h`;
  return `${plain.format(value / 86400)} d`;
}

export const ago = (time) => (time ? `${seconds(Math.max(0, (Date.now() - Date.parse(time)) / 1000))} ago` : "–");
export const clock = (time) => (time ? new Date(time).toLocaleTimeString([], { hour: "2-digit", minute: "2-digit", second: "2-digit" }) : "–");

// The color of a style sheet's variable as the canvas needs it.
export function color(name) {
  const probe = el("span", { hidden: true });
  probe.style.color = `var(--${name})`;
  document.body.append(probe);
  const found = getComputedStyle(probe).color;
  probe.remove();
  return found;
}
