// Making elements. Text is always text: nothing here, or in any other script, makes markup of a string.

export function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (value !== undefined && value !== null && value !== false) made.setAttribute(key, value === true ? "" : String(value));
  }
  made.append(...children.map((child) => (child instanceof Node ? child : document.createTextNode(String(child)))));
  return made;
}

const KINDS = {
  completed: "good", ended: "good", ok: "good", better: "good",
  running: "busy", verifying: "busy",
  broken: "bad", failed: "bad", "broken off": "bad",
};

export function badge(word) {
  return element("span", { class: `badge ${Object.hasOwn(KINDS, word) ? KINDS[word] : "calm"}` }, word);
}

export function duration(seconds) {
  if (!Number.isFinite(seconds)) return "–";
  if (seconds < 60) return `${Math.round(seconds)} s`;
  const minutes = Math.floor(seconds / 60);
  return minutes < 60 ? `${minutes} min ${Math.round(seconds % 60)} s` : `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
}

export function size(bytes) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let unit = 0;
  while (Math.abs(bytes) >= 1024 && unit < units.length - 1) [bytes, unit] = [bytes / 1024, unit + 1];
  return `${Number(bytes.toPrecision(4))} ${units[unit]}`;
}

export function rows(body, found) {
  body.replaceChildren(...found.map((cells) => element("tr", {}, ...cells.map((cell) => element("td", {}, cell)))));
}
