// What <jaxl-controls> and <jaxl-image_prompts> have in common: networks of the server, each with pictures of its own, a
// strength and a window of the steps; hidden where there are none.

import { button, make, tell } from "./dom.js";
import { TYPES, scaled } from "./pictures.js";

/** Their elements, which are called as the fields of requests are. */
export const NETWORKS = ["controls", "image_prompts"];

const STRENGTH = { min: 0, max: 10, step: 0.05 };
const SHARE = { min: 0, max: 1, step: 0.05 };

/** The element. A kind says what people call it (`one`, `several`, `adding`), and of which `Row` it is a list. */
export class Networks extends HTMLElement {
  connectedCallback() {
    if (this.list) return;
    this.names = JSON.parse(this.dataset.names);
    this.choices = JSON.parse(this.dataset.choices);
    // nothing is added before what was there before a reload is back
    this.select = make("select", { "aria-label": this.adding, disabled: true, onchange: () => this.take(this.select.value) });
    this.list = make("ul", { "aria-label": this.several });
    this.append(make("label", { className: "jaxl-field" }, this.several, this.select), this.list);
    this.offer();
    this.looked = this.hidden ? undefined : this.look();
  }

  /** Each as requests have it, but for its pictures; undefined if there are none. */
  get value() {
    return this.rows.length ? this.rows.map((row) => row.value) : undefined;
  }

  /** The same with the pictures, as blobs. */
  get asked() {
    return this.value?.map((each, i) => ({ ...each, pictures: this.rows[i].pictures }));
  }

  /** The pictures with the names of their networks. */
  get pictures() {
    return this.rows.map(({ name, pictures }) => ({ name, pictures }));
  }

  /** What lacks its pictures, for people to read; undefined if nothing does. */
  get lacking() {
    const row = this.rows.find(({ pictures }) => !pictures.length);
    return row && `${this.one} ${row.label}`;
  }

  get rows() {
    return [...this.list.children].map((item) => item.row);
  }

  /** The names that can be added. */
  get left() {
    return this.names;
  }

  /** Ask the server what rows need to know. */
  async look() {}

  offer() {
    const { left } = this;
    const options = left.map((name) => make("option", { value: name }, name));
    this.select.replaceChildren(make("option", { value: "" }, left.length ? "Add …" : "No more"), ...options);
  }

  /** Take these in the place of those that are chosen; pictures stay with their names. What is not offered. */
  choose(networks, pictures = this.pictures) {
    const known = networks.filter(({ name }) => this.names.includes(name));
    const left = [...pictures];
    this.select.disabled = false;
    this.list.replaceChildren();
    for (const network of known) {
      const place = left.findIndex(({ name }) => name === network.name);
      this.add(network).show(place < 0 ? [] : left.splice(place, 1)[0].pictures);
    }
    this.changed();
    return networks.filter((each) => !known.includes(each)).map(({ name }) => `${this.one} ${name}`);
  }

  take(name) {
    if (name) this.add({ name }).file.focus();
    this.changed();
  }

  add(network) {
    const labels = this.rows.map(({ label }) => label);
    let label = network.name;
    for (let number = 2; labels.includes(label); number++) label = `${network.name} ${number}`;
    const row = new this.Row(this, network, label);
    this.list.append(row.item);
    return row;
  }

  leave(row) {
    row.item.remove();
    this.changed();
    tell("pictured");
    this.select.focus();
  }

  changed() {
    this.offer();
    tell("changed");
  }
}

/** A network of the form. `label` sets it apart from others of its name. */
export class Row {
  // whether it takes more than one picture, and how it asks for the first, and for others
  static several = false;
  static invitations = ["Choose a picture, or drop it here", "Choose another picture, or drop it here"];

  constructor(networks, { name, strength = 1, start = 0, end = 1 }, label) {
    const { several, invitations } = this.constructor;
    this.networks = networks;
    this.name = name;
    this.label = label;
    this.pictures = [];
    const accepted = { type: "file", accept: TYPES, multiple: several, className: "jaxl-file" };
    this.file = make("input", { ...accepted, "aria-label": `${several ? "Pictures" : "Picture"} for ${label}` });
    this.file.onchange = () => {
      this.load([...this.file.files]);
      this.file.value = "";
    };
    this.drop = make("label", { className: "jaxl-drop" }, this.file, invitations[0]);
    this.problem = make("p", { role: "status", className: "jaxl-problem" });
    this.strength = this.number("Strength", { ...STRENGTH, value: strength });
    this.start = this.number("Start", { ...SHARE, value: start });
    this.end = this.number("End", { ...SHARE, value: end });
    this.item = make(
      "li",
      { ondragover: (event) => event.preventDefault(), ondrop: (event) => this.dropped(event) },
      make("div", {}, make("span", {}, label), button("Remove", () => networks.leave(this), { "aria-label": `Remove ${label}` })),
      this.drop,
      this.problem,
      make("div", {}, ...[["Strength", this.strength], ["Start", this.start], ["End", this.end]].map(labelled)),
    );
    this.item.row = this;
  }

  get value() {
    return { name: this.name, strength: read(this.strength), start: read(this.start), end: read(this.end) };
  }

  number(what, limits) {
    return make("input", { type: "number", "aria-label": `${what} of ${this.label}`, ...limits, oninput: () => this.networks.changed() });
  }

  dropped(event) {
    if (!event.dataTransfer.files.length) return;
    event.preventDefault();
    event.stopPropagation();
    this.load([...event.dataTransfer.files]);
  }

  /** Take files. */
  async load(files) {
    const pictures = [];
    this.problem.textContent = "";
    for (const file of files) {
      try {
        pictures.push(await scaled(file));
      } catch {
        this.problem.textContent = `${file.name} is no picture that can be read; choose a PNG, JPEG or WebP file`;
      }
    }
    if (pictures.length) this.show(this.constructor.several ? [...this.pictures, ...pictures] : pictures.slice(0, 1));
  }

  /** Take pictures in the place of those that it has. */
  show(pictures) {
    this.pictures = pictures;
    this.drop.lastChild.textContent = this.constructor.invitations[pictures.length ? 1 : 0];
    this.update();
    tell("pictured");
  }

  update() {
    this.networks.changed();
  }
}

export const labelled = ([text, input]) => make("label", {}, text, input);
// the server says what is wrong
const read = (input) => (input.value === "" ? null : Number(input.value));
