// <jaxl-controls>: ControlNets of the server, each with the picture that it follows and what is made of it; hidden where
// there are none.

import { base64, preprocess, preprocessors } from "./client.js";
import { button, make, tell } from "./dom.js";
import { TYPES, scaled } from "./pictures.js";

const STRENGTH = { min: 0, max: 10, step: 0.05, value: 1 };
const SHARE = { min: 0, max: 1, step: 0.05 };
// Milliseconds after the last change until the preview is asked for
const PAUSE = 300;

class Controls extends HTMLElement {
  connectedCallback() {
    if (this.list) return;
    this.names = JSON.parse(this.dataset.names);
    this.modes = JSON.parse(this.dataset.modes);
    this.offered = [];
    this.select = make("select", { "aria-label": "Add a ControlNet", onchange: () => this.take(this.select.value) });
    this.list = make("ul", { "aria-label": "ControlNets" });
    this.append(make("label", { className: "jaxl-field" }, "ControlNets", this.select), this.list);
    this.offer();
    this.looked = this.hidden ? undefined : this.look();
  }

  /** Each as requests have it, but for its picture; undefined if there are none. */
  get value() {
    return this.rows.length ? this.rows.map((row) => row.value) : undefined;
  }

  /** The pictures by the names of the ControlNets, as blobs. */
  get pictures() {
    return Object.fromEntries(this.rows.filter((row) => row.picture).map((row) => [row.name, row.picture]));
  }

  get rows() {
    return [...this.list.children].map((item) => item.row);
  }

  async look() {
    try {
      this.offered = (await preprocessors()).filter(({ mask }) => !mask);
    } catch {
      // pictures can be followed as they are
    }
  }

  offer() {
    const left = this.names.filter((name) => !this.rows.some((row) => row.name === name));
    const options = left.map((name) => make("option", { value: name }, name));
    this.select.replaceChildren(make("option", { value: "" }, left.length ? "Add …" : "No more"), ...options);
  }

  /** Take these in the place of those that are chosen; pictures stay with their names. The names that are not offered. */
  choose(controls, pictures = this.pictures) {
    const known = controls.filter(({ name }) => this.names.includes(name));
    this.list.replaceChildren();
    for (const control of known) this.add(control).show(pictures[control.name] ?? null);
    this.changed();
    return controls.filter((each) => !known.includes(each)).map(({ name }) => name);
  }

  take(name) {
    if (name) this.add({ name }).file.focus();
    this.changed();
  }

  add(control) {
    const row = new Row(this, control);
    this.list.append(row.item);
    return row;
  }

  leave(row) {
    row.item.remove();
    this.changed();
    tell("followed");
    this.select.focus();
  }

  changed() {
    this.offer();
    tell("changed");
  }
}

/** A ControlNet of the form. */
class Row {
  constructor(controls, { name, strength = 1, start = 0, end = 1, mode = "", preprocess: how = null }) {
    this.name = name;
    this.picture = null;
    this.controls = controls;
    this.file = make("input", { type: "file", accept: TYPES, className: "jaxl-file", "aria-label": `Picture for ${name}` });
    this.file.onchange = () => {
      if (this.file.files.length) this.load(this.file.files[0]);
      this.file.value = "";
    };
    this.drop = make("label", { className: "jaxl-drop" }, this.file, "Choose a picture, or drop it here");
    this.preview = make("img", { alt: `What ${name} follows`, hidden: true });
    this.problem = make("p", { role: "status", className: "jaxl-problem" });
    this.strength = this.number(`Strength of ${name}`, { ...STRENGTH, value: strength });
    this.start = this.number(`Start of ${name}`, { ...SHARE, value: start });
    this.end = this.number(`End of ${name}`, { ...SHARE, value: end });
    const modes = ["", ...controls.modes].map((each) => make("option", { value: each }, each || "the only one it takes"));
    this.mode = make("select", { "aria-label": `Kind of picture for ${name}`, onchange: () => controls.changed() }, ...modes);
    this.mode.value = mode;
    const makers = ["", ...controls.offered.map(({ id }) => id)].map((each) => make("option", { value: each }, each || "none"));
    this.maker = make("select", { "aria-label": `Preprocessor for ${name}`, onchange: () => this.chosen({}) }, ...makers);
    this.parameters = make("div");
    this.item = make(
      "li",
      { ondragover: (event) => event.preventDefault(), ondrop: (event) => this.dropped(event) },
      make("div", {}, make("span", {}, name), button("Remove", () => controls.leave(this), { "aria-label": `Remove ${name}` })),
      this.drop,
      this.preview,
      make("label", { className: "jaxl-field" }, "Preprocessor", this.maker),
      this.parameters,
      this.problem,
      make("label", { className: "jaxl-field" }, "Kind of picture", this.mode),
      make("div", {}, ...[["Strength", this.strength], ["Start", this.start], ["End", this.end]].map(labelled)),
    );
    this.item.row = this;
    this.maker.value = how?.name ?? "";
    this.chosen(how ?? {});
  }

  get value() {
    const how = this.how;
    const own = { name: this.name, strength: read(this.strength), start: read(this.start), end: read(this.end) };
    return { ...own, ...(this.mode.value ? { mode: this.mode.value } : {}), ...(how ? { preprocess: how } : {}) };
  }

  /** The preprocessor with its parameters; null without one. */
  get how() {
    if (!this.maker.value) return null;
    const numbers = [...this.parameters.querySelectorAll("input")].filter((input) => input.value !== "");
    return { name: this.maker.value, ...Object.fromEntries(numbers.map((input) => [input.name, Number(input.value)])) };
  }

  number(label, limits) {
    return make("input", { type: "number", "aria-label": label, ...limits, oninput: () => this.controls.changed() });
  }

  /** Show the parameters of the preprocessor that is chosen, with these values. */
  chosen(values) {
    const { parameters } = this.controls.offered.find(({ id }) => id === this.maker.value) ?? { parameters: [] };
    const field = ({ name, whole, default: usual, minimum, maximum }) => {
      const limits = { min: minimum, max: maximum, step: whole ? 1 : "any", value: values[name] ?? usual };
      const input = make("input", { type: "number", name, "aria-label": `${name} of ${this.maker.value} for ${this.name}`, ...limits });
      input.oninput = () => this.update();
      return labelled([name, input]);
    };
    const size = make("input", { type: "number", name: "resolution", min: 64, max: 2048, step: 1, placeholder: "own size" });
    size.setAttribute("aria-label", `Resolution for ${this.name}`);
    size.value = values.resolution ?? "";
    size.oninput = () => this.update();
    this.parameters.replaceChildren(...(this.maker.value ? [...parameters.map(field), labelled(["resolution", size])] : []));
    this.update();
  }

  dropped(event) {
    if (!event.dataTransfer.files.length) return;
    event.preventDefault();
    event.stopPropagation();
    this.load(event.dataTransfer.files[0]);
  }

  /** Follow a file. */
  async load(file) {
    try {
      this.show(await scaled(file));
    } catch {
      this.problem.textContent = `${file.name} is no picture that can be read; choose a PNG, JPEG or WebP file`;
    }
  }

  show(picture) {
    this.picture = picture;
    this.drop.lastChild.textContent = picture ? "Choose another picture, or drop it here" : "Choose a picture, or drop it here";
    this.update();
    tell("followed");
  }

  /** Keep the form, and show what is followed, once nothing changes any more. */
  update() {
    this.controls.changed();
    clearTimeout(this.timer);
    if (!this.picture) return;
    this.timer = setTimeout(() => this.draw(), this.preview.hidden ? 0 : PAUSE);
  }

  async draw() {
    const { how, picture } = this;
    const asked = (this.asked = {});
    let problem = "";
    let url = "";
    try {
      url = how ? await preprocess(picture, how) : `data:${picture.type};base64,${await base64(picture)}`;
    } catch (error) {
      problem = error.message || "The server cannot be reached";
    }
    if (asked !== this.asked) return; // another was asked for meanwhile
    this.problem.textContent = problem;
    this.preview.hidden = !url;
    if (url) this.preview.src = url;
  }
}

const labelled = ([text, input]) => make("label", {}, text, input);
// the server says what is wrong
const read = (input) => (input.value === "" ? null : Number(input.value));

customElements.define("jaxl-controls", Controls);
