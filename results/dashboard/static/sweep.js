// A sweep that goes on: its trials as they begin and end.
import { badge, element, listen, showEnd } from "./page.js";

const page = document.getElementById("sweep");
const address = `/sprints/${encodeURIComponent(page.dataset.id)}`;

function link(to, text) {
  return to ? element("a", { href: `/sprints/${to}` }, text) : text;
}

function showTrials(said) {
  document.getElementById("metric").textContent = said.metric || "value";
  document.getElementById("progress").textContent = `${said.ended} of the ${said.rows.length} trials below have ended.`;
  document.getElementById("trials").replaceChildren(...said.rows.map((one) => element("tr", {},
    element("th", { scope: "row" }, link(one.address, `trial ${one.name}`), ...(one.best ? [" ", badge("best")] : [])),
    element("td", {}, badge(one.state)), element("td", {}, one.value), element("td", { class: "said" }, one.params))));
}

function showConfirm(found) {
  if (found.length) document.getElementById("unconfirmed")?.remove();
  document.getElementById("confirm").replaceChildren(...found.map((one) => element("li", {},
    link(one.address, one.name), " ", badge(one.state))));
}

const stop = listen(`${address}/live`, {
  trials: showTrials, confirm: showConfirm,
  end: (said) => { stop(); showEnd(said, address, "sweep"); },
});
