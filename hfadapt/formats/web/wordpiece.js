// BERT's tokenizer, as the tokenizer.json beside this file says it: the same ids as in training.
// What becomes of each character stands in page.json, so that nothing depends on the browser's version of Unicode.

const WHITESPACE = 1;

export class WordPiece {
  // tokenizer: tokenizer.json; reading: "reading" of page.json.
  constructor(tokenizer, reading) {
    const { vocab, unk_token, continuing_subword_prefix, max_input_chars_per_word } = tokenizer.model;
    this.ids = new Map(Object.entries(vocab));
    this.unknown = this.ids.get(unk_token);
    this.prefix = continuing_subword_prefix;
    this.longestWord = max_input_chars_per_word;
    this.reading = reading;
    this.special = tokenizer.added_tokens
      .map(({ content, id }) => ({ content, id }))
      .sort((a, b) => b.content.length - a.content.length);
    this.characters = new Runs(reading.characters);
    this.breaks = new Runs(reading.breaks);
  }

  // Token ids of a text, special ones at both ends; what is too long is cut.
  encode(text) {
    const { before, after, empty, max_length, keeps_end } = this.reading;
    const room = Math.max(0, max_length - before.length - after.length);
    let ids = this.pieces(text);
    if (ids.length > room) ids = keeps_end ? ids.slice(ids.length - room) : ids.slice(0, room);
    ids = [...before, ...ids, ...after];
    return ids.length ? ids : empty;
  }

  pieces(text) {
    const ids = [];
    let start = 0;
    for (let at = 0; at < text.length; ) {
      const found = this.special.find(({ content }) => content && text.startsWith(content, at));
      if (found) {
        this.addWords(text.slice(start, at), ids);
        ids.push(found.id);
        at += found.content.length;
        start = at;
      } else {
        at++;
      }
    }
    this.addWords(text.slice(start), ids);
    return ids;
  }

  addWords(text, ids) {
    let word = [];
    const end = () => {
      if (word.length) this.addWord(word, ids);
      word = [];
    };
    for (const character of this.normalised(text)) {
      const kind = this.breaks.of(character.codePointAt(0));
      if (kind === undefined) {
        word.push(character);
      } else {
        end();
        if (kind !== WHITESPACE) this.addWord([character], ids);
      }
    }
    end();
  }

  normalised(text) {
    let made = "";
    for (const character of text) {
      const code = character.codePointAt(0);
      // Half of a surrogate pair is no character.
      const whole = code >= 0xd800 && code < 0xe000 ? 0xfffd : code;
      made += became(whole, this.characters.of(whole));
    }
    return made;
  }

  // The longest pieces of the vocabulary, one after the other; a word with a part in none of them is unknown.
  addWord(word, ids) {
    if (word.length > this.longestWord) {
      ids.push(this.unknown);
      return;
    }
    const found = [];
    for (let start = 0; start < word.length; ) {
      let end = word.length;
      let id;
      for (; end > start; end--) {
        id = this.ids.get((start ? this.prefix : "") + word.slice(start, end).join(""));
        if (id !== undefined) break;
      }
      if (id === undefined) {
        ids.push(this.unknown);
        return;
      }
      found.push(id);
      start = end;
    }
    ids.push(...found);
  }
}

// Runs of code points, in order: the first one, how many, and what is said of all of them.
class Runs {
  constructor(runs) {
    this.runs = runs;
  }

  // What is said of a code point, or undefined.
  of(code) {
    let [low, high] = [0, this.runs.length];
    while (low < high) {
      const middle = (low + high) >> 1;
      const [first, count, what] = this.runs[middle];
      if (code < first) high = middle;
      else if (code < first + count) return what;
      else low = middle + 1;
    }
    return undefined;
  }
}

// What becomes of a code point: itself, moved by a number, decomposed, or a text in which "\0" stands for it.
function became(code, what) {
  const character = String.fromCodePoint(code);
  if (what === undefined) return character;
  if (typeof what === "number") return String.fromCodePoint(code + what);
  return what === null ? character.normalize("NFD") : what.replaceAll("\0", character);
}
