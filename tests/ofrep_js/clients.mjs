// Evaluates a flag with OpenFeature's OFREP clients: `node clients.mjs server|web URL FLAG`, run beside its node_modules.
// server: a line of JSON on standard input is a list of targeting keys; the answer is a line with the evaluation of each.
// web: one user, told of changes by the event stream alone; each value is a line.
import { createInterface } from "node:readline";
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";

const [, , kind, baseUrl, flag] = process.argv;
const installed = createRequire(pathToFileURL(process.cwd() + "/"));
const say = (value) => console.log(JSON.stringify(value));

if (kind === "server") {
  const { OpenFeature } = installed("@openfeature/server-sdk");
  const { OFREPProvider } = installed("@openfeature/ofrep-provider");
  await OpenFeature.setProviderAndWait(new OFREPProvider({ baseUrl }));
  const client = OpenFeature.getClient();
  for await (const line of createInterface({ input: process.stdin })) {
    const evaluate = async (targetingKey) => {
      const { value, variant, reason, errorCode, flagMetadata } = await client.getBooleanDetails(flag, false, { targetingKey });
      return { value, variant, reason, errorCode, flagMetadata };
    };
    const keys = JSON.parse(line);
    const details = [];
    // A hundred at a time: an app has no more requests under way, and a server no more connections for one client.
    while (details.length < keys.length) {
      details.push(...(await Promise.all(keys.slice(details.length, details.length + 100).map(evaluate))));
    }
    say(details);
  }
} else {
  globalThis.EventSource = installed("eventsource").EventSource;
  const { OpenFeature, ProviderEvents } = installed("@openfeature/web-sdk");
  const { OFREPWebProvider } = installed("@openfeature/ofrep-web-provider");
  await OpenFeature.setContext({ targetingKey: "user-1" });
  OpenFeature.addHandler(ProviderEvents.ConfigurationChanged, () => say(OpenFeature.getClient().getBooleanValue(flag, false)));
  const provider = new OFREPWebProvider({ baseUrl, changeDetection: "sse", pollInterval: 0, cacheMode: "disabled" });
  await OpenFeature.setProviderAndWait(provider);
  say(OpenFeature.getClient().getBooleanValue(flag, false));
  process.stdin.on("end", () => process.exit(0)).resume();
}
