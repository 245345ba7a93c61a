// The server's API, as any client would use it: OpenAI's images with jaxl's extensions.

const api = new URL("../v1/", import.meta.url);
const sdapi = new URL("../sdapi/v1/", import.meta.url);
const health = new URL("../health/ready", import.meta.url);

// Most that the API takes
const MAX_PREVIEWS = 100;
// Pictures of a grid that are in the making at once
const AT_ONCE = 4;
// Milliseconds from one look at a request to the next
const RESUME_EVERY = 700;

/** What the server said of a request that it did not draw, in a line for people. */
export class Refused extends Error {}

/** The server is not there, or went away while it drew. */
export class Unreachable extends Error {}

/** The server knows no such request, or not any more. */
export class Gone extends Error {}

/**
 * Draw pictures. Gives {name: "queued" | "progress" | "partial_image" | "completed", ...} as they come; a completed one
 * has its `blob`. `asked` has the fields of the form; `source` is null or {image, mask}, of blobs. With `keep` the server
 * draws on when this page is gone, and `resume` finds the pictures. Throws Refused and Unreachable.
 */
export async function* draw(asked, source, { id, keep, signal }) {
  const masked = Boolean(source?.mask);
  const fields = {
    model: asked.model,
    prompt: asked.prompt,
    negative_prompt: asked.negative_prompt,
    prompt_syntax: asked.prompt_syntax ?? "lenient", // pictures of older histories do not say
    n: asked.num_images,
    size: asked.size,
    size_policy: "nearest",
    num_inference_steps: asked.steps,
    guidance_scale: asked.guidance_scale,
    scheduler: asked.scheduler,
    loras: asked.loras,
    controls: await withPictures(asked.controls, ([image]) => ({ image })),
    image_prompts: await withPictures(asked.image_prompts, (images) => ({ images })),
    hires: source ? null : asked.hires, // second passes are for what begins as noise
    refiner: asked.refiner,
    refiner_at: asked.refiner && asked.refiner_at,
    noise: asked.noise,
    style: asked.style,
    ...asked.more,
    strength: source ? asked.strength : null,
    mask_blur: masked ? asked.mask_blur : null,
    padding_mask_crop: masked && asked.only_masked ? asked.padding_mask_crop : null,
    previews: Math.min(asked.steps, MAX_PREVIEWS),
    progress: true,
    stream: true,
    keep: keep || null,
    seed: asked.seed,
  };
  for (const [name, value] of Object.entries(fields)) if (value === null || value === undefined || value === "") delete fields[name];
  const { headers, ...body } = source ? form(fields, source) : json(fields);
  const options = { ...body, headers: { ...headers, "X-Request-Id": id } };
  const response = await send(source ? "images/edits" : "images/generations", options, signal);
  const left = new Set(Array(asked.num_images).keys());
  for await (const { name, known } of reported(response)) {
    if (name.endsWith(".completed")) {
      left.delete(known.image_index);
      known.blob = png(known.b64_json);
    } else if (name.endsWith(".partial_image")) {
      known.url = `data:image/png;base64,${known.b64_json}`;
    }
    yield { ...known, name: name.slice(name.indexOf(".") + 1) };
  }
  if (left.size) throw new Unreachable();
}

/**
 * Draw a grid's pictures, several at a time; gives what `draw` does, with the place of each among the cells, and throws
 * what it does.
 */
export async function* drawGrid(asked, source, { id, signal }) {
  const own = new AbortController();
  const waiting = asked.grid.cells.map((cell, index) => place(draw(ofCell(asked, cell), source, { id: `${id}-${index}`, signal: own.signal }), index));
  const running = new Map();
  const step = (news) => running.set(news, news.next().then(({ value, done }) => ({ news, value, done })));
  const stop = () => own.abort();
  signal.addEventListener("abort", stop);
  try {
    while (waiting.length || running.size) {
      while (waiting.length && running.size < AT_ONCE) step(waiting.shift());
      const { news, value, done } = await Promise.race(running.values());
      if (done) running.delete(news);
      else {
        step(news);
        yield value;
      }
    }
  } finally {
    signal.removeEventListener("abort", stop);
    for (const next of running.values()) next.catch(() => {});
    own.abort();
  }
}

/** What is asked for one picture of a grid. */
export function ofCell({ grid, ...asked }, cell) {
  const { width, height, steps, seed, ...more } = cell;
  const size = width ? { size: `${width}x${height}` } : {};
  return { ...asked, ...cell, ...size, num_images: 1, more };
}

async function* place(coming, index) {
  for await (const news of coming) yield { ...news, image_index: index };
}

/** What comes of a request that was kept: gives what `draw` does, from where it stands now. Throws Gone too. */
export async function* resume(id, signal) {
  const path = `requests/${id}`;
  const seen = new Set();
  for (;;) {
    const known = await (await send(path, {}, signal)).json();
    for (const { image, file } of known.pictures ?? []) {
      if (seen.has(image)) continue;
      seen.add(image);
      const blob = await (await send(`images/files/${file}`, {}, signal)).blob();
      yield { name: "completed", image_index: image, blob };
    }
    if (known.state === "done") return;
    if (known.error) throw new Refused(known.error.message);
    if (known.state === "queued") yield { name: "queued", position: known.position, starts_in: known.starts_in };
    else yield* followed(path, signal);
    await new Promise((resolve) => setTimeout(resolve, RESUME_EVERY));
  }
}

/** What happens to a request until its next picture is drawn, or it ends. */
async function* followed(path, signal) {
  let response;
  try {
    response = await send(`${path}/events`, {}, signal);
  } catch (error) {
    if (error instanceof Gone) return; // it has just ended, or its last pictures are being written
    throw error;
  }
  for await (const { name, known } of reported(response)) {
    if (name === "progress") yield { name, image_index: known.image, done: known.done, total: known.total };
    else if (name === "preview") yield { name: "partial_image", image_index: known.image, url: `data:image/jpeg;base64,${known.b64_json}` };
    else if (name === "drawn") return;
  }
}

/** Give up on a request, or let the server forget its pictures. */
export async function release(id) {
  for (const wait of [0, 1000]) {
    await new Promise((resolve) => setTimeout(resolve, wait)); // it may not have arrived yet
    try {
      return await send(`requests/${id}`, { method: "DELETE" });
    } catch (error) {
      if (!(error instanceof Gone)) return undefined;
    }
  }
}

/** How long a prompt is: {tokens, chunks, limit, error}. */
export async function countTokens(text, prompt_syntax) {
  return (await send("tokens", json({ text, prompt_syntax }))).json();
}

/** The names of the models that there are, each once: others are further names of these. */
export async function models() {
  const { data } = await (await send("models")).json();
  return [...new Set(data.map(({ root }) => root))];
}

/** The LoRAs that there are: [{id, base_model, trigger_words}, ...]. */
export async function loras() {
  return (await (await send("loras")).json()).data;
}

/** The axes of a grid, read: {labels, cells}. Throws Refused. */
export async function grid(axes) {
  return (await send("grids", json(axes))).json();
}

/** Pictures made larger, as blobs. Throws Refused. */
export async function enlarged(files, upscaler_1, upscaling_resize) {
  const imageList = await Promise.all(files.map(async (file) => ({ data: await base64(file), name: file.name ?? "" })));
  const asked = json({ imageList, upscaler_1, upscaling_resize });
  return (await (await send(new URL("extra-batch-images", sdapi), asked)).json()).images.map(png);
}

/** The preprocessors that there are: [{id, about, parameters, mask}, ...]. */
export async function preprocessors() {
  return (await (await send("preprocessors")).json()).data;
}

/** What a preprocessor makes of a picture, as a URL; `how` has its name and its parameters. Throws Refused. */
export async function preprocess(picture, how) {
  const answer = await send("preprocess", json({ image: await base64(picture), ...how }));
  return `data:image/png;base64,${(await answer.json()).image}`;
}

/** The settings in a picture's file, by their names in `Pipeline.generate`; the seed is a text. Throws Refused. */
export async function settingsOf(file) {
  const response = await send("images/settings", json({ image: await base64(file) }));
  return response.json();
}

/** What the server says of itself. */
export async function statistics() {
  return (await send("stats")).json();
}

/** Whether the server takes requests. */
export async function isReady() {
  try {
    return (await fetch(health, { cache: "no-store" })).ok;
  } catch {
    return false;
  }
}

export async function base64(blob) {
  const url = await new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(new Refused(`${blob.name ?? "the picture"} cannot be read`));
    reader.readAsDataURL(blob);
  });
  return url.slice(url.indexOf(",") + 1);
}

async function send(path, options = {}, signal = undefined) {
  let response;
  try {
    response = await fetch(new URL(path, api), { ...options, signal, cache: "no-store" });
  } catch (error) {
    throw error.name === "AbortError" ? error : new Unreachable();
  }
  if (response.ok) return response;
  const text = await response.text();
  let message = `the server answered ${response.status}`;
  try {
    const known = JSON.parse(text);
    message = known.error.message ?? known.detail;
  } catch {
    // a proxy's page
  }
  if (response.status === 404 && String(path).startsWith("requests/")) throw new Gone(message);
  const wait = response.headers.get("Retry-After");
  throw new Refused(response.status === 429 && wait ? `${message} (in about ${wait} s)` : message);
}

/** Networks as the server takes them, which `named` has with their pictures. */
async function withPictures(networks, named) {
  const read = async ({ pictures, ...own }) => ({ ...own, ...named(await Promise.all(pictures.map(base64))) });
  return networks && Promise.all(networks.map(read));
}

function json(fields) {
  // a seed has 64 bits, a number of JavaScript 53, so seeds are texts here
  const { seed, ...rest } = fields;
  let body = JSON.stringify(rest);
  if (seed !== undefined) body = `${body.slice(0, -1)},"seed":${seed}}`;
  return { method: "POST", headers: { "Content-Type": "application/json" }, body };
}

function form(fields, source) {
  const body = new FormData();
  for (const [name, value] of Object.entries(fields)) body.append(name, typeof value === "object" ? JSON.stringify(value) : value);
  body.append("image", source.image, "image.png");
  if (source.mask) body.append("mask", source.mask, "mask.png");
  return { method: "POST", body };
}

function png(text) {
  return new Blob([Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0))], { type: "image/png" });
}

/** The events of an answer, read, up to an error. Throws Refused for that, and Unreachable if the server is gone. */
async function* reported(response) {
  try {
    for await (const { name, data } of events(response.body)) {
      const known = JSON.parse(data);
      if (name === "error") throw new Refused(known.error.message);
      yield { name, known };
    }
  } catch (error) {
    throw error instanceof Refused || error.name === "AbortError" ? error : new Unreachable();
  }
}

/** Server-sent events: https://html.spec.whatwg.org/multipage/server-sent-events.html */
async function* events(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let parts = [];
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    // a picture comes in many pieces, so these are joined once
    parts.push(value);
    if (!(value.includes("\n\n") || (value.startsWith("\n") && parts.length > 1))) continue;
    const messages = parts.join("").split("\n\n");
    parts = [messages.pop()];
    for (const message of messages) {
      const fields = Object.fromEntries(message.split("\n").map((line) => line.split(/: ?(.*)/s, 2)));
      if (fields.event) yield { name: fields.event, data: fields.data };
    }
  }
}
