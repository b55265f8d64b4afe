// One sprint's page: its curves, and while it runs, everything as it comes.
import { Charts } from "./chart.js";
import { badge, duration, element, listen, showEnd, size } from "./page.js";

const page = document.getElementById("sprint");
const address = `/sprints/${encodeURIComponent(page.dataset.id)}`;
const live = page.hasAttribute("data-live");
const curves = new Charts(document.getElementById("curves"), { empty: live ? "Nothing has been recorded yet." : "Nothing was recorded." });
const usage = new Charts(document.getElementById("usage"), { clock: true, empty: live ? "Measured while an experiment runs." : "Too short for samples to be drawn, or none were kept." });
const MOST_TEXT = 200_000;

function drawUsage(samples, anew) {
  if (!samples.length) return;
  const MIB = 1 << 20;
  const curve = (name, points) => ({ name, arm: "", seed: "", phase: "", origin: "", x: points.map((p) => p[0]), y: points.map((p) => p[1]), t: points.map((p) => p[0]), seen: points.length });
  const first = samples[0].t ?? samples[0].at;
  const at = (sample) => (sample.t ?? sample.at - first);
  const memory = samples.filter((s) => "memory_bytes" in s).map((s) => [at(s), s.memory_bytes / MIB]);
  const cores = [];
  for (let i = 1; i < samples.length; i++) {
    const seconds = at(samples[i]) - at(samples[i - 1]), used = samples[i].cpu_s - samples[i - 1].cpu_s;
    if (seconds > 0 && used >= 0) cores.push([at(samples[i]), used / seconds]);  // less than before: another container
  }
  const pids = samples.filter((s) => "pids" in s).map((s) => [at(s), s.pids]);
  const of = (name, unit = 1) => samples.filter((s) => name in s).map((s) => [at(s), s[name] / unit]);
  usage.set([curve("memory (MiB)", memory), curve("CPU (cores)", cores), curve("processes", pids),
    curve("GPU memory (MiB)", of("gpu_memory_bytes", MIB)), curve("GPU busy (%)", of("gpu_busy"))].filter((one) => one.y.length > 1));
}

// ---- a sprint that has ended ----

async function drawRecorded() {
  try {
    const answer = await fetch(`${address}/curves.json`);
    const found = await answer.json();
    curves.leftOut = found.left_out;
    curves.notes = found.notes;
    curves.set(found.curves);
  } catch {
    curves.said.textContent = "The curves could not be loaded.";
  }
}

// ---- a sprint that runs ----

const news = document.getElementById("news");
let samples = [], phases = [], since = 0, heard = "";

function showState(state) {
  phases = state.phases;
  since = performance.now();
  showPhases();
  document.getElementById("steps").replaceChildren(...state.steps.map((step) => element("li", {},
    element("time", {}, step.at), ` ${step.name} `,
    element("span", { class: "quiet" }, step.seconds ? duration(step.seconds) : ""),
    element("span", { class: "wrong" }, step.error))));
  const now = phases.find((phase) => phase.state === "running");
  if (now && now.name !== heard) {
    heard = now.name;
    news.replaceChildren(element("p", { class: "unseen" }, `Now: ${now.name}`));
  }
}

function showPhases() {
  const passed = (performance.now() - since) / 1000;
  document.getElementById("phases").replaceChildren(...phases.map((phase) => {
    const moving = phase.state === "running";
    const taken = phase.seconds === null ? "" : duration(phase.seconds + (moving ? passed : 0));
    const left = phase.left === null ? "" : `, at most ${duration(Math.max(0, phase.left - passed))} left`;
    return element("li", { "data-state": phase.state }, element("span", { class: "name" }, phase.name), " ", badge(phase.state), " ",
      element("span", { class: "time" }, taken + left));
  }));
}

function showLog(said) {
  const place = document.getElementById(said.stream);
  const atEnd = place.scrollHeight - place.scrollTop - place.clientHeight < 40;
  if (said.anew) place.textContent = "";
  else if (said.skipped) place.append(`\n… ${size(said.skipped)} passed over …\n`);
  place.append(said.text);
  let length = place.textContent.length;
  while (length > MOST_TEXT && place.childNodes.length > 1) {
    length -= place.firstChild.textContent.length;
    place.firstChild.remove();
  }
  if (said.anew) document.getElementById(`${said.stream}-before`).textContent = said.skipped ? `after ${size(said.skipped)}` : "";
  if (atEnd) place.scrollTop = place.scrollHeight;
}

function showCurves(said) {
  curves.leftOut = said.left_out;
  if (said.anew) curves.set(said.curves);
  else curves.add(said.curves);
}

function showUsage(said) {
  samples = said.anew ? said.samples : [...samples, ...said.samples].slice(-2000);
  drawUsage(samples);
}

if (live) {
  for (const name of ["stdout", "stderr"]) {
    const place = document.getElementById(name);
    place.scrollTop = place.scrollHeight;
  }
  const clock = setInterval(showPhases, 1000);
  const stop = listen(`${address}/live`, {
    state: showState, log: showLog, curves: showCurves, usage: showUsage,
    end: (said) => { stop(); clearInterval(clock); showEnd(said, address, "sprint"); },
  });
} else {
  drawUsage(JSON.parse(document.getElementById("usage").dataset.samples));
  drawRecorded();
}
