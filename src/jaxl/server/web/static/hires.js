// <jaxl-hires>: a second pass at a larger size; hidden where the server draws none.

import { make, tell } from "./dom.js";

const STRENGTH = { min: 0.05, max: 1, step: 0.05, value: 0.7 };
const STEPS = { min: 0, max: 150, step: 1, value: 0 };

class Hires extends HTMLElement {
  connectedCallback() {
    if (this.size) return;
    this.sizes = JSON.parse(this.dataset.sizes);
    const onchange = () => tell("changed");
    const select = (label, options) => make("select", { "aria-label": label, onchange }, ...options.map(([value, text]) => make("option", { value }, text)));
    const number = (label, limits) => make("input", { type: "number", "aria-label": label, ...limits, oninput: onchange });
    this.size = select("Larger size", [["", "Off"], ...this.sizes.map((size) => [size, size])]);
    this.upscaler = select("Enlarged by", JSON.parse(this.dataset.upscalers));
    this.strength = number("Strength of the second pass", STRENGTH);
    this.steps = number("Steps of the second pass", STEPS);
    const field = (text, input) => make("label", { className: "jaxl-field" }, text, input);
    this.fold = make(
      "details",
      {},
      make("summary", {}, "Hires: draw on at a larger size"),
      field("Larger size", this.size),
      field("Enlarged by", this.upscaler),
      field("Strength: how much changes", this.strength),
      field("Steps, 0 for as many as before", this.steps),
    );
    this.append(this.fold);
  }

  /** As requests have it; undefined if there is no second pass. */
  get value() {
    if (!this.size.value) return undefined;
    const numbers = { strength: read(this.strength), steps: read(this.steps) };
    return { ...this.rest, size: this.size.value.split("x").map(Number), upscaler: this.upscaler.value, ...numbers };
  }

  /** Take a second pass of a picture of a size, or none. What is not offered. */
  choose(hires, size) {
    const lost = [];
    // what the form has no fields for is kept as it is
    const { scale = 2, size: wanted, upscaler = "latent", strength = 0.7, steps = 0, ...rest } = hires ?? {};
    this.rest = rest;
    this.size.value = "";
    this.fold.open = Boolean(hires);
    if (hires) {
      const sides = wanted ?? size.split("x").map((side) => Math.floor((Number(side) * scale) / 8) * 8);
      this.size.value = sides.join("x");
      if (this.size.selectedIndex < 0) {
        this.size.value = "";
        lost.push(`second pass of ${sides.join("x")}`);
      }
      this.upscaler.value = upscaler;
      if (this.upscaler.selectedIndex < 0) {
        this.upscaler.selectedIndex = 0;
        lost.push(`upscaler ${upscaler}`);
      }
      this.strength.value = strength;
      this.steps.value = steps;
    }
    tell("changed");
    return lost;
  }
}

// the server says what is wrong
const read = (input) => (input.value === "" ? null : Number(input.value));

customElements.define("jaxl-hires", Hires);
