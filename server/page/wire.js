/* SPDX-License-Identifier: Apache-2.0
 *
 * What the API sends, as bytes and text: JSON, pictures, event streams. Knows nothing of the page. */

export const STREAMS_MAX = 4; // of all tabs: a browser opens six connections to a server, and the rest needs some
const EVENT_CHARACTERS_MAX = 4 << 20; // of a line
const EVENT_LINES_MAX = 64;

/* Seeds go up to 2^63-1, beyond what a JavaScript number holds: long ones become text. Inside a JSON string the quotes
 * would be escaped, so nothing else can match. */
export function parseJson(text) {
  return JSON.parse(text.replace(/"seed":(\d{16,})/g, '"seed":"$1"'));
}

/* An <img> or a poster cannot send the key, and of all schemes the page's policy lets pictures be data: only. */
export function dataUrl(blob) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(blob);
  });
}

export const isPicture = (url) => typeof url === "string" && /^data:image\/(webp|jpeg|png);base64,[A-Za-z0-9+/]+=*$/.test(url);

export function sleep(ms, signal) {
  return new Promise((resolve) => {
    const timer = setTimeout(resolve, ms);
    signal.addEventListener("abort", () => (clearTimeout(timer), resolve()), { once: true });
  });
}

export const randomKey = () => [...crypto.getRandomValues(new Uint8Array(16))].map((byte) => byte.toString(16)).join("-");

/* Runs `read` in one of the places that all tabs share; false when they are taken, as when the stream broke. */
export async function inSlot(read) {
  if (!navigator.locks) return read();
  for (let slot = 0; slot < STREAMS_MAX; slot++) {
    const run = (lock) => (lock ? read() : null);
    const ended = await navigator.locks.request(`kinora-stream-${slot}`, { ifAvailable: true }, run);
    if (ended !== null) return ended;
  }
  return false;
}

/* The event stream format (WHATWG HTML, 9.2.6): fields in lines, an empty line ends an event. */
export async function* eventsOf(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  let event = { id: "", data: [] };
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      const lines = (rest + value).split(/\r?\n/);
      rest = lines.pop();
      for (const line of lines) {
        if (line === "") {
          if (event.data.length > 0) yield { id: event.id, data: event.data.join("\n") };
          event = { id: "", data: [] };
        } else if (line.startsWith("data:")) {
          event.data.push(line.slice(line[5] === " " ? 6 : 5));
        } else if (line.startsWith("id:")) {
          event.id = line.slice(3).trim();
        }
      }
      if (rest.length > EVENT_CHARACTERS_MAX || event.data.length > EVENT_LINES_MAX) throw new Error("an event without end");
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}
