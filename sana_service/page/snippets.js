// The present settings as a program: one function per language.

import { toJson } from "./api.js";
import { base, config, host, local } from "./settings.js";

const quote = (text) => `'${text.replaceAll("'", "'\\''")}'`;
const route = (model) => (model === "sprint" ? "/sprint" : "/generate");
const app = (model) => `${config.app}${model === "sprint" ? "/sprint" : ""}`;
const keyed = () => Boolean(local.get("key"));

function python(value, indent) {
  return toJson(value, indent).replaceAll(/: (true|false|null)(?=,?$)/gm, (_, word) => `: ${{ true: "True", false: "False", null: "None" }[word]}`);
}

function curl(model, request) {
  const lines = [`curl -sS ${base}${route(model)}`, `  -H 'content-type: application/json'`];
  if (keyed()) lines.push(`  -H "authorization: Key $SANA_KEY"`);
  lines.push(`  -d ${quote(toJson(request))}`);
  return lines.join(" \\\n");
}

function viaHttpx(model, request) {
  const headers = keyed() ? `\n    headers={"authorization": f"Key {os.environ['SANA_KEY']}"},` : "";
  return `${keyed() ? "import os\n\n" : ""}import httpx

answer = httpx.post(
    "${base}${route(model)}",${headers}
    json=${python(request, 4).replaceAll("\n", "\n    ")},
    timeout=300,
)
answer.raise_for_status()
image = answer.json()["images"][0]
with open(image["file_name"], "wb") as file:
    file.write(httpx.get(image["url"]).content)
print(image["file_name"])
`;
}

function viaFal(model, request) {
  return `# pip install fal-client==1.0.3; fal's client speaks https alone, so put TLS in front of the service
import os

os.environ["FAL_RUN_HOST"] = "${host}"
os.environ["FAL_QUEUE_RUN_HOST"] = "${host}/queue"
os.environ.setdefault("FAL_KEY", ${keyed() ? "os.environ[\"SANA_KEY\"]" : "\"none\""})

import fal_client

output = fal_client.subscribe(
    "${app(model)}",
    arguments=${python(request, 4).replaceAll("\n", "\n    ")},
    with_logs=True,
    on_queue_update=print,
)
print(output["images"][0]["url"])
`;
}

function viaLocust(model, request) {
  const headers = keyed() ? `, headers={"authorization": f"Key {os.environ['SANA_KEY']}"}` : "";
  return `# locust -f this_file.py --host ${base} --headless --users 4 --run-time 1m
${keyed() ? "import os\n\n" : ""}from locust import HttpUser, constant, task

REQUEST = ${python(request, 4)}


class Artist(HttpUser):
    wait_time = constant(0)

    @task
    def draw(self):
        self.client.post("${route(model)}", json=REQUEST${headers})
`;
}

export const LANGUAGES = { curl, Python: viaHttpx, fal: viaFal, Locust: viaLocust };
