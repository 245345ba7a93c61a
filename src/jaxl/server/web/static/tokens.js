// <jaxl-tokens>: how long the prompt is, as the model reads it.

import { make } from "./dom.js";
import { countTokens } from "./client.js";

// Milliseconds without a key pressed
const PAUSE = 400;

class Tokens extends HTMLElement {
  connectedCallback() {
    if (this.line) return;
    this.line = make("p", { className: "jaxl-tokens" });
    this.problem = make("p", { role: "status", className: "jaxl-alert", hidden: true });
    this.append(this.line, this.problem);
    document.addEventListener("jaxl:form", ({ detail }) => this.read(detail.prompt ?? "", detail.prompt_syntax));
  }

  read(text, syntax) {
    if (text === this.text && syntax === this.syntax) return;
    this.text = text;
    this.syntax = syntax;
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.count(text, syntax), text ? PAUSE : 0);
  }

  async count(text, syntax) {
    let known = null;
    try {
      if (text) known = await countTokens(text, syntax);
    } catch {
      // the answer to the request itself says what is wrong
    }
    if (text !== this.text || syntax !== this.syntax) return;
    const parts = known?.chunks > 1 ? `, in ${known.chunks} parts: what stands in one is less sure of what stands in another` : "";
    this.line.textContent = known ? `${known.tokens} of ${known.limit} tokens${parts}` : "";
    this.problem.textContent = known?.error ?? "";
    this.problem.hidden = !known?.error;
  }
}

customElements.define("jaxl-tokens", Tokens);
