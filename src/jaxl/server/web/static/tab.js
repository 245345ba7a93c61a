// This tab of the browser: it is the same one after a reload.

/** What nobody guesses. */
export function token() {
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}

export const tab = sessionStorage.getItem("jaxl-tab") ?? token();
sessionStorage.setItem("jaxl-tab", tab);
