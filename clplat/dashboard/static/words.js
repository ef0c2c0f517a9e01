// What the server says in words: questions to it, and the logs and configurations of runs.
"use strict";

export const at = (id) => document.getElementById(id);

let log = {run: null, name: "", end: null}; // what was read of a log

/** An answer of the server, or an error with what it says. */
export async function ask(path, words) {
  let answer;
  try {
    answer = await fetch(`${path}?${words}`);
  } catch {
    throw new Error("the server does not answer");
  }
  const type = answer.headers.get("Content-Type") ?? "";
  const content = type.startsWith("application/json") ? await answer.json() : {error: [await answer.text()]};
  if (!answer.ok) throw new Error(content.error.join(" "));
  return content;
}

/** Read another file the next time. */
export function chooseLog(name) {
  log = {...log, name, end: null};
}

/** Show the end of a log, or what was added to it. */
export async function loadLog(run, isNew, isLast) {
  if (run === undefined) return;
  const words = new URLSearchParams({run});
  if (isNew) log = {run, name: log.run === run ? log.name : "", end: null};
  if (log.name) words.set("name", log.name);
  if (log.end !== null) words.set("since", log.end);
  const answer = await ask("/api/log", words);
  if (!isLast()) return;
  fill(at("log-name"), answer.names);
  at("log-name").value = answer.name;
  if (answer.begin !== log.end) at("place").replaceChildren(heading(run), document.createElement("pre"));
  const [title, place] = at("place").children;
  title.textContent = answer.names.length ? run : `${run}: nothing was printed yet`;
  const follow = place.scrollTop + place.clientHeight >= place.scrollHeight - 5;
  place.append(answer.text);
  if (follow) place.scrollTop = place.scrollHeight;
  log = {run, name: answer.name, end: answer.end};
}

/** Show what a run is, in words. */
export async function loadWords(run, isNew, isLast) {
  if (run === undefined || !isNew) return;
  const answer = await ask("/api/run", new URLSearchParams({run}));
  if (!isLast()) return;
  const reasons = Object.entries(answer.reasons).map(([name, reason]) => `no ${name}: ${reason}`);
  const texts = [answer.state, ...reasons, ...answer.problems].map((text) => {
    const line = document.createElement("p");
    line.textContent = text;
    return line;
  });
  const config = document.createElement("pre");
  config.textContent = answer.config;
  at("place").replaceChildren(heading(run), ...texts, config);
}

function heading(text) {
  const made = document.createElement("h3");
  made.textContent = text;
  return made;
}

/** Let a list hold these values. */
export function fill(list, values) {
  if ([...list.children].map((one) => one.value).join("\n") === values.join("\n")) return;
  list.replaceChildren(...values.map((value) => new Option(value, value)));
}
