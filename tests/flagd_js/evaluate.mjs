// Reads {document, cases: [[flag, context], ...]} from standard input and prints the variants that
// flagd's evaluator gives.
import { readFileSync } from "node:fs";
import { FlagdCore } from "@openfeature/flagd-core";

const { document, cases } = JSON.parse(readFileSync(0, "utf-8"));
const silent = { error() {}, warn() {}, info() {}, debug() {} };
const core = new FlagdCore(undefined, silent);
core.setConfigurations(JSON.stringify(document));
const variants = cases.map(([flag, context]) => {
  const found = core.resolveBooleanEvaluation(flag, false, context, silent);
  return found.variant ?? `error: ${found.errorMessage}`;
});
process.stdout.write(JSON.stringify(variants));
