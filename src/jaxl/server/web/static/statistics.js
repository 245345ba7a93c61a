// <jaxl-statistics>: what the server does, live.

import { make } from "./dom.js";
import { statistics } from "./client.js";

const EVERY = 2000;
const WIDTH = 300;
const HEIGHT = 60;
const SVG = "http://www.w3.org/2000/svg";

const number = (value, digits = 2) => (value === null ? "–" : value.toLocaleString(undefined, { maximumFractionDigits: digits }));

// a label, the text, and what the plot is of: a list in the server's history
const SHOWN = [
  ["Images per second", (known) => number(known.images_per_second), "images_per_second"],
  ["Images waiting", (known) => number(known.waiting, 0), "waiting"],
  ["Places in use", (known) => `${known.running} of ${known.places}`, "running"],
  ["Latency, half of the requests", (known) => `${number(known.latency.p50)} s`, "latency"],
  ["Latency, 95 of 100 requests", (known) => `${number(known.latency.p95)} s`],
  ["Steps per second", (known) => number(known.steps_per_second, 1)],
  ["Images drawn", (known) => number(known.images, 0)],
  ["Cost of an image, at the rate of the last minute", (known) => cost(known)],
];

class Statistics extends HTMLElement {
  connectedCallback() {
    if (!this.cards) {
      this.note = make("p", { role: "status" });
      this.cards = SHOWN.map(([label, , trend]) => {
        const value = make("span", { className: "jaxl-number" }, "–");
        const plot = trend ? sparkline() : null;
        return { value, plot, card: make("div", { className: "jaxl-card" }, make("span", {}, label), value, ...(plot ? [plot] : [])) };
      });
      this.append(this.note, make("div", { className: "jaxl-cards" }, ...this.cards.map(({ card }) => card)));
    }
    this.timer = setInterval(() => this.refresh(), EVERY);
    this.refresh();
  }

  disconnectedCallback() {
    clearInterval(this.timer);
  }

  async refresh() {
    if (document.hidden || !this.checkVisibility()) return;
    let known;
    try {
      known = await statistics();
    } catch {
      this.note.textContent = "The server cannot be reached.";
      return;
    }
    const { every, ...history } = known.history;
    const minutes = Math.round((history.waiting.length * every) / 60);
    this.note.textContent = `${known.model}, up for ${Math.round(known.uptime / 60)} min; the plots are of the last ${minutes} min`;
    SHOWN.forEach(([, text, trend], i) => {
      this.cards[i].value.textContent = text(known);
      if (trend) draw(this.cards[i].plot, history[trend]);
    });
  }
}

function cost(known) {
  if (known.usd_per_hour === null) return "no price known for these devices";
  if (known.usd_per_image === null) return `– at $${number(known.usd_per_hour)} an hour`;
  return `$${number(known.usd_per_image, 6)} at $${number(known.usd_per_hour)} an hour`;
}

function sparkline() {
  const plot = document.createElementNS(SVG, "svg");
  plot.setAttribute("viewBox", `0 0 ${WIDTH} ${HEIGHT}`);
  plot.setAttribute("preserveAspectRatio", "none");
  plot.setAttribute("aria-hidden", "true");
  plot.append(document.createElementNS(SVG, "polyline"));
  return plot;
}

/** A line through the values that are known. */
function draw(plot, values) {
  const most = Math.max(...values, 1e-9);
  const point = (value, i) => `${(WIDTH * i) / Math.max(values.length - 1, 1)},${HEIGHT - 2 - (value / most) * (HEIGHT - 4)}`;
  const points = values.map((value, i) => (value === null ? "" : point(value, i)));
  plot.firstChild.setAttribute("points", points.filter(Boolean).join(" "));
}

customElements.define("jaxl-statistics", Statistics);
