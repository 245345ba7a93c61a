// <jaxl-size>: the sizes that the server draws, by shape.

import { button, make, tell } from "./dom.js";

class Size extends HTMLElement {
  connectedCallback() {
    if (this.select) return;
    this.sizes = this.dataset.sizes.split(" ");
    this.select = make("select", { "aria-label": "Size" }, ...this.sizes.map((size) => make("option", { value: size }, `${shape(size)} ${size}`)));
    this.swap = button("Swap", () => this.choose(turned(this.value)), { "aria-label": "Swap width and height" });
    this.select.onchange = () => this.choose(this.value);
    const label = make("label", { className: "jaxl-field" }, "Size", this.select);
    this.append(label, this.swap);
    this.choose(this.value);
  }

  get value() {
    return this.select.value;
  }

  /** Take a size, or the one of the nearest shape. */
  choose(size) {
    this.select.value = this.sizes.includes(size) ? size : this.nearest(ratio(size));
    this.swap.hidden = !this.sizes.includes(turned(this.value)) || shape(this.value) === "Square";
    tell("changed");
  }

  /** The size whose shape is nearest to an aspect, as that of a picture to start from. */
  nearest(aspect) {
    const distance = (size) => Math.abs(Math.log(aspect / ratio(size)));
    return this.sizes.reduce((best, size) => (distance(size) < distance(best) ? size : best));
  }
}

const turned = (size) => size.split("x").reverse().join("x");

function ratio(size) {
  const [width, height] = size.split("x").map(Number);
  return width / height;
}

function shape(size) {
  const aspect = ratio(size);
  return aspect === 1 ? "Square" : aspect > 1 ? "Landscape" : "Portrait";
}

customElements.define("jaxl-size", Size);
