// A text in, the probability of each label out: model.onnx in ONNX Runtime Web, one row after the other.

import { WordPiece } from "./wordpiece.js";

export class Classifier {
  // ort: ONNX Runtime Web; model: the bytes of model.onnx; tokenizer, page: the contents of the JSON files.
  static async open(ort, model, tokenizer, page) {
    const session = await ort.InferenceSession.create(model, { executionProviders: ["wasm"] });
    return new Classifier(ort, session, new WordPiece(tokenizer, page.reading), page.labels);
  }

  constructor(ort, session, tokenizer, labels) {
    Object.assign(this, { ort, session, tokenizer, labels });
  }

  // Rows are not put into one batch: activations that are rounded as they come would hang on the rows beside them.
  async classify(texts) {
    const answers = [];
    for (const text of texts) answers.push(await this.classifyOne(text));
    return answers;
  }

  async classifyOne(text) {
    const started = performance.now();
    const ids = this.tokenizer.encode(text);
    const row = (values) => new this.ort.Tensor("int64", BigInt64Array.from(values, BigInt), [1, ids.length]);
    const given = { input_ids: row(ids), attention_mask: row(ids.map(() => 1)) };
    const inputs = Object.fromEntries(this.session.inputNames.map((name) => [name, given[name]]));
    const outputs = await this.session.run(inputs);
    const probabilities = softmax(outputs[this.session.outputNames[0]].data);
    const best = probabilities.indexOf(Math.max(...probabilities));
    return {
      text,
      label: this.labels[best],
      probability: probabilities[best],
      probabilities: Object.fromEntries(this.labels.map((label, index) => [label, probabilities[index]])),
      tokens: ids.length,
      milliseconds: performance.now() - started,
    };
  }
}

function softmax(logits) {
  const most = Math.max(...logits);
  const powers = Array.from(logits, (logit) => Math.exp(logit - most));
  const sum = powers.reduce((total, power) => total + power, 0);
  return powers.map((power) => power / sum);
}
