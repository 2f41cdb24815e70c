// Evaluates a flag with OpenFeature's OFREP clients: `node clients.mjs KIND URL FLAG`, run
// beside its node_modules. KIND:
// server: a line of JSON on standard input is a list of targeting keys; the answer is a line with
// the evaluation of each.
// cached: the same with the example's LastKnownProvider around the client's.
// web: one user, who gets changes only by the event stream; each value is a line.
// pages: as server, with a web client for each user that polls; each is made at its first use.
import { createInterface } from "node:readline";
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";
import { LastKnownProvider } from "../../ops/examples/last-known-provider.mjs";

const [, , kind, baseUrl, flag] = process.argv;
const installed = createRequire(pathToFileURL(process.cwd() + "/"));
const say = (value) => console.log(JSON.stringify(value));

if (kind === "pages") {
  const { OpenFeature } = installed("@openfeature/web-sdk");
  const { OFREPWebProvider } = installed("@openfeature/ofrep-web-provider");
  const open = new Set();
  for await (const line of createInterface({ input: process.stdin })) {
    const users = JSON.parse(line);
    for (const targetingKey of users.filter((user) => !open.has(user))) {
      open.add(targetingKey);
      await OpenFeature.setContext(targetingKey, { targetingKey });
      const settings = { changeDetection: "polling", pollInterval: 1000, cacheMode: "disabled" };
      const provider = new OFREPWebProvider({ baseUrl, ...settings });
      await OpenFeature.setProviderAndWait(targetingKey, provider).catch(() => {});
    }
    const evaluate = (user) => OpenFeature.getClient(user).getBooleanDetails(flag, false);
    say(users.map(evaluate).map(({ value, variant, reason }) => ({ value, variant, reason })));
  }
} else if (kind === "server" || kind === "cached") {
  const { OpenFeature } = installed("@openfeature/server-sdk");
  const { OFREPProvider } = installed("@openfeature/ofrep-provider");
  const ofrep = new OFREPProvider({ baseUrl });
  const provider = kind === "cached" ? new LastKnownProvider(ofrep) : ofrep;
  await OpenFeature.setProviderAndWait(provider);
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
