// Figures of the server, drawn by plotly in the colours of the page.
"use strict";

import {fitted} from "/colours.js";

let loading = null;

/** Plotly, fetched when the first figure is drawn: the table does not wait for it. */
function plotly() {
  loading ??= new Promise((done, failed) => {
    const script = document.createElement("script");
    script.src = "/plotly.min.js";
    script.onload = () => done(window.Plotly);
    script.onerror = () => failed(new Error("plotly.min.js did not come"));
    document.head.append(script);
  });
  return loading;
}

export function isDark() {
  const chosen = document.documentElement.dataset.theme;
  return chosen ? chosen === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
}

// Without the last two a click would send a figure to plotly's own servers.
const CONFIG = {responsive: true, displaylogo: false, modeBarButtonsToRemove: ["sendChartToCloud"], plotlyServerURL: ""};

/** Draw figures below each other. A place that shows the same figure already takes the new data. */
export async function draw(place, figures) {
  const Plotly = await plotly();
  const keys = figures.map((one) => `${one.run}|${"figure" in one}`);
  const before = [...place.children];
  const same = before.length === keys.length && before.every((part, i) => part.dataset.key === keys[i]);
  const parts = same ? before : figures.map((one, i) => part(one, keys[i]));
  if (!same) {
    clear(place);
    place.replaceChildren(...parts);
  }
  for (const [i, one] of figures.entries()) {
    const target = parts[i].lastElementChild;
    if (one.figure) {
      const {data, layout, frames} = fitted(one.figure, isDark(), place.clientWidth);
      layout.uirevision = "kept"; // a zoom survives new data
      await Plotly.react(target, {data, layout, config: CONFIG, frames});
    } else {
      target.textContent = one.reason;
    }
  }
}

function part(one, key) {
  const whole = document.createElement("div");
  whole.dataset.key = key;
  if (one.run !== null) {
    const name = document.createElement("h3");
    name.textContent = one.run;
    whole.append(name);
  }
  const target = document.createElement(one.figure ? "div" : "p");
  target.className = one.figure ? "figure" : "reason";
  whole.append(target);
  return whole;
}

/** Take figures away with all that plotly keeps of them. */
export function clear(place) {
  if (window.Plotly) place.querySelectorAll(".figure").forEach((target) => window.Plotly.purge(target));
  place.replaceChildren();
}
