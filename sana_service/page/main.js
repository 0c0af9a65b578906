// The page: draws by the queue, keeps what was drawn, reads it back.

import * as api from "./api.js";
import * as form from "./form.js";
import * as gallery from "./gallery.js";
import { readSettings } from "./metadata.js";
import { byId, config, element, local, session, sizeOf, toast } from "./settings.js";
import { LANGUAGES } from "./snippets.js";
import * as stage from "./stage.js";

let running = null; // {id, abort}
let shown = [];
let coded = null; // what the code dialog is about

form.build();
byId("version").textContent = `sana-service ${config.version}`;
for (const idea of config.ideas) {
  const button = element("button", { type: "button", textContent: idea });
  button.addEventListener("click", () => { byId("prompt").value = idea; draw(); });
  byId("ideas").append(element("li", {}, button));
}

// drawing

async function draw() {
  if (running || !form.check()) return;
  const job = { model: form.model(), request: form.request(), id: null };
  await work(job, async () => { job.id = await api.submit(job.model, job.request); });
}

async function work(job, begin) {
  running = { job, abort: new AbortController() };
  busy(true);
  stage.working(sizeOf(job.request.image_size));
  try {
    await begin();
    session.set("job", JSON.stringify(job));
    if (running.cancelled) await api.cancel(job.id);
    await api.follow(job.id, stage.progress, running.abort.signal);
    await finish(job, await api.result(job.id));
  } catch (error) {
    explain(error);
  } finally {
    session.set("job", null);
    running = null;
    busy(false);
  }
}

async function finish(job, output) {
  const entries = [];
  for (const [i, image] of output.images.entries()) {
    const blob = await api.picture(image.file_name);
    const { num_images: _, ...asked } = job.request;
    const settings = {
      ...asked, model: job.model, seed: (BigInt(output.seed) + BigInt(i)) % 2n ** 64n + "",
      width: image.width, height: image.height, image_size: { width: image.width, height: image.height },
    };
    const entry = { blob, name: image.file_name, settings, flagged: output.has_nsfw_concepts[i], timings: output.timings, made: Date.now() };
    entry.id = await gallery.add(entry);
    entries.push(entry);
  }
  form.usedSeed(output.seed);
  present(entries);
  await list();
}

function busy(on) {
  byId("generate").disabled = on;
  byId("generate").setAttribute("aria-busy", String(on));
}

function cancel() {
  if (!running) return;
  running.cancelled = true;
  if (running.job.id) api.cancel(running.job.id);
  byId("stage-name").textContent = "Cancelling";
}

const TITLES = {
  0: "No answer", 401: "An API key is needed", 404: "It is gone", 422: "Some settings cannot be used",
  429: "The queue is full", 499: "Cancelled", 503: "Not available at the moment", 504: "It took too long",
};

function explain(error) {
  if (!(error instanceof api.ApiError)) {
    stage.failed("Something went wrong on this page", String(error), null, true);
    return;
  }
  if (error.status === 499) {
    stage.idle(shown.length > 0);
    toast("Cancelled.");
    return;
  }
  let text = error.message;
  if (error.faults.length) {
    form.show(error.faults.map((fault) => [fault.loc[1], fault.msg]));
    text = error.faults.map((fault) => `${fault.loc.slice(1).join(".") || "request"}: ${fault.msg}`).join("\n");
  }
  if (error.status === 429 && error.retryAfter) text += ` Room is expected in ${error.retryAfter} s.`;
  stage.failed(TITLES[error.status] ?? "The picture could not be drawn", text, error.requestId, error.status !== 422);
  if (error.status === 401) askForKey("This service asks for an API key. It is kept in this browser and sent to this service alone.");
}

// what was drawn

const ACTIONS = [
  ["Use settings", (entry) => { form.applyPicture(entry.settings); toast("The settings are in the form."); byId("prompt").focus(); }],
  ["Details", stage.details],
  ["Code", (entry) => openCode(entry.settings.model, codeRequest(entry))],
  ["Delete", remove],
];

function present(entries) {
  for (const entry of shown) URL.revokeObjectURL(entry.url);
  shown = entries.map((entry) => ({ ...entry, url: URL.createObjectURL(entry.blob) }));
  if (shown.length) stage.pictures(shown, ACTIONS);
  else stage.idle(false);
  mark();
}

async function remove(entry) {
  await gallery.remove(entry.id);
  await list();
  const rest = shown.filter((other) => other.id !== entry.id);
  present(rest.length ? rest : (await gallery.all()).slice(0, 1));
}

let thumbnails = [];

async function list() {
  const kept = await gallery.all();
  thumbnails.forEach((url) => URL.revokeObjectURL(url));
  thumbnails = [];
  byId("gallery").hidden = kept.length === 0;
  byId("pictures").replaceChildren(...kept.map((entry) => {
    const url = URL.createObjectURL(entry.blob);
    thumbnails.push(url);
    const button = element("button", { type: "button" }, element("img", { src: url, alt: entry.settings.prompt || "without a prompt", loading: "lazy" }));
    button.dataset.id = entry.id;
    button.addEventListener("click", () => { if (!running) { present([entry]); byId("view").scrollIntoView({ block: "nearest" }); } });
    return element("li", {}, button);
  }));
  mark();
}

function mark() {
  const ids = new Set(shown.map((entry) => String(entry.id)));
  for (const button of byId("pictures").querySelectorAll("button")) button.setAttribute("aria-current", String(ids.has(button.dataset.id)));
}

byId("clear").addEventListener("click", async () => {
  if (!window.confirm("Delete all pictures that this browser keeps?")) return;
  await gallery.clear();
  await list();
  if (!running) present([]);
});

// code

function codeRequest(entry) {
  const { model: _m, width: _w, height: _h, ...request } = entry.settings;
  return request;
}

function openCode(model, request) {
  coded = { model, request };
  showCode(local.get("language") ?? "curl");
  byId("code-dialog").showModal();
}

function showCode(language) {
  const chosen = LANGUAGES[language] ? language : "curl";
  for (const tab of byId("tabs").children) {
    tab.setAttribute("aria-selected", String(tab.textContent === chosen));
    tab.tabIndex = tab.textContent === chosen ? 0 : -1;
  }
  byId("code").textContent = LANGUAGES[chosen](coded.model, coded.request);
  local.set("language", chosen);
}

for (const name of Object.keys(LANGUAGES)) {
  const tab = element("button", { type: "button", textContent: name, attributes: { role: "tab", "aria-controls": "code" } });
  tab.addEventListener("click", () => showCode(name));
  byId("tabs").append(tab);
}
byId("tabs").addEventListener("keydown", (event) => {
  const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
  if (!step) return;
  const tabs = [...byId("tabs").children];
  const next = tabs[(tabs.indexOf(document.activeElement) + step + tabs.length) % tabs.length];
  next.focus();
  showCode(next.textContent);
});
byId("code-open").addEventListener("click", () => openCode(form.model(), form.request()));
byId("copy").addEventListener("click", async () => {
  try {
    await navigator.clipboard.writeText(byId("code").textContent);
    toast("Copied.");
  } catch {
    window.getSelection().selectAllChildren(byId("code")); // plain http on another machine has no clipboard
    toast("Selected: copy it with Ctrl C.");
  }
});

// settings from a file

async function take(file) {
  const settings = file && (await readSettings(file));
  if (!settings) {
    toast("That file holds no settings of this service.");
    return;
  }
  form.applyPicture({ ...settings, image_size: { width: settings.width, height: settings.height } });
  toast("The settings are in the form.");
}

let depth = 0;
const carriesFile = (event) => event.dataTransfer?.types.includes("Files");
window.addEventListener("dragenter", (event) => { if (carriesFile(event)) { depth += 1; byId("drop").hidden = false; } });
window.addEventListener("dragleave", () => { depth = Math.max(0, depth - 1); byId("drop").hidden = depth === 0; });
window.addEventListener("dragover", (event) => { if (carriesFile(event)) event.preventDefault(); });
window.addEventListener("drop", (event) => {
  if (!carriesFile(event)) return;
  event.preventDefault();
  depth = 0;
  byId("drop").hidden = true;
  take(event.dataTransfer.files[0]);
});
byId("read-file").addEventListener("click", () => byId("file").click());
byId("file").addEventListener("change", () => { take(byId("file").files[0]); byId("file").value = ""; });

// key and colours

function askForKey(why) {
  if (why) byId("key-why").textContent = why;
  byId("key").value = local.get("key") ?? "";
  byId("key-dialog").showModal();
}
byId("key-open").addEventListener("click", () => askForKey());
byId("key-dialog").addEventListener("close", () => {
  const choice = byId("key-dialog").returnValue;
  if (choice === "save") local.set("key", byId("key").value.trim() || null);
  if (choice === "forget") local.set("key", null);
  byId("key-dialog").returnValue = "";
});
byId("key").addEventListener("keydown", (event) => {
  if (event.key === "Enter") { event.preventDefault(); byId("key-dialog").close("save"); }
});

const THEMES = { auto: "as the system has them", light: "light", dark: "dark" };
function theme(name) {
  if (name === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = name;
  byId("theme").setAttribute("aria-label", `Colours: ${THEMES[name]}`);
  byId("theme").title = `Colours: ${THEMES[name]}`;
  local.set("theme", name);
}
theme(THEMES[local.get("theme")] ? local.get("theme") : "auto");
byId("theme").addEventListener("click", () => {
  const names = Object.keys(THEMES);
  theme(names[(names.indexOf(local.get("theme")) + 1) % names.length]);
});

// keyboard

byId("form").addEventListener("submit", (event) => { event.preventDefault(); draw(); });
byId("cancel").addEventListener("click", cancel);
byId("retry").addEventListener("click", draw);
document.addEventListener("keydown", (event) => {
  if (document.querySelector("dialog[open]")) return;
  const typing = event.target.matches("textarea, select, input:not([type=radio], [type=checkbox], [type=range])");
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) { event.preventDefault(); draw(); }
  else if (event.key === "Escape") cancel();
  else if (!typing && !event.ctrlKey && !event.metaKey && event.key === "/") { event.preventDefault(); byId("prompt").focus(); }
  else if (!typing && !event.ctrlKey && !event.metaKey && event.key === "r") form.roll();
});

// what was begun before a reload goes on

const begun = session.get("job");
list().then(() => {
  if (begun) {
    const job = JSON.parse(begun);
    work(job, async () => {});
  }
});
