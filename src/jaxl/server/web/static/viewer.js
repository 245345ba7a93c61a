// <jaxl-viewer>: one picture at its size with what made it, or two of them under a slider.

import { button, caption, fileName, make, tell } from "./dom.js";
import { pictures, remove, star } from "./history.js";
import { written } from "./image_prompts.js";
import { NETWORKS } from "./networks.js";

const LABELS = {
  prompt: "Prompt",
  negative_prompt: "Negative prompt",
  seed: "Seed",
  size: "Size",
  steps: "Steps",
  guidance_scale: "Guidance",
  scheduler: "Scheduler",
  loras: "LoRAs",
  controls: "ControlNets",
  image_prompts: "Image prompts",
  strength: "Strength",
  refiner: "Refiner",
};

class Viewer extends HTMLElement {
  connectedCallback() {
    if (this.dialog) return;
    this.stage = make("div", { className: "jaxl-stage" });
    this.details = make("dl");
    this.slider = make("input", { type: "range", min: 0, max: 100, step: 1, "aria-label": "How much of the first picture is shown" });
    this.slider.oninput = () => this.stage.style.setProperty("--jaxl-split", `${this.slider.value}%`);
    // Gradio takes clicks on links for itself, and opens a window
    this.save = make("a", { className: "jaxl-button", onclick: (event) => event.stopPropagation() }, "Download");
    const act = (name) => () => {
      const picture = this.picture;
      this.dialog.close();
      tell(name, picture);
    };
    this.star = button("Star", () => this.mark(!this.picture.starred));
    this.actions = make(
      "div",
      { className: "jaxl-row" },
      this.save,
      this.star,
      button("Use these settings", act("use")),
      button("Variations", act("vary")),
      button("Edit", act("edit")),
      button("Enlarge", act("enlarge")),
      button("Compare", () => this.choose()),
      button("Delete", () => this.drop()),
    );
    const close = button("Close", () => this.dialog.close(), { autofocus: true });
    this.dialog = make("dialog", { className: "jaxl-viewer", "aria-label": "Picture" }, this.stage, this.slider, this.actions, this.details, close);
    this.dialog.onkeydown = (event) => this.step(event);
    this.dialog.onclick = (event) => event.target === this.dialog && this.dialog.close();
    this.append(this.dialog);
  }

  /** Show a picture, beside the one to compare with if there is one. */
  open(picture) {
    const other = this.other;
    this.leave();
    this.picture = picture;
    const compared = Boolean(other) && other !== picture;
    const image = (each, name) => make("img", { src: each.url, alt: caption(each), className: name });
    this.stage.replaceChildren(image(picture, ""), ...(compared ? [image(other, "jaxl-first")] : []));
    this.stage.style.setProperty("--jaxl-split", "50%");
    this.slider.value = 50;
    this.slider.hidden = !compared;
    this.actions.hidden = compared;
    this.save.href = picture.url;
    this.save.download = fileName(picture);
    this.star.setAttribute("aria-pressed", String(Boolean(picture.starred)));
    this.details.replaceChildren(...(compared ? [] : terms(picture)));
    if (!this.dialog.open) this.dialog.showModal();
  }

  /** Let the next picture that is opened be compared with this one. */
  choose() {
    this.other = this.picture;
    this.dialog.close();
    document.body.classList.add("jaxl-choosing");
    tell("say", "Choose the picture to compare with; Esc gives up");
  }

  /** Give up on comparing. Whether there was anything to give up. */
  leave() {
    const chose = Boolean(this.other);
    this.other = null;
    document.body.classList.remove("jaxl-choosing");
    return chose;
  }

  step(event) {
    const way = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!way || event.target === this.slider) return;
    const next = pictures[pictures.indexOf(this.picture) + way];
    if (next) this.open(next);
  }

  mark(starred) {
    star(this.picture, starred);
    this.star.setAttribute("aria-pressed", String(starred));
  }

  drop() {
    if (!confirm("Delete this picture from this browser?")) return;
    this.dialog.close();
    remove([this.picture]);
  }
}

function terms(picture) {
  const loras = Object.entries(picture.settings.loras ?? {}).map((each) => each.join(" "));
  const described = ({ name, strength, preprocess, blocks }) =>
    [name, strength, preprocess?.name, written(blocks)].filter((each) => each !== undefined && each !== "").join(" ");
  const networks = NETWORKS.map((name) => [name, (picture.settings[name] ?? []).map(described).join(", ")]);
  const known = { ...picture.settings, seed: String(picture.settings.seed), loras: loras.join(", "), ...Object.fromEntries(networks) };
  const rows = Object.entries(LABELS).filter(([name]) => known[name] !== undefined && known[name] !== "");
  return rows.flatMap(([name, label]) => [make("dt", {}, label), make("dd", {}, String(known[name]))]);
}

customElements.define("jaxl-viewer", Viewer);
