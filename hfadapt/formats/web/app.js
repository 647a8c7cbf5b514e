// The page: opens the model, and shows what it says of each line. `hfadapt.classify(texts)` gives the same as data.

import * as ort from "./ort/ort.wasm.min.mjs";
import { Classifier } from "./classifier.js";

const form = document.querySelector("form");
const state = document.querySelector("#state");
const answers = document.querySelector("#answers");
const [texts, button] = [form.elements.texts, form.elements.classify];

async function file(name) {
  const response = await fetch(name);
  if (!response.ok) throw new Error(`${name} cannot be read: ${response.status} ${response.statusText}`);
  return response;
}

async function open() {
  const [page, tokenizer, model] = await Promise.all([
    file("page.json").then((found) => found.json()),
    file("tokenizer.json").then((found) => found.json()),
    file("model.onnx").then((found) => found.arrayBuffer()),
  ]);
  return Classifier.open(ort, new Uint8Array(model), tokenizer, page);
}

function element(name, properties, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
}

function shown(answer) {
  const rows = Object.entries(answer.probabilities)
    .sort(([, a], [, b]) => b - a)
    .map(([label, value]) =>
      element(
        "tr",
        {},
        element("th", { scope: "row", textContent: label }),
        element("td", {}, element("meter", { value, ariaLabel: `probability of ${label}` })),
        element("td", { textContent: `${(100 * value).toFixed(1)} %` }),
      ),
    );
  return element(
    "li",
    {},
    element("p", { className: "text", textContent: answer.text }),
    element("p", {}, element("strong", { textContent: answer.label })),
    element("table", {}, element("caption", { textContent: "Probability of each label" }), element("tbody", {}, ...rows)),
    element("p", {
      className: "about",
      textContent: `${answer.tokens} tokens, ${answer.milliseconds.toFixed(1)} ms`,
    }),
  );
}

function fail(error) {
  state.textContent = `It does not work: ${error.message ?? error}`;
  state.className = "error";
}

state.textContent = "Opening the model …";
const opened = open();
window.hfadapt = { classify: async (texts) => (await opened).classify(texts) };

form.addEventListener("submit", async (event) => {
  event.preventDefault();
  const lines = texts.value.split(/\r?\n/).filter((line) => line.trim());
  if (!lines.length) {
    state.textContent = "Write a text first, one on each line.";
    texts.focus();
    return;
  }
  button.disabled = true;
  state.className = "";
  state.textContent = "Asking the model …";
  answers.replaceChildren();
  try {
    const model = await opened;
    for (const line of lines) {
      answers.append(shown(await model.classifyOne(line)));
      // Lets the browser draw what there is.
      await new Promise((done) => setTimeout(done));
    }
    state.textContent = `${lines.length} of ${lines.length} lines are answered.`;
  } catch (error) {
    fail(error);
  } finally {
    button.disabled = false;
  }
});

opened.then(() => {
  state.textContent = "Ready. What you write stays on this device.";
  button.disabled = false;
}, fail);
