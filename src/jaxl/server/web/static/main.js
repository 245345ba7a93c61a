// Brings the form and the elements of the page together. Gradio's events call `window.jaxl`.

import "./board.js";
import "./gallery.js";
import "./viewer.js";
import "./source.js";
import "./statistics.js";
import { Unreachable, draw, isReady, settingsOf } from "./client.js";
import { add, open } from "./history.js";
import { tell } from "./dom.js";

const VARIATION_STRENGTH = 0.5;
const POLL = 2000;
// what the form has no field for, and what needs none
const SILENT = ["version", "width", "height", "model", "num_images"];

const part = (name) => document.querySelector(`jaxl-${name}`);

/** The request that is on its way, as what aborts it. */
let running = null;
let lastSeed = "";

/** Draw what the form asks for. `names` are its fields, `values` theirs. */
function generate(names, values) {
  const asked = Object.fromEntries(names.map((name, i) => [name, values[i]]));
  run({ ...asked, seed: String(asked.seed ?? "").trim() }, () => part("source").blobs());
}

/** Draw, one request at a time; `source` makes what `draw` takes. */
async function run(asked, source) {
  const board = part("board");
  if (running) return;
  if (!/^\d*$/.test(asked.seed)) {
    board.end("Not drawn", `Seed: ${asked.seed} is no whole number; give one, or leave it empty`);
    return;
  }
  // of 32 bits, which every program that reads seeds can read
  const seed = asked.seed || String(crypto.getRandomValues(new Uint32Array(1))[0]);
  lastSeed = seed;
  const [width, height] = asked.size.split("x").map(Number);
  running = new AbortController();
  document.body.classList.add("jaxl-drawing");
  board.begin(asked.num_images, width, height);
  let lost = false;
  try {
    const from = await source();
    for await (const news of draw({ ...asked, seed }, from, running.signal)) {
      if (news.name === "queued") board.queued(news.position, news.starts_in);
      else if (news.name === "progress") board.progress(news.image_index, news.done, news.total);
      else if (news.name === "partial_image") board.preview(news.image_index, `data:image/png;base64,${news.b64_json}`);
      else if (news.name === "completed") await keep(news, asked, seed, from, width, height);
    }
    board.end("Done");
  } catch (error) {
    if (error.name === "AbortError") board.end("Cancelled");
    else if (error instanceof Unreachable) lost = true;
    else board.end("Not drawn", error.message);
  } finally {
    running = null;
    document.body.classList.remove("jaxl-drawing");
  }
  if (lost) await wait(board);
}

async function keep(news, asked, firstSeed, source, width, height) {
  const bytes = Uint8Array.from(atob(news.b64_json), (letter) => letter.charCodeAt(0));
  const { num_images, strength, ...settings } = asked;
  const made = { ...settings, width, height, seed: String(BigInt(firstSeed) + BigInt(news.image_index)) };
  if (source) made.strength = strength;
  part("board").completed(news.image_index, await add(new Blob([bytes], { type: "image/png" }), made, Boolean(source)));
}

/** Until the server is back. */
async function wait(board) {
  board.end("Not drawn", "The server cannot be reached; trying again …");
  while (!running && !(await isReady())) await new Promise((resolve) => setTimeout(resolve, POLL));
  if (!running) board.end("The server is back; generate again.");
}

/**
 * The values of the form with settings put in, where the page offers them. `offered` has the sizes and schedulers that
 * the server draws, and the most steps and images.
 */
function fill(names, offered, settings, values) {
  let { size } = settings;
  if (settings.width) size = `${settings.width}x${settings.height}`;
  if (settings.near) size = nearest(offered.sizes, settings.near);
  const wanted = { ...settings, size };
  if (settings.seed !== undefined) wanted.seed = String(settings.seed);
  const fits = {
    size: () => offered.sizes.includes(size),
    scheduler: () => offered.schedulers.includes(settings.scheduler),
    steps: () => settings.steps <= offered.steps,
    num_images: () => settings.num_images <= offered.num_images,
  };
  const lost = [];
  const filled = names.map((name, i) => {
    if (wanted[name] === undefined || wanted[name] === null) return settings.whole && name === "negative_prompt" ? "" : values[i];
    if (!fits[name] || fits[name]()) return wanted[name];
    lost.push(`${name} ${wanted[name]}`);
    return values[i];
  });
  if (settings.whole) {
    const known = [...names, ...SILENT, "whole", "size", "unread"];
    lost.push(...Object.entries(settings).filter(([name, value]) => !known.includes(name) && value !== null).map(([name]) => name), ...(settings.unread ?? []));
    const from = settings.strength === undefined ? "" : "; it was drawn from another picture, which is not in it";
    tell("say", `Settings restored${from}${lost.length ? `; not offered here: ${lost.join(", ")}` : ""}`);
  }
  return filled;
}

/** Put a picture's settings into the form. */
async function restore(file) {
  try {
    tell("fill", { ...(await settingsOf(file)), num_images: 1, whole: true });
  } catch (error) {
    tell("say", error instanceof Unreachable ? "The server cannot be reached" : error.message);
  }
}

/** The size whose shape is nearest to an aspect, that of a picture to start from. */
function nearest(sizes, aspect) {
  const distance = (size) => Math.abs(Math.log((aspect * size.split("x")[1]) / size.split("x")[0]));
  return sizes.reduce((best, size) => (distance(size) < distance(best) ? size : best));
}

window.jaxl = {
  generate,
  fill,
  cancel: () => running?.abort(),
  seed: () => lastSeed,
};

const listen = (name, listener) => document.addEventListener(`jaxl:${name}`, ({ detail }) => listener(detail));

listen("say", (text) => part("board").end(text));
listen("open", (picture) => part("viewer").open(picture));
listen("use", (picture) => tell("fill", { ...picture.settings, num_images: 1, whole: true }));
listen("edit", async (picture) => {
  await part("source").take(picture.blob);
  part("source").scrollIntoView({ block: "nearest" });
});
listen("vary", (picture) => {
  const { width, height, ...settings } = picture.settings;
  const asked = { ...settings, size: `${width}x${height}`, strength: VARIATION_STRENGTH, seed: "", num_images: variations() };
  run(asked, async () => ({ image: picture.blob, mask: null }));
});

function variations() {
  return Number(document.querySelector("#jaxl-images input")?.value) || 4;
}

document.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
    event.preventDefault();
    document.querySelector("#jaxl-generate").click();
  } else if (event.key === "Escape" && !document.querySelector("dialog[open]")) {
    if (part("viewer").leave()) part("board").end("");
    else running?.abort();
  }
});

document.addEventListener("click", ({ target }) => {
  if (target.closest(".jaxl-theme")) localStorage.setItem("jaxl-theme", document.body.classList.toggle("dark") ? "dark" : "light");
});
// a strength without a picture to start from does nothing
listen("source", (given) => document.body.classList.toggle("jaxl-from-picture", given));
document.addEventListener("change", ({ target }) => {
  if (!target.matches(".jaxl-restore input")) return;
  if (target.files.length) restore(target.files[0]);
  target.value = "";
});
document.addEventListener("dragover", (event) => event.preventDefault());
document.addEventListener("drop", (event) => {
  if (event.defaultPrevented || !event.dataTransfer.files.length) return;
  event.preventDefault();
  restore(event.dataTransfer.files[0]);
});

document.body.append(document.createElement("jaxl-viewer"));

const theme = localStorage.getItem("jaxl-theme");
if (theme) document.body.classList.toggle("dark", theme === "dark");
await open();
