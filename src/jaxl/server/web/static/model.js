// <jaxl-model>: the model to draw with; hidden where there is one.

import { models } from "./client.js";
import { make, tell } from "./dom.js";

class Model extends HTMLElement {
  connectedCallback() {
    if (this.select) return;
    this.known = [];
    this.select = make("select", { "aria-label": "Model", onfocus: () => this.look(), onchange: () => tell("changed") });
    this.append(make("label", { className: "jaxl-field" }, "Model", this.select));
    this.looked = this.look();
  }

  /** The name of the model; undefined where there is one. */
  get value() {
    return this.select.value || undefined;
  }

  /** Ask which models there are now, as files come and go; the one that is chosen stays if it is among them. */
  async look() {
    try {
      const known = await models();
      if (JSON.stringify(known) === JSON.stringify(this.known)) return;
      const chosen = this.value;
      this.known = known;
      this.select.replaceChildren(...known.map((name) => make("option", { value: name }, name)));
      this.hidden = known.length < 2;
      if (!this.choose(chosen)) this.select.selectedIndex = this.hidden ? -1 : 0;
    } catch {
      // those that were there are offered still; the answer to a request says what is wrong
    }
  }

  /** Take a model by its name. Whether it is offered. */
  choose(name) {
    if (this.hidden || !this.known.includes(name)) return false;
    this.select.value = name;
    tell("changed");
    return true;
  }
}

customElements.define("jaxl-model", Model);
