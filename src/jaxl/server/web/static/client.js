// The server's API, as any client would use it: OpenAI's images with jaxl's extensions.

const api = new URL("../v1/", import.meta.url);
const health = new URL("../health/ready", import.meta.url);

// Most that the API takes
const MAX_PREVIEWS = 100;

/** What the server said of a request that it did not draw, in a line for people. */
export class Refused extends Error {}

/** The server is not there, or went away while it drew. */
export class Unreachable extends Error {}

/**
 * Draw pictures. Gives {name: "queued" | "progress" | "partial_image" | "completed", ...} as they come.
 * `asked` has the fields of the form; `source` is null or {image, mask}, of blobs. Throws Refused and Unreachable.
 */
export async function* draw(asked, source, signal) {
  const fields = {
    prompt: asked.prompt,
    negative_prompt: asked.negative_prompt,
    prompt_syntax: asked.prompt_syntax ?? "lenient",
    n: asked.num_images,
    size: asked.size,
    num_inference_steps: asked.steps,
    guidance_scale: asked.guidance_scale,
    scheduler: asked.scheduler,
    strength: source ? asked.strength : null,
    previews: Math.min(asked.steps, MAX_PREVIEWS),
    progress: true,
    stream: true,
    seed: asked.seed,
  };
  for (const [name, value] of Object.entries(fields)) if (value === null || value === "") delete fields[name];
  const response = await send(source ? "images/edits" : "images/generations", source ? form(fields, source) : json(fields), signal);
  const left = new Set(Array(asked.num_images).keys());
  try {
    for await (const { name, data } of events(response.body)) {
      const known = JSON.parse(data);
      if (name === "error") throw new Refused(known.error.message);
      if (name.endsWith(".completed")) left.delete(known.image_index);
      yield { ...known, name: name.slice(name.indexOf(".") + 1) };
    }
  } catch (error) {
    throw error instanceof Refused || error.name === "AbortError" ? error : new Unreachable();
  }
  if (left.size) throw new Unreachable();
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
    message = JSON.parse(text).error.message;
  } catch {
    // a proxy's page
  }
  const wait = response.headers.get("Retry-After");
  throw new Refused(response.status === 429 && wait ? `${message} (in about ${wait} s)` : message);
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
  for (const [name, value] of Object.entries(fields)) body.append(name, value);
  body.append("image", source.image, "image.png");
  if (source.mask) body.append("mask", source.mask, "mask.png");
  return { method: "POST", body };
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
