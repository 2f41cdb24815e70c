// Tries the example's LastKnownProvider for Node.js around a provider that does what it is told.
import assert from "node:assert";
import { LastKnownProvider } from "../../ops/examples/last-known-provider.mjs";

let seconds = 0;
let mode = "works";
let asked = 0;

const failure = (code) => Object.assign(new Error(code), { code });
const server = {
  metadata: { name: "server" },
  async resolveBooleanEvaluation() {
    asked += 1;
    if (mode === "works") return { value: true, variant: "on", reason: "SPLIT" };
    if (mode === "details") return { value: false, errorCode: "GENERAL" };
    throw failure(mode === "gone" ? "FLAG_NOT_FOUND" : "GENERAL");
  },
};
const options = { now: () => 1_000 * seconds, capacity: 2 };
const provider = new LastKnownProvider(server, options);
const ask = (targetingKey) => provider.resolveBooleanEvaluation("flag", false, { targetingKey });

// The last answer is given again; whoever was never seen gets the error.
await ask("ann");
mode = "away";
assert.deepEqual(await ask("ann"), { value: true, variant: "on", reason: "STALE" });
await assert.rejects(ask("bob"));
assert.equal(asked, 2, "a server that fails is asked once a second");
seconds = 2;
mode = "details";
assert.equal((await ask("ann")).value, true);
assert.equal(asked, 3);

// What the server says is never replaced.
seconds = 4;
mode = "gone";
await assert.rejects(ask("ann"));
mode = "away";
await assert.rejects(ask("ann"));

// Memory and age are bounded: the least recently used answer goes first.
seconds = 9;
mode = "works";
for (const user of ["ann", "bob", "ann", "cy"]) await ask(user);
mode = "away";
await ask("ann");
await ask("cy");
await assert.rejects(ask("bob"));
seconds = 9 + 86_401;
await assert.rejects(ask("ann"));
assert.equal(provider.metadata.name, "last known of server");
