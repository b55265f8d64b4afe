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
  completed: "good", ended: "good", ok: "good", better: "good", complete: "good", best: "good",
  running: "busy", verifying: "busy",
  broken: "bad", failed: "bad", "broken off": "bad", "cut off": "bad", timeout: "bad", oom: "bad",
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

// The events of a run that goes on, shown by `shown[name]` as they come. Browsers keep few connections to one server, so a page
// that nobody sees gives its own back. Returns what ends it.
export function listen(address, shown) {
  let stream = null, over = false;
  const open = () => {
    stream = new EventSource(address);
    for (const [name, show] of Object.entries(shown)) stream.addEventListener(name, (event) => show(JSON.parse(event.data)));
  };
  const close = () => { stream?.close(); stream = null; };
  document.addEventListener("visibilitychange", () => {
    if (over) return;
    if (document.hidden) close();
    else if (!stream) open();
  });
  open();
  return () => { over = true; close(); };
}

// What is said when nobody is at a run any more.
export function showEnd(said, address, what) {
  document.querySelector(".actions form")?.remove();  // there is nobody to stop any more
  document.getElementById("state").replaceChildren(badge(said.ended ? "ended" : "not finished"));
  const again = element("a", { href: address }, "Load the page again");
  const how = said.ended ? `The ${what} has ended. ` : `Nobody is at the ${what} any more. `;
  document.getElementById("news").replaceChildren(element("p", { class: "note" }, how, again, " to see what came of it."),
    ...(said.said ? [element("p", { class: "problem" }, `Its process ended: ${said.said}`)] : []));
}

export function rows(body, found) {
  body.replaceChildren(...found.map((cells) => element("tr", {}, ...cells.map((cell) => element("td", {}, cell)))));
}
