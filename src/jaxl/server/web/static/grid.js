// <jaxl-grid>: axes of a grid, each an option with several values; a picture is drawn for each of their combinations.

import { grid } from "./client.js";
import { make, tell } from "./dom.js";

const AXES = { x: "Columns", y: "Rows", z: "Pages" };
const EXAMPLES = { x: "steps=4,8,16", y: "sampler=euler,ddim", z: "prompt s/r=cat,dog" };

class Grid extends HTMLElement {
  connectedCallback() {
    if (this.inputs) return;
    const input = (name) => make("input", { type: "text", placeholder: EXAMPLES[name], "aria-label": AXES[name], oninput: () => tell("changed") });
    this.inputs = Object.fromEntries(Object.keys(AXES).map((name) => [name, input(name)]));
    const field = ([name, label]) => make("label", { className: "jaxl-field" }, label, this.inputs[name]);
    this.fold = make(
      "details",
      {},
      make("summary", {}, "Grid: a picture for each value of some options"),
      ...Object.entries(AXES).map(field),
    );
    this.append(this.fold);
  }

  /** The axes that are written, by x, y and z; undefined without any. */
  get value() {
    const written = Object.entries(this.inputs).map(([name, { value }]) => [name, value.trim()]);
    const axes = written.filter(([, text]) => text);
    return axes.length ? Object.fromEntries(axes) : undefined;
  }

  /** Take axes, or none. */
  choose(axes = {}) {
    for (const [name, input] of Object.entries(this.inputs)) input.value = axes[name] ?? "";
    this.fold.open = Boolean(this.value);
    tell("changed");
  }

  /** What the pictures are asked for, {labels, cells}; undefined for one picture alone. Throws Refused. */
  async read({ prompt, negative_prompt }) {
    const axes = this.value && Object.values(this.value);
    // rows without columns are columns
    return axes && grid({ ...Object.fromEntries(axes.map((text, i) => ["xyz"[i], text])), prompt, negative_prompt });
  }
}

customElements.define("jaxl-grid", Grid);
