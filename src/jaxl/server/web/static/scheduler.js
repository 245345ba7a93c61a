// <jaxl-scheduler>: a sampler, and the schedules that go with it, which together are the name of a scheduler.

import { make, tell } from "./dom.js";

class Scheduler extends HTMLElement {
  connectedCallback() {
    if (this.sampler) return;
    // {label, schedules: [[label, full name], ...]} for each sampler
    this.samplers = JSON.parse(this.dataset.samplers);
    const option = ({ label }, i) => make("option", { value: i }, label);
    this.sampler = make("select", { "aria-label": "Sampler", onchange: () => this.offer() }, ...this.samplers.map(option));
    this.schedule = make("select", { "aria-label": "Schedule", onchange: () => tell("changed") });
    const field = (select) => make("label", { className: "jaxl-field" }, select.ariaLabel, select);
    this.append(field(this.sampler), field(this.schedule));
    this.offer();
    this.choose(this.dataset.value);
  }

  get value() {
    return this.schedule.value;
  }

  /** Take a scheduler by its full name. Whether it is offered. */
  choose(name) {
    const place = this.samplers.findIndex(({ schedules }) => schedules.some(([, full]) => full === name));
    if (place < 0) return false;
    this.sampler.value = place;
    this.offer();
    this.schedule.value = name;
    tell("changed");
    return true;
  }

  /** The schedules of the sampler that is chosen; the one that was chosen stays if it is among them. */
  offer() {
    const before = this.schedule.selectedOptions[0]?.textContent;
    const { schedules } = this.samplers[this.sampler.value];
    const option = ([label, full]) => make("option", { value: full, selected: label === before }, label);
    this.schedule.replaceChildren(...schedules.map(option));
    tell("changed");
  }
}

customElements.define("jaxl-scheduler", Scheduler);
