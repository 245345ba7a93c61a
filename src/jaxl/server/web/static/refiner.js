// <jaxl-refiner>: another model of the server that draws the last steps; hidden where there is one model.

import { models } from "./client.js";
import { make, tell } from "./dom.js";

const AT = { min: 0.05, max: 0.95, step: 0.05, value: 0.8 };

class Refiner extends HTMLElement {
  connectedCallback() {
    if (this.select) return;
    this.known = [];
    const onchange = () => tell("changed");
    this.select = make("select", { "aria-label": "Refiner", onfocus: () => this.look(), onchange });
    this.at = make("input", { type: "number", "aria-label": "Where the refiner takes over", ...AT, oninput: onchange });
    const field = (text, input) => make("label", { className: "jaxl-field" }, text, input);
    this.fold = make(
      "details",
      {},
      make("summary", {}, "Refiner: another model draws the last steps"),
      field("Refiner", this.select),
      field("Takes over after this share of the noise", this.at),
    );
    this.append(this.fold);
    this.looked = this.look();
  }

  /** The fields of requests; none of them without a refiner. */
  get value() {
    if (this.hidden || !this.select.value) return {};
    return { refiner: this.select.value, refiner_at: this.at.value === "" ? null : Number(this.at.value) };
  }

  /** Ask which models there are now; the one that is chosen stays if it is among them. */
  async look() {
    try {
      const known = await models();
      if (JSON.stringify(known) === JSON.stringify(this.known)) return;
      const { refiner, refiner_at } = this.value;
      this.known = known;
      this.select.replaceChildren(...["", ...known].map((name) => make("option", { value: name }, name || "None")));
      this.hidden = known.length < 2;
      this.choose(refiner, refiner_at);
    } catch {
      // those that were there are offered still; the answer to a request says what is wrong
    }
  }

  /** Take a refiner by its name, or none. Whether it is offered. */
  choose(name = "", at = AT.value) {
    const offered = !name || this.known.includes(name);
    this.select.value = offered ? name : "";
    this.at.value = at;
    this.fold.open = Boolean(this.select.value);
    tell("changed");
    return offered;
  }
}

customElements.define("jaxl-refiner", Refiner);
