// The queue, as fal's clients speak it: submit, follow, result, cancel. No path leaves this host.

import { base, config, local } from "./settings.js";

export class ApiError extends Error {
  constructor(status, detail, requestId, retryAfter) {
    super(typeof detail === "string" ? detail : "Some settings cannot be used.");
    this.status = status;
    this.faults = Array.isArray(detail) ? detail : [];
    this.requestId = requestId;
    this.retryAfter = retryAfter;
  }
}

function headers(more = {}) {
  const key = local.get("key");
  return key ? { ...more, authorization: `Key ${key}` } : more;
}

async function send(path, options = {}) {
  let answer;
  try {
    answer = await fetch(`${base}${path}`, { ...options, headers: headers(options.headers), cache: "no-store" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError(0, "The service does not answer. Is it still running?", null, null);
  }
  if (answer.ok) return answer;
  let detail = answer.statusText || `Status ${answer.status}`;
  try { detail = (await answer.json()).detail ?? detail; } catch { /* keep the status */ }
  throw new ApiError(answer.status, detail, answer.headers.get("x-request-id"), answer.headers.get("retry-after"));
}

const requests = (id) => `/queue/${config.app}/requests/${id}`;

// A seed above 2**53 is no number of JavaScript's: it goes into the JSON by hand.
export function toJson(request, indent) {
  const text = JSON.stringify({ ...request, seed: request.seed === undefined ? undefined : "__SEED__" }, null, indent);
  return text.replace(/"seed":( ?)"__SEED__"/, `"seed":$1${request.seed}`);
}

export async function submit(model, request) {
  const path = `/queue/${config.app}${model === "sprint" ? "/sprint" : ""}`;
  const answer = await send(path, {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: toJson(request),
  });
  return (await answer.json()).request_id;
}

// Calls onStatus at each change until the job is done; survives a server that restarts.
export async function follow(id, onStatus, signal) {
  let failures = 0;
  for (;;) {
    try {
      const answer = await send(`${requests(id)}/status/stream`, { signal });
      const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
      let rest = "";
      for (;;) {
        const { value, done } = await reader.read();
        if (done) break;
        failures = 0;
        const events = (rest + value).split("\n\n");
        rest = events.pop();
        for (const event of events) {
          const data = event.split("\n").find((line) => line.startsWith("data: "));
          if (!data) continue;
          const status = JSON.parse(data.slice(6));
          onStatus(status);
          if (status.status === "COMPLETED") return;
        }
      }
    } catch (error) {
      if (signal.aborted) throw error;
      if (error instanceof ApiError && error.status >= 400 && error.status < 500) throw error;
      failures += 1;
      if (failures > 30) throw error;
    }
    await new Promise((resolve) => setTimeout(resolve, 500));
  }
}

export async function result(id) {
  const answer = await send(requests(id));
  const text = await answer.text();
  const output = JSON.parse(text);
  // as digits, for the same reason as above
  output.seed = /"seed":\s*(\d+)/.exec(text.slice(text.lastIndexOf('"seed"')))?.[1] ?? String(output.seed);
  return output;
}

export async function cancel(id) {
  try { await send(`${requests(id)}/cancel`, { method: "PUT" }); } catch { /* it ended by itself */ }
}

export async function picture(fileName) {
  return (await send(`/files/${fileName}`)).blob();
}
