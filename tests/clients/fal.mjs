// @fal-ai/client, unchanged: a request middleware sends its two hosts to the service under test.
import { createFalClient, ApiError } from "@fal-ai/client";

const host = process.env.FAL_TEST_HOST;
const fal = createFalClient({
  credentials: "test-key",
  requestMiddleware: async (request) => ({
    ...request,
    url: request.url.replace("https://queue.fal.run/", `https://${host}/queue/`).replace("https://fal.run/", `https://${host}/`),
  }),
});

const input = { prompt: "a red circle", image_size: "square", seed: 7, num_inference_steps: 3 };
const answer = {};
answer.ran = await fal.run("fal-ai/sana", { input });

const told = [];
const subscribed = await fal.subscribe("fal-ai/sana", { input, logs: true, pollInterval: 50, onQueueUpdate: (at) => told.push(at.status) });
answer.subscribed = subscribed;
answer.told = told;

const streamed = [];
let logs = [];
const byStream = await fal.subscribe("fal-ai/sana/sprint", {
  input: { prompt: "a", image_size: "square" },
  mode: "streaming",
  logs: true,
  onQueueUpdate: (at) => { streamed.push(at.status); logs = at.logs ?? logs; },
});
answer.streamed = streamed;
answer.logs = logs.map((line) => line.message);
answer.byStream = byStream;

const { request_id: requestId } = await fal.queue.submit("fal-ai/sana", {
  input: { ...input, num_inference_steps: 50, num_images: 4 },
  priority: "low",
  storageSettings: { expiresIn: "immediate" },
});
await fal.queue.cancel("fal-ai/sana", { requestId });
await fal.queue.subscribeToStatus("fal-ai/sana", { requestId, pollInterval: 50 });
answer.failures = [];
const attempt = async (call) => {
  try {
    await call();
    answer.failures.push(null);
  } catch (error) {
    answer.failures.push(error instanceof ApiError ? [error.name, error.status] : String(error));
  }
};
await attempt(() => fal.queue.result("fal-ai/sana", { requestId }));
await attempt(() => fal.run("fal-ai/sana", { input: { prompt: "a", seed: -1 } }));
await attempt(() => fal.subscribe("fal-ai/sana", { input: { prompt: "a", seed: -1 }, pollInterval: 50 }));
await attempt(() => fal.queue.submit("fal-ai/flux", { input }));
await attempt(() => fal.queue.submit("fal-ai/sana", { input, storageSettings: { expiresIn: "1y" } }));
console.log(JSON.stringify(answer));
