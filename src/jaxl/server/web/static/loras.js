// <jaxl-loras>: LoRAs of the server, each with its strength and the words it was trained with; hidden where there are none.

import { loras } from "./client.js";
import { button, make, tell } from "./dom.js";

// of the slider, and what the server takes
const SLIDER = 2;
const MOST = 20;

class Loras extends HTMLElement {
  connectedCallback() {
    if (this.list) return;
    this.known = [];
    this.select = make("select", { "aria-label": "Add a LoRA", onfocus: () => this.look(), onchange: () => this.take(this.select.value) });
    this.list = make("ul", { "aria-label": "LoRAs" });
    this.append(make("label", { className: "jaxl-field" }, "LoRAs", this.select), this.list);
    this.offer();
    this.looked = this.look();
  }

  /** Strengths by name; undefined if there are none. */
  get value() {
    const rows = [...this.list.children].map((row) => [row.dataset.name, row.strength()]);
    return rows.length ? Object.fromEntries(rows) : undefined;
  }

  /** Ask which LoRAs there are now, as files come and go. */
  async look() {
    try {
      const known = await loras();
      if (JSON.stringify(known) === JSON.stringify(this.known)) return;
      this.known = known;
      this.offer();
    } catch {
      // those that were there are offered still; the answer to a request says what is wrong
    }
  }

  /** Let those be chosen that are not chosen yet. */
  offer() {
    const chosen = this.value ?? {};
    const left = this.known.filter(({ id }) => !(id in chosen));
    const option = ({ id, base_model }) => make("option", { value: id, title: base_model ?? "" }, id);
    this.select.replaceChildren(make("option", { value: "" }, left.length ? "Add …" : "No more"), ...left.map(option));
    this.hidden = !this.known.length && !this.list.children.length;
  }

  /** Take LoRAs in the place of those that are chosen, strengths by name. The names that are not offered. */
  choose(strengths) {
    this.list.replaceChildren();
    const offered = ([name, strength]) => this.known.some(({ id }) => id === name) && Math.abs(strength) <= MOST;
    const all = Object.entries(strengths);
    for (const [name, strength] of all.filter(offered)) this.list.append(this.row(name, Number(strength)));
    this.changed();
    return all.filter((each) => !offered(each)).map(([name]) => name);
  }

  take(name) {
    if (!name) return;
    const row = this.row(name, 1);
    this.list.append(row);
    this.changed();
    row.querySelector("input").focus();
  }

  row(name, strength) {
    const label = `Strength of ${name}`;
    const slider = make("input", { type: "range", min: -SLIDER, max: SLIDER, step: 0.05, value: strength, "aria-label": label });
    const number = make("input", { type: "number", min: -MOST, max: MOST, step: 0.05, value: strength, "aria-label": `${label}, as a number` });
    slider.oninput = () => this.changed((number.value = slider.value));
    number.oninput = () => this.changed((slider.value = number.value));
    const words = this.known.find(({ id }) => id === name)?.trigger_words ?? [];
    const put = (word) => button(word, () => tell("word", word), { "aria-label": `Put ${word} into the prompt` });
    const row = make(
      "li",
      { "data-name": name },
      make("div", {}, make("span", {}, name), button("Remove", () => this.leave(row), { "aria-label": `Remove ${name}` })),
      make("div", {}, slider, number),
      ...(words.length ? [make("div", {}, ...words.map(put))] : []),
    );
    row.strength = () => (number.value === "" ? null : Number(number.value)); // the server says what is wrong
    return row;
  }

  leave(row) {
    row.remove();
    this.changed();
    this.select.focus();
  }

  changed() {
    this.offer();
    tell("changed");
  }
}

customElements.define("jaxl-loras", Loras);
