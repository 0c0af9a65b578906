// What stands where the picture will be: nothing yet, progress, an error, or the picture.

import { byId, element } from "./settings.js";

const parts = ["empty", "working", "error", "result"];
const NAMES = {
  queue: "Waiting for the device", text: "Reading the prompt", denoise: "Drawing", decode: "Decoding",
  safety: "Checking", resize: "Finishing",
};

function only(name) {
  for (const part of parts) byId(part).hidden = part !== name;
}

export function say(text) {
  byId("status").textContent = text;
}

let clock = null;

export function working([width, height]) {
  only("working");
  byId("view").scrollIntoView({ block: "nearest" });
  const frame = byId("frame");
  frame.style.aspectRatio = `${width} / ${height}`;
  frame.style.width = `min(100%, 420px, ${(46 * width) / height}vh)`;
  byId("progress").removeAttribute("value");
  byId("stage-name").textContent = "Sending";
  byId("stage-detail").textContent = "";
  const started = performance.now();
  clearInterval(clock);
  const tick = () => { byId("elapsed").textContent = `${((performance.now() - started) / 1000).toFixed(1)} s`; };
  tick();
  clock = setInterval(tick, 100);
  say("Drawing has begun.");
}

export function progress(status) {
  const bar = byId("progress");
  if (status.status === "IN_QUEUE") {
    const before = status.queue_position;
    byId("stage-name").textContent = "In the queue";
    byId("stage-detail").textContent = before === 0 ? "next in line" : `${before} before yours`;
    bar.removeAttribute("value");
    return;
  }
  if (status.status !== "IN_PROGRESS") return;
  const { stage, steps_done: done, steps } = status.progress;
  byId("stage-name").textContent = NAMES[stage] ?? stage;
  byId("stage-detail").textContent = stage === "denoise" ? `step ${done} of ${steps}` : "";
  if (stage === "queue" || !steps) bar.removeAttribute("value");
  else bar.value = 5 + (done / steps) * (stage === "denoise" || stage === "text" ? 80 : 85) + (stage === "resize" ? 8 : 0);
}

export function failed(title, text, requestId, retry) {
  clearInterval(clock);
  only("error");
  byId("error-title").textContent = title;
  byId("error-text").textContent = text;
  byId("error-id").textContent = requestId ? `request ${requestId}` : "";
  byId("retry").hidden = !retry;
  say("");
}

export function idle(hasPictures) {
  clearInterval(clock);
  only(hasPictures ? "result" : "empty");
  say("");
}

// pictures: [{blob, url, settings, flagged}]; actions: [[label, act]] for each
export function pictures(entries, actions) {
  clearInterval(clock);
  only("result");
  byId("result").replaceChildren(...entries.map((entry) => card(entry, actions)));
  say(entries.length === 1 ? "The picture is ready." : `${entries.length} pictures are ready.`);
}

function card(entry, actions) {
  const { settings } = entry;
  const image = element("img", { src: entry.url, alt: settings.prompt || "A picture without a prompt", width: settings.width, height: settings.height });
  const row = element("div", { className: "actions" });
  row.append(element("a", { className: "button", href: entry.url, download: entry.name, textContent: "Download" }));
  for (const [label, act] of actions) {
    const button = element("button", { type: "button", textContent: label });
    button.addEventListener("click", () => act(entry));
    row.append(button);
  }
  const made = element("article", { className: "card" }, image);
  if (entry.flagged) made.append(element("p", { className: "flag", textContent: "The safety model flagged this picture, so it is black." }));
  made.append(row);
  return made;
}

export function details(entry) {
  const { settings } = entry;
  const rows = {
    Prompt: settings.prompt,
    Avoid: settings.negative_prompt,
    Model: settings.model === "sprint" ? "Sprint" : "Sana",
    Style: settings.style_name,
    Size: `${settings.width} × ${settings.height}`,
    Steps: settings.num_inference_steps,
    Guidance: settings.guidance_scale,
    Seed: settings.seed,
    Format: settings.output_format?.toUpperCase(),
    File: entry.blob ? `${(entry.blob.size / 1024).toFixed(0)} KiB` : undefined,
    Drawn: new Date(entry.made).toLocaleString(),
    ...Object.fromEntries(Object.entries(entry.timings ?? {}).map(([stage, seconds]) => [`${stage} (s)`, seconds.toFixed(3)])),
  };
  const list = byId("details");
  list.replaceChildren();
  for (const [name, text] of Object.entries(rows)) {
    if (text !== undefined && text !== "") list.append(element("dt", { textContent: name }), element("dd", { textContent: text }));
  }
  byId("details-dialog").showModal();
}
