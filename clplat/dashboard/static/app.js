// The page: what it shows is a function of `state`, which the address holds, and of what the server says. Names and
// values are text, whatever is in them: they go into textContent and never into markup.
import {clear, draw, isDark} from "/figures.js";
import {ask, at, chooseLog, fill, loadLog, loadWords} from "/words.js";

const POLL = 2000; // milliseconds between two questions to the server
const MOST = 50; // runs in a figure; the server refuses more
const OWN_VIEWS = [{key: "log", title: "Log"}, {key: "run", title: "The run in words"}];
const FIELDS = ["where", "columns", "group", "term"];

const blank = () => ({where: "", columns: "", group: "", term: "", sort: "", view: "overlay", pick: []});
let state = blank();
let about = {views: [], columns: []};
let table = {version: 0, order: [], columns: [], found: 0, total: 0};
let rows = new Map(); // what the server said of each run
let lines = new Map(); // the row of the table of each run
let here = 0; // the row that the keys act on
let shown = {asked: "", version: 0}; // what the panel shows
let turn = 0; // questions overtake each other: only the answer to the last one counts
let panelTurn = 0;

// -- the address ------------------------------------------------------------------------------------------------------

function readAddress() {
  const words = new URLSearchParams(location.hash.slice(1));
  state = blank();
  for (const name of [...FIELDS, "sort", "view"]) state[name] = words.get(name) ?? state[name];
  state.pick = words.getAll("pick");
  for (const name of ["where", "columns", "group"]) at(name).value = state[name];
}

function writeAddress() {
  const words = new URLSearchParams();
  for (const name of [...FIELDS, "sort"]) if (state[name]) words.set(name, state[name]);
  if (state.view !== "overlay") words.set("view", state.view);
  for (const run of state.pick) words.append("pick", run);
  history.replaceState(null, "", `#${words}`);
}

function say(text, isError = false) {
  at("message").textContent = text;
  at("message").classList.toggle("error", isError);
}

// -- the table --------------------------------------------------------------------------------------------------------

/** Ask for the table: all of it, or what has changed since the last answer. */
async function loadTable(fresh) {
  const mine = ++turn;
  const words = new URLSearchParams();
  for (const clause of state.where.split(";")) if (clause.trim()) words.append("where", clause.trim());
  if (state.sort) words.set("sort", state.sort);
  if (state.columns.trim()) words.set("columns", state.columns);
  if (!fresh) words.set("since", table.version);
  try {
    const answer = await ask("/api/runs", words);
    if (mine !== turn) return;
    if (fresh) rows = new Map();
    for (const [run, row] of Object.entries(answer.rows)) rows.set(run, row);
    if (!fresh && answer.order.some((run) => !rows.has(run))) return loadTable(true); // it meets the filter now
    const found = new Set(answer.order); // what left the filter may change unseen
    for (const run of rows.keys()) if (!found.has(run)) rows.delete(run), lines.delete(run);
    if (answer.keys) fill(at("keys"), answer.keys);
    const changed = fresh || answer.version !== table.version;
    table = answer;
    if (changed) showTable(fresh ? null : answer.rows);
    const rest = table.found > table.order.length ? `, the first ${table.order.length} shown: filter for less` : "";
    const picked = state.pick.length ? `, ${state.pick.length} picked` : "";
    say(`${table.found} of ${table.total} runs${rest}${picked}`);
  } catch (error) {
    if (mine === turn) say(error.message, true);
  }
}

/** Bring the table to what the server said; `changed` are the rows that have new cells (null: all). */
function showTable(changed) {
  const head = table.columns.map((key) => {
    const cell = document.createElement("th");
    const button = document.createElement("button");
    button.textContent = key;
    button.addEventListener("click", () => sortBy(key));
    cell.scope = "col";
    cell.ariaSort = state.sort === key ? "descending" : state.sort === `-${key}` ? "ascending" : "none";
    if (cell.ariaSort !== "none") button.textContent += cell.ariaSort === "descending" ? " ▾" : " ▴";
    cell.append(button);
    return cell;
  });
  at("head").replaceChildren(document.createElement("th"), ...head);
  if (!changed) lines = new Map();
  for (const run of table.order) {
    if (!lines.has(run) || changed?.[run]) lines.set(run, line(run, rows.get(run)));
  }
  at("rows").replaceChildren(...table.order.map((run) => lines.get(run)));
  mark();
}

function line(run, row) {
  const whole = document.createElement("tr");
  whole.dataset.status = row.status;
  whole.dataset.run = run;
  const box = document.createElement("input");
  box.type = "checkbox";
  box.tabIndex = -1;
  box.ariaLabel = `pick ${run}`;
  box.addEventListener("click", (event) => {
    event.stopPropagation();
    moveTo(table.order.indexOf(run));
    pick(run);
  });
  const first = document.createElement("td");
  first.append(box);
  whole.append(first);
  for (const [i, value] of row.cells.entries()) {
    const cell = document.createElement("td");
    const key = table.columns[i];
    cell.textContent = key === "status" ? row.state : shownAs(value);
    if (typeof value === "number") cell.className = "number";
    if (key === "status") cell.className = "status";
    if (key === "run" && row.problems.length) {
      const mark = document.createElement("span");
      mark.className = "problem";
      mark.textContent = " !";
      mark.title = row.problems.join("\n");
      cell.append(mark);
    }
    whole.append(cell);
  }
  whole.addEventListener("click", () => {
    moveTo(table.order.indexOf(run));
    choose([run]);
  });
  return whole;
}

function shownAs(value) {
  if (value === null) return "-";
  return typeof value === "number" && !Number.isInteger(value) ? value.toFixed(4) : String(value);
}

/** Show which runs are picked, and where the keys are. */
function mark() {
  here = Math.max(0, Math.min(here, table.order.length - 1));
  const picked = new Set(state.pick);
  for (const [i, run] of table.order.entries()) {
    const row = lines.get(run);
    row.ariaSelected = picked.has(run);
    row.querySelector("input").checked = picked.has(run);
    row.classList.toggle("here", i === here);
  }
}

function moveTo(index) {
  here = index;
  mark();
  lines.get(table.order[here])?.scrollIntoView({block: "nearest"});
}

function sortBy(key) {
  state.sort = state.sort === key ? `-${key}` : state.sort === `-${key}` ? "" : key;
  changed({table: true});
}

function pick(run) {
  choose(state.pick.includes(run) ? state.pick.filter((one) => one !== run) : [...state.pick, run]);
}

function choose(runs) {
  state.pick = runs;
  mark();
  changed({});
}

// -- the panel --------------------------------------------------------------------------------------------------------

/** The runs that figures are of: those that are picked, or else the first that are shown. */
function subjects() {
  const picked = state.pick.filter((run) => rows.has(run));
  return (picked.length ? picked : table.order).slice(0, MOST);
}

function showChoices() {
  at("view").value = state.view;
  at("term-choice").hidden = state.view !== "training";
  at("log-choice").hidden = state.view !== "log";
}

/** The names of the views, those of all runs together before those of each run. */
function nameViews() {
  const kinds = [["runs together", (view) => view.each === false], ["each run", (view) => view.each === true],
    ["one run", (view) => view.each === undefined]];
  at("view").replaceChildren(...kinds.map(([title, holds]) => {
    const group = document.createElement("optgroup");
    group.label = title;
    group.append(...views().filter(holds).map((view) => new Option(view.title, view.key)));
    return group;
  }));
}

const views = () => [...about.views, ...OWN_VIEWS];

function look(view) {
  state.view = view;
  changed({});
}

/** Ask for what the panel shows, if it may have changed; `again` asks in any case. */
async function loadPanel(again = false) {
  const mine = ++panelTurn;
  const words = new URLSearchParams({key: state.view});
  for (const run of subjects()) words.append("run", run);
  if (state.group.trim()) words.set("group", state.group.trim());
  if (state.view === "training" && state.term) words.set("term", state.term);
  const asked = words.toString();
  const isNew = again || asked !== shown.asked;
  try {
    if (state.view === "log" || state.view === "run") {
      if (isNew) clear(at("place"));
      await (state.view === "log" ? loadLog : loadWords)(subjects()[0], isNew, () => mine === panelTurn);
      if (mine === panelTurn) show(asked, 0);
      return;
    }
    if (!isNew) words.set("since", shown.version);
    const answer = await ask("/api/view", words);
    if (mine !== panelTurn) return;
    if (answer.terms) {
      fill(at("term"), answer.terms);
      at("term").value = answer.term ?? "";
    }
    if (answer.figures) await draw(at("place"), answer.figures);
    show(asked, answer.version);
    if (answer.left) say(`the first ${answer.figures.length} runs are drawn, ${answer.left} more are not: pick some`);
  } catch (error) {
    if (mine !== panelTurn) return;
    say(error.message, true);
    if (!isNew) return; // what was drawn stays until the server answers again
    clear(at("place"));
    show("", 0);
  }
}

function show(asked, version) {
  shown = {asked, version};
  at("place").dataset.view = asked && state.view;
}

// -- what happens -----------------------------------------------------------------------------------------------------

/** The state has changed: show it, everywhere where it matters. */
async function changed({table: ofTable = false}) {
  writeAddress();
  showChoices();
  if (ofTable) await loadTable(true);
  await loadPanel();
}

async function poll() {
  if (at("live").checked && !document.hidden) {
    await loadTable(table.version === 0);
    await loadPanel();
  }
  setTimeout(poll, POLL);
}

function setTheme(theme) {
  if (theme) document.documentElement.dataset.theme = theme;
  localStorage.setItem("clplat-theme", theme);
  if (shown.asked) loadPanel(true);
}

function nextTheme() {
  setTheme(isDark() ? "light" : "dark");
}

function nextView(by) {
  const keys = views().map((view) => view.key);
  look(keys[(keys.indexOf(state.view) + by + keys.length) % keys.length]);
}

const KEYS = {
  "/": () => at("where").focus(),
  j: () => moveTo(here + 1),
  k: () => moveTo(here - 1),
  ArrowDown: () => moveTo(here + 1),
  ArrowUp: () => moveTo(here - 1),
  x: () => table.order.length && pick(table.order[here]),
  " ": () => table.order.length && pick(table.order[here]),
  Enter: () => table.order.length && choose([table.order[here]]),
  a: () => choose([...table.order].slice(0, MOST)),
  c: () => choose([]),
  n: () => nextView(1),
  p: () => nextView(-1),
  g: () => at("group").focus(),
  l: () => at("live").click(),
  t: nextTheme,
  "?": () => at("keys-help").showModal(),
};

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || at("keys-help").open) return;
  const inField = event.target.matches("input:not([type=checkbox]), select");
  if (event.key === "Escape" && inField) event.target.blur();
  const isButton = event.target.matches("button, input") && (event.key === "Enter" || event.key === " ");
  if (inField || isButton || !(event.key in KEYS)) return;
  event.preventDefault();
  KEYS[event.key]();
});

let waiting = null;
for (const name of ["where", "columns", "group"]) {
  at(name).addEventListener("input", () => {
    clearTimeout(waiting);
    waiting = setTimeout(() => {
      state[name] = at(name).value;
      changed({table: name !== "group"});
    }, 40);
  });
}
at("view").addEventListener("change", () => look(at("view").value));
at("term").addEventListener("change", () => {
  state.term = at("term").value;
  changed({});
});
at("log-name").addEventListener("change", () => {
  chooseLog(at("log-name").value);
  loadPanel(true);
});
at("theme").addEventListener("click", nextTheme);
at("help").addEventListener("click", KEYS["?"]);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => loadPanel(true));
addEventListener("hashchange", () => {
  readAddress();
  changed({table: true});
});

at("live").checked = true;
setTheme(localStorage.getItem("clplat-theme") ?? "");
readAddress();
try {
  about = await ask("/api/about", new URLSearchParams());
} catch (error) {
  say(error.message, true);
}
nameViews();
at("columns").placeholder = about.columns.join(",");
await changed({table: true});
setTimeout(poll, POLL);
