// Says when the log has been verified.
import { badge, element } from "./page.js";

const place = document.getElementById("verification");
let word = place.dataset.word;
while (word === "verifying" || word === "not verified yet") {
  await new Promise((resolve) => setTimeout(resolve, 700));
  try {
    const state = await (await fetch("/audit/state.json")).json();
    word = state.word;
    place.dataset.word = word;
    document.getElementById("word").replaceChildren(badge(word));
    document.getElementById("told").textContent = state.text;
    document.getElementById("lines").replaceChildren(...state.lines.map((line) => element("li", {}, line)));
  } catch {
    word = "";
  }
}
