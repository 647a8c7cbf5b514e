// What forms and links cannot do alone: files that are asked about, a run that is watched, and where the focus goes.
"use strict";

const focus = (place) => {
  const found = place.querySelector("[data-focus]");
  if (found) found.focus();
};

// Says what is being done below a form, with the seconds that it has taken, and lets no other form be sent meanwhile.
const working = (form) => {
  const buttons = [...document.querySelectorAll("form button")], began = Date.now();
  const line = document.createElement("p"), seconds = document.createElement("span");
  line.className = "working";
  line.setAttribute("role", "status");
  line.append(`${form.dataset.doing || "Working"} … `);
  // Read aloud once, not every second.
  seconds.setAttribute("aria-hidden", "true");
  line.append(seconds);
  form.append(line);
  for (const button of buttons) button.setAttribute("aria-disabled", "true");
  const timer = setInterval(() => { seconds.textContent = `${Math.round((Date.now() - began) / 1000)} s`; }, 1000);
  return () => {
    clearInterval(timer);
    line.remove();
    for (const button of buttons) button.removeAttribute("aria-disabled");
  };
};
const busy = () => document.querySelector(".working") !== null;
// A page that comes back from the browser's memory is not at work.
addEventListener("pageshow", (event) => { if (event.persisted && busy()) location.reload(); });

for (const form of document.querySelectorAll("form[data-file]")) {
  const input = form.querySelector("input");
  // The file can be seen, or heard, before it is asked about and beside the answers; some formats no browser opens.
  const show = () => {
    const shown = document.createElement(form.dataset.shown), file = input.files[0];
    shown.className = "shown";
    shown.controls = true;
    shown.alt = file.name;
    shown.setAttribute("aria-label", file.name);
    shown.addEventListener("error", () => shown.remove());
    shown.src = URL.createObjectURL(file);
    return shown;
  };
  input.addEventListener("change", () => {
    form.querySelector(".shown")?.remove();
    if (input.files.length) input.after(show());
  });
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    if (busy()) return;
    const answers = document.getElementById("answers"), file = input.files[0];
    const done = working(form);
    answers.textContent = "";
    try {
      const answer = await fetch(form.dataset.file, { method: "POST", body: file });
      answers.innerHTML = await answer.text();
      if (answer.ok) answers.querySelector("h2").after(show());
      focus(answers);
    } catch (error) {
      answers.textContent = "hfadapt ui does not answer: is it still running?";
    } finally {
      done();
    }
  });
}

// Ctrl and Enter send a text that has several lines.
for (const area of document.querySelectorAll("textarea")) {
  area.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) area.form.requestSubmit();
  });
}

// A form that takes long says so, and nothing is sent twice.
for (const form of document.querySelectorAll("form[method=post]")) {
  form.addEventListener("submit", (event) => {
    if (busy()) event.preventDefault();
    else working(form);
  });
}

const state = document.getElementById("state");
const watch = async () => {
  let shown = state.querySelector("[data-status]");
  while (shown && !shown.dataset.status) {
    await new Promise((done) => setTimeout(done, 1000));
    try {
      const answer = await fetch(state.dataset.state);
      if (!answer.ok) throw new Error(answer.status);
      const text = await answer.text();
      const inside = state.contains(document.activeElement);
      if (!inside) state.innerHTML = text;
      shown = inside ? shown : state.querySelector("[data-status]");
    } catch (error) {
      document.getElementById("said").textContent = "hfadapt ui does not answer: is it still running?";
      continue;
    }
    // Read aloud only when something else is done.
    const said = document.getElementById("said");
    if (shown && said.textContent !== shown.dataset.doing) said.textContent = shown.dataset.doing;
  }
  for (const form of document.querySelectorAll("form[action$='/stop']")) form.remove();
};
if (state) watch();
else focus(document);
