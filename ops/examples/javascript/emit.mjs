// Reports one request of each user that is named: `node emit.mjs user-1 user-2`.
//
// KAFKA (default 127.0.0.1:9094) is where rolloutd's Kafka is, TOPIC_PREFIX its topic prefix. A
// user whose name ends in "-failed" had an error.

import { Telemetry } from "./telemetry.mjs";

const bootstrap = process.env.KAFKA || "127.0.0.1:9094";
const telemetry = new Telemetry(bootstrap, "/example-javascript", process.env.TOPIC_PREFIX);
const named = process.argv.slice(2);
for (const user of named.length > 0 ? named : ["user-42"]) {
  const served = { flag: "new-checkout", variant: "on" }; // what your OpenFeature client said
  telemetry.evaluated(user, served);
  const errorType = user.endsWith("-failed") ? "500" : undefined;
  telemetry.ended(user, 0.183, { errorType, served: [served] });
}
await telemetry.close(10_000);
const { queued, sent, dropped, lost } = telemetry.counts;
console.log(`${queued} queued, ${sent} sent, ${dropped} dropped, ${lost} lost`);
if (sent !== queued) {
  console.error(`not all of them reached Kafka at ${bootstrap}`);
  console.error(
    "next: let KAFKA=HOST:PORT name a Kafka that runs: 127.0.0.1:9092 after `make up`, " +
      "127.0.0.1:9094 with Docker Compose; rolloutd makes the topics when it starts",
  );
  process.exitCode = 1;
}
process.exit(); // a client that still tries to connect would keep the process
