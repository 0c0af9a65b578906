// The OpenAPI document as a page, with a form to try each operation. No other host is asked.

import { base, byId, config, element, host, local } from "./settings.js";

byId("fal-run").textContent = `FAL_RUN_HOST=${host}`;
byId("fal-queue").textContent = `FAL_QUEUE_RUN_HOST=${host}/queue`;
byId("openai").textContent = `openai.OpenAI(base_url="${base}/v1")`;
byId("bentoml").textContent = `bentoml.SyncHTTPClient("${base}")`;

const text = (tag, content, className = "") => element(tag, { textContent: content, className });

function resolve(document, schema) {
  if (!schema?.$ref) return schema ?? {};
  return schema.$ref.slice(2).split("/").reduce((at, part) => at[part], document);
}

function typeOf(document, schema) {
  const arms = schema.anyOf ?? schema.oneOf ?? (schema.allOf?.length === 1 ? schema.allOf : null);
  if (arms) return arms.map((arm) => typeOf(document, arm)).join(" or ");
  const plain = resolve(document, schema);
  if (plain.enum) return plain.enum.map((value) => JSON.stringify(value)).join(" | ");
  if (plain.type === "array") return `list of ${typeOf(document, plain.items ?? {})}`;
  if (plain.type === "object" && plain.properties) return `{${Object.keys(plain.properties).join(", ")}}`;
  return (plain.type ?? "any") + (schema.nullable ? " or null" : "");
}

function bounds(schema) {
  const [low, high] = [schema.minimum, schema.maximum];
  const parts = [];
  if (low !== undefined || high !== undefined) parts.push(`${low ?? "…"} to ${high ?? "…"}`);
  if (schema.maxLength) parts.push(`at most ${schema.maxLength} characters`);
  if (schema.default !== undefined) parts.push(`default ${JSON.stringify(schema.default)}`);
  return parts.join(", ");
}

function fields(document, schema) {
  const plain = resolve(document, schema);
  const table = element("table", {}, element("thead", {}, element("tr", {}, ...["Field", "Type", "Meaning"].map((name) => element("th", { textContent: name, scope: "col" })))));
  const body = element("tbody");
  for (const [name, field] of Object.entries(plain.properties ?? {})) {
    const required = plain.required?.includes(name);
    const meaning = [field.description ?? resolve(document, field).description ?? "", bounds(field)].filter(Boolean).join(" — ");
    body.append(element("tr", {},
      element("td", {}, text("code", name), required ? text("small", " required") : ""),
      element("td", {}, text("small", typeOf(document, field))),
      text("td", meaning)));
  }
  table.append(body);
  return element("div", { className: "scroll", tabIndex: 0, attributes: { role: "region", "aria-label": "Fields" } }, table);
}

function example(document, schema) {
  const plain = resolve(document, schema);
  const made = {};
  for (const [name, field] of Object.entries(plain.properties ?? {})) {
    if (plain.required?.includes(name)) made[name] = "a red circle on a blue background";
  }
  if (plain.properties?.image_size) made.image_size = "square_hd";
  return JSON.stringify(made, null, 2);
}

function tryOut(document, method, path, operation) {
  const schema = operation.requestBody?.content?.["application/json"]?.schema;
  const box = element("div", { className: "try" });
  const id = `try-${operation.operationId}`;
  const parameters = (operation.parameters ?? []).map((parameter) => {
    const input = element("input", { type: "text", placeholder: parameter.description ?? "" });
    box.append(element("label", {}, `${parameter.name} `, input));
    return [parameter.name, input];
  });
  let area = null;
  if (schema) {
    area = element("textarea", { id, rows: 6, value: example(document, schema), spellcheck: false });
    box.append(element("label", { htmlFor: id, textContent: "Body" }), area);
  }
  const out = element("pre", { hidden: true, tabIndex: 0, attributes: { "aria-live": "polite" } });
  const send = element("button", { type: "button", textContent: "Send" });
  send.addEventListener("click", async () => {
    send.disabled = true;
    out.hidden = false;
    out.textContent = "…";
    const key = local.get("key");
    const address = parameters.reduce((at, [name, input]) => at.replace(`{${name}}`, encodeURIComponent(input.value)), `${base}${path}`);
    try {
      const answer = await fetch(address, {
        method: method.toUpperCase(),
        headers: { ...(area ? { "content-type": "application/json" } : {}), ...(key ? { authorization: `Key ${key}` } : {}) },
        body: area ? area.value : undefined,
      });
      const kind = answer.headers.get("content-type") ?? "";
      const shown = kind.includes("json") || kind.startsWith("text/") ? await answer.text() : `${kind}, ${(await answer.blob()).size} bytes`;
      out.textContent = `${answer.status} ${answer.statusText}\n\n${kind.includes("json") ? pretty(shown) : shown}`;
    } catch (error) {
      out.textContent = `No answer: ${error.message}`;
    } finally {
      send.disabled = false;
    }
  });
  box.append(element("div", { className: "actions" }, send), out);
  return box;
}

// Only layout: parsing would round seeds above 2**53.
function pretty(json) {
  return json.replaceAll(/("(?:[^"\\]|\\.)*")|([{[])|([}\]])|(,)/g, (all, string, open, close, comma) => string ?? (comma ? ",\n" : open ? `${open}\n` : `\n${close}`));
}

function operationCard(document, method, path, operation) {
  const card = element("details", { className: "operation", id: operation.operationId },
    element("summary", {}, text("span", method.toUpperCase(), "method"), text("code", path), text("span", operation.summary ?? "", "note")));
  if (operation.description) card.append(text("p", operation.description));
  const schema = operation.requestBody?.content?.["application/json"]?.schema;
  if (schema) card.append(text("h3", "Request"), fields(document, schema));
  const good = resolve(document, operation.responses["200"]);
  const answer = good?.content?.["application/json"]?.schema;
  if (answer?.$ref) card.append(text("h3", "Answer"), fields(document, answer));
  const errors = Object.entries(operation.responses).filter(([status]) => status >= "400");
  if (errors.length) {
    const rows = errors.map(([status, response]) => element("tr", {}, element("td", {}, text("code", status)), text("td", resolve(document, response).description)));
    card.append(text("h3", "Errors"), element("table", {}, element("tbody", {}, ...rows)));
  }
  card.append(text("h3", "Try it"), tryOut(document, method, path, operation));
  return card;
}

const contents = [["#start", "Start"], ["#clients", "Other services' clients"]];

async function load() {
  const document_ = await (await fetch("openapi.json")).json();
  const into = byId("operations");
  into.replaceChildren();
  for (const tag of document_.tags ?? []) {
    into.append(element("h2", { id: `tag-${tag.name}`, textContent: tag.name[0].toUpperCase() + tag.name.slice(1) }));
    if (tag.description) into.append(text("p", tag.description, "note"));
    contents.push([`#tag-${tag.name}`, tag.name[0].toUpperCase() + tag.name.slice(1)]);
    for (const [path, methods] of Object.entries(document_.paths)) {
      for (const [method, operation] of Object.entries(methods)) {
        if (!operation.tags?.includes(tag.name)) continue;
        into.append(operationCard(document_, method, path, operation));
        contents.push([`#${operation.operationId}`, `${method.toUpperCase()} ${path}`]);
      }
    }
  }
  byId("toc").append(...contents.map(([href, label]) => element("a", { href, textContent: label })));
}

function openTarget() {
  const target = location.hash && document.getElementById(location.hash.slice(1));
  if (target?.tagName === "DETAILS") target.open = true;
}
window.addEventListener("hashchange", openTarget);
load().then(openTarget, () => { byId("operations").textContent = `The document could not be read from ${base}, version ${config.version}.`; });
