// Keeps the devices and the queue up to date while somebody looks.
import { rows } from "./page.js";

async function look() {
  if (document.hidden) return;
  try {
    const seen = await (await fetch("/gpus.json")).json();
    const problem = document.getElementById("problem");
    const said = seen.problem || seen.driver;
    if (problem.textContent !== said) problem.textContent = said;
    problem.classList.toggle("note", Boolean(seen.problem));
    for (const name of ["devices", "queue"]) {
      const place = document.getElementById(name);
      place.hidden = !seen[name].length;
      rows(place.querySelector("tbody"), seen[name]);
    }
  } catch {
    // The server is gone, or busy; the next look may find it.
  }
}

setInterval(look, 2000);
