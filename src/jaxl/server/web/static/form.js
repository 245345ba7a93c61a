// What the form asks for: fields of Gradio's, and elements of the page's own beside them. It outlives a reload.

import { part, tell } from "./dom.js";
import { NETWORKS } from "./networks.js";
import { Store } from "./store.js";
import { tab } from "./tab.js";

const KEPT = "jaxl-form";
// Milliseconds after which nobody comes back to a tab
const OLD = 24 * 3600_000;
// what a picture has whose settings do not say it
const USUAL = { negative_prompt: "", prompt_syntax: "lenient", noise: "", style: "" };
// what the form has no field for, and what needs none
const SILENT = ["version", "width", "height", "model", "num_images", "whole", "size", "scheduler", "loras", "lora_hashes", "hires", "refiner", "refiner_at", "axes", ...NETWORKS, "program", "unread"];

// of the pictures of networks
const pictured = (name) => `${tab}/${name}`;

const saved = JSON.parse(sessionStorage.getItem(KEPT) ?? "null");
const sources = new Store("jaxl-sources");
let known = {};
let begun = false;

/** Note the values of Gradio's fields. */
export function remember(names, values) {
  known = Object.fromEntries(names.map((name, i) => [name, values[i]]));
  keep();
}

/** What is asked for; the seed is a text, empty for one at random. */
export function asked() {
  const names = ["model", "size", "scheduler", "loras", "hires", ...NETWORKS];
  const own = Object.fromEntries(names.map((name) => [name, part(name).value]));
  const axes = part("grid").value;
  return { ...known, ...own, ...part("refiner").value, ...(axes ? { axes } : {}), seed: String(known.seed ?? "").trim() };
}

/** Put in what was there before the page was loaded again; from now on it is kept. */
export async function begin() {
  const pictures = {};
  await sources.open();
  for (const { id, since, ...source } of await sources.all()) {
    if (since < Date.now() - OLD) await sources.remove(id);
    else if (id === tab) await part("source").restore(source);
    else pictures[id] = source.pictures;
  }
  begun = true;
  for (const name of NETWORKS) part(name).choose(saved?.[name] ?? [], pictures[pictured(name)]);
  if (saved) tell("fill", saved);
  else keep(); // what was typed meanwhile
}

export function keep() {
  if (!begun) return;
  sessionStorage.setItem(KEPT, JSON.stringify(asked()));
  tell("form", asked());
}

/** Keep the picture to start from too, with its mask. */
export function keepSource() {
  if (!begun) return;
  const source = part("source").kept();
  if (source) sources.put({ id: tab, since: Date.now(), ...source });
  else sources.remove(tab);
}

/** Keep the pictures of networks too. */
export function keepPictures() {
  if (!begun) return;
  for (const name of NETWORKS) sources.put({ id: pictured(name), since: Date.now(), pictures: part(name).pictures });
}

/**
 * The values of Gradio's fields with settings put in, where the page offers them; the page's own elements get theirs.
 * `offered` has the most steps and images. Settings that are `whole` say all there is to a picture.
 */
export function fill(names, offered, settings, values) {
  const lost = [];
  if (settings.model) part("model").choose(settings.model); // `unread` says what is not here
  const size = settings.width ? `${settings.width}x${settings.height}` : settings.size;
  if (size) part("size").choose(size);
  if (size && part("size").value !== size) lost.push(`size ${size}`);
  if (settings.near) part("size").choose(settings.near);
  if (settings.scheduler && !part("scheduler").choose(settings.scheduler)) lost.push(`scheduler ${settings.scheduler}`);
  if (settings.loras || settings.whole) lost.push(...part("loras").choose(settings.loras ?? {}).map((name) => `LoRA ${name}`));
  for (const name of NETWORKS) {
    if (settings[name] || settings.whole) lost.push(...part(name).choose(settings[name] ?? []));
  }
  if (settings.refiner || settings.whole) {
    if (!part("refiner").choose(settings.refiner, settings.refiner_at)) lost.push(`refiner ${settings.refiner}`);
  }
  if (settings.axes || settings.whole) part("grid").choose(settings.axes);
  if (settings.hires || settings.whole) lost.push(...part("hires").choose(settings.hires, size));
  const fits = (name, value) => !offered[name] || value <= offered[name];
  const filled = names.map((name, i) => {
    const value = settings[name];
    if (value === undefined || value === null) return (settings.whole ? USUAL[name] : undefined) ?? values[i];
    if (!fits(name, value)) lost.push(`${name} ${value}`);
    return !fits(name, value) ? values[i] : name === "seed" ? String(value) : value;
  });
  if (settings.whole) tell("say", restored(names, settings, lost));
  return filled;
}

function restored(names, settings, lost) {
  const more = Object.keys(settings).filter((name) => ![...names, ...SILENT].includes(name) && settings[name] !== null);
  const { program = "jaxl", unread } = settings;
  const parts = [["jaxl", "unknown"].includes(program) ? "Settings restored" : `Settings of ${program} restored`];
  if (settings.strength !== undefined && !unread) parts.push("it was drawn from another picture, which is not in it");
  if (lost.length || more.length) parts.push(`not offered here: ${[...lost, ...more].join(", ")}`);
  if (unread?.length) parts.push(`not restored: ${unread.join(" · ")}`);
  return parts.join("; ");
}
