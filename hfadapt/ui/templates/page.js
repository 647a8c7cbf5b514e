// What forms and links cannot do alone: files that are asked about, a run that is watched, and where the focus goes.
"use strict";

const focus = (place) => {
  const found = place.querySelector("[data-focus]");
  if (found) found.focus();
};

for (const form of document.querySelectorAll("form[data-file]")) {
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    const answers = document.getElementById("answers"), file = form.querySelector("input").files[0];
    answers.textContent = "Asking …";
    try {
      const answer = await fetch(form.dataset.file, { method: "POST", body: file });
      answers.innerHTML = await answer.text();
      focus(answers);
    } catch (error) {
      answers.textContent = "hfadapt ui does not answer: is it still running?";
    }
  });
}

// A form that takes long says so, and is not sent twice.
for (const form of document.querySelectorAll("form[method=post]")) {
  form.addEventListener("submit", () => {
    const button = form.querySelector("button");
    button.setAttribute("aria-disabled", "true");
    button.textContent = "Working …";
    form.addEventListener("submit", (event) => event.preventDefault());
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
