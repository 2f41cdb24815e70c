// Evaluates a flag with OpenFeature's OFREP clients: `node clients.mjs server|web URL FLAG`, run
// beside its node_modules.
// server: a line of JSON on standard input is a list of targeting keys; the answer is a line with
// the evaluation of each.
// web: one user, who gets changes only by the event stream; each value is a line.
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
      const answer = await client.getBooleanDetails(flag, false, { targetingKey });
      const { value, variant, reason, errorCode, flagMetadata } = answer;
      return { value, variant, reason, errorCode, flagMetadata };
    };
    const keys = JSON.parse(line);
    const details = [];
    // A hundred at a time: an app has no more open requests, and a server no more connections for
    // one client.
    while (details.length < keys.length) {
      const some = keys.slice(details.length, details.length + 100);
      details.push(...(await Promise.all(some.map(evaluate))));
    }
    say(details);
  }
} else {
  globalThis.EventSource = installed("eventsource").EventSource;
  const { OpenFeature, ProviderEvents } = installed("@openfeature/web-sdk");
  const { OFREPWebProvider } = installed("@openfeature/ofrep-web-provider");
  await OpenFeature.setContext({ targetingKey: "user-1" });
  const sayValue = () => say(OpenFeature.getClient().getBooleanValue(flag, false));
  OpenFeature.addHandler(ProviderEvents.ConfigurationChanged, sayValue);
  const settings = { changeDetection: "sse", pollInterval: 0, cacheMode: "disabled" };
  const provider = new OFREPWebProvider({ baseUrl, ...settings });
  await OpenFeature.setProviderAndWait(provider);
  sayValue();
  process.stdin.on("end", () => process.exit(0)).resume();
}
