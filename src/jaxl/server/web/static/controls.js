// <jaxl-controls>: ControlNets of the server, each with the picture that it follows and what is made of it.

import { base64, preprocess, preprocessors } from "./client.js";
import { make } from "./dom.js";
import { Networks, Row, labelled } from "./networks.js";

// Milliseconds after the last change until the preview is asked for
const PAUSE = 300;

class Control extends Row {
  constructor(controls, settings, label) {
    super(controls, settings, label);
    const { mode = "", preprocess: how = null } = settings;
    this.preview = make("img", { alt: `What ${label} follows`, hidden: true });
    const modes = ["", ...controls.choices].map((each) => make("option", { value: each }, each || "the only one it takes"));
    this.mode = make("select", { "aria-label": `Kind of picture for ${label}`, onchange: () => controls.changed() }, ...modes);
    this.mode.value = mode;
    const makers = ["", ...controls.offered.map(({ id }) => id)].map((each) => make("option", { value: each }, each || "none"));
    this.maker = make("select", { "aria-label": `Preprocessor for ${label}`, onchange: () => this.chosen({}) }, ...makers);
    this.parameters = make("div");
    this.drop.after(this.preview, make("label", { className: "jaxl-field" }, "Preprocessor", this.maker), this.parameters);
    this.problem.after(make("label", { className: "jaxl-field" }, "Kind of picture", this.mode));
    this.maker.value = how?.name ?? "";
    this.chosen(how ?? {});
  }

  get value() {
    const how = this.how;
    return { ...super.value, ...(this.mode.value ? { mode: this.mode.value } : {}), ...(how ? { preprocess: how } : {}) };
  }

  /** The preprocessor with its parameters; null without one. */
  get how() {
    if (!this.maker.value) return null;
    const numbers = [...this.parameters.querySelectorAll("input")].filter((input) => input.value !== "");
    return { name: this.maker.value, ...Object.fromEntries(numbers.map((input) => [input.name, Number(input.value)])) };
  }

  /** Show the parameters of the preprocessor that is chosen, with these values. */
  chosen(values) {
    const { parameters } = this.networks.offered.find(({ id }) => id === this.maker.value) ?? { parameters: [] };
    const field = ({ name, whole, default: usual, minimum, maximum }) => {
      const limits = { min: minimum, max: maximum, step: whole ? 1 : "any", value: values[name] ?? usual };
      const input = make("input", { type: "number", name, "aria-label": `${name} of ${this.maker.value} for ${this.label}`, ...limits });
      input.oninput = () => this.update();
      return labelled([name, input]);
    };
    const size = make("input", { type: "number", name: "resolution", min: 64, max: 2048, step: 1, placeholder: "own size" });
    size.setAttribute("aria-label", `Resolution for ${this.label}`);
    size.value = values.resolution ?? "";
    size.oninput = () => this.update();
    this.parameters.replaceChildren(...(this.maker.value ? [...parameters.map(field), labelled(["resolution", size])] : []));
    this.update();
  }

  /** Keep the form, and show what is followed, once nothing changes any more. */
  update() {
    super.update();
    clearTimeout(this.timer);
    if (!this.pictures.length) return;
    this.timer = setTimeout(() => this.draw(), this.preview.hidden ? 0 : PAUSE);
  }

  async draw() {
    const { how } = this;
    const [picture] = this.pictures;
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

class Controls extends Networks {
  one = "ControlNet";
  several = "ControlNets";
  adding = "Add a ControlNet";
  Row = Control;
  offered = [];

  /** An image has each of them once. */
  get left() {
    return this.names.filter((name) => !this.rows.some((row) => row.name === name));
  }

  async look() {
    try {
      this.offered = (await preprocessors()).filter(({ mask }) => !mask);
    } catch {
      // pictures can be followed as they are
    }
  }
}

customElements.define("jaxl-controls", Controls);
