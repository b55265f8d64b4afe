// The curves of several sprints in the same charts, a colour for each sprint.
import { Charts } from "./chart.js";

const place = document.getElementById("curves");
if (place) {
  const charts = new Charts(place, { by: "sprint", empty: "Nothing was recorded." });
  for (const id of place.dataset.ids.trim().split(" ")) {
    charts.colours.set(id, charts.colours.size % 8);
  }
  for (const id of place.dataset.ids.trim().split(" ")) {
    try {
      const answer = await fetch(`/sprints/${encodeURIComponent(id)}/curves.json`);
      const found = await answer.json();
      charts.add(found.curves.map((curve) => ({ ...curve, sprint: id })));
    } catch {
      charts.notes.push(`The curves of ${id} could not be loaded.`);
    }
  }
}
