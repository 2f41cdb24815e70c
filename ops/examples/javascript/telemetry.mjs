// What an app reports to rolloutd, without making a request wait. Copy this file.
//
// Events go into a bounded queue and are sent in batches. While Kafka is away or slow, what does
// not fit is dropped and counted. Requests notice nothing.

import { randomUUID } from "node:crypto";
import { Kafka, Partitioners, logLevel } from "kafkajs";

const EVALUATIONS = "flag.evaluations";
const OUTCOMES = "request.outcomes";
const TYPES = {
  [EVALUATIONS]: "io.rolloutd.evaluation.v1",
  [OUTCOMES]: "io.rolloutd.outcome.v1",
};
const CAPACITY = 10_000; // events wait at most: about 5 MB
const MOST_AT_ONCE = 500;
const LINGER_MS = 20;
const RETRY_MS = 1_000;

export class Telemetry {
  /** What became of the events so far. Put it on your metrics; watch `dropped` and `lost`. */
  counts = { queued: 0, sent: 0, dropped: 0, lost: 0 };
  #queue = [];
  #isClosing = false;
  #sending;

  /**
   * `source` names the app, such as /checkout-api; `prefix` is rolloutd's kafka.topic_prefix. Kafka
   * need not be there yet.
   */
  constructor(bootstrap, source, prefix = "") {
    this.source = source;
    this.prefix = prefix;
    const kafka = new Kafka({ brokers: bootstrap.split(","), logLevel: logLevel.NOTHING });
    // Murmur2, as Java's: a user's evaluations and outcomes must meet in one partition.
    const createPartitioner = Partitioners.DefaultPartitioner;
    this.producer = kafka.producer({ createPartitioner });
    this.#sending = this.#sendAll();
  }

  /** Reports that a user was served a variant: `served` is `{flag, variant}`. */
  evaluated(contextId, served) {
    this.#emit(EVALUATIONS, contextId, attributes(served));
  }

  /**
   * Reports how a request ended; without `errorType` it succeeded. Without `served`, a list,
   * rolloutd joins the request to what its user was served last.
   */
  ended(contextId, seconds, { errorType, served } = {}) {
    const data = { "http.server.request.duration": seconds };
    if (errorType) data["error.type"] = errorType;
    if (served) data["rolloutd.flags"] = served.map(attributes);
    this.#emit(OUTCOMES, contextId, data);
  }

  /** Sends what is queued, for at most so long. */
  async close(ms = 2_000) {
    this.#isClosing = true;
    let timer;
    const late = new Promise((resolve) => (timer = setTimeout(resolve, ms)));
    await Promise.race([this.#sending, late]);
    clearTimeout(timer);
    this.counts.lost += this.#queue.splice(0).length;
    await this.producer.disconnect();
  }

  #emit(topic, contextId, data) {
    if (this.#queue.length >= CAPACITY) {
      this.counts.dropped += 1;
      return;
    }
    const event = {
      specversion: "1.0",
      type: TYPES[topic],
      source: this.source,
      id: randomUUID(),
      time: new Date().toISOString(),
      data: { "feature_flag.context.id": contextId, ...data },
    };
    const headers = { "content-type": "application/cloudevents+json; charset=UTF-8" };
    this.#queue.push({ topic, message: { key: contextId, value: JSON.stringify(event), headers } });
    this.counts.queued += 1;
  }

  async #sendAll() {
    let isConnected = false;
    while (!this.#isClosing || this.#queue.length > 0) {
      const batch = this.#queue.slice(0, MOST_AT_ONCE);
      if (batch.length === 0) {
        await pause(LINGER_MS);
        continue;
      }
      try {
        if (!isConnected) await this.producer.connect();
        isConnected = true;
        await this.producer.sendBatch({ topicMessages: this.#byTopic(batch) });
        this.#queue.splice(0, batch.length);
        this.counts.sent += batch.length;
      } catch (error) {
        if (error.retriable === false && isConnected) {
          this.#queue.splice(0, batch.length); // Kafka refuses these, and would again
          this.counts.lost += batch.length;
        }
        await pause(RETRY_MS); // what comes meanwhile waits in the queue, as far as it fits
      }
    }
  }

  #byTopic(batch) {
    return [EVALUATIONS, OUTCOMES]
      .map((topic) => ({
        topic: this.prefix + topic,
        messages: batch.filter((one) => one.topic === topic).map((one) => one.message),
      }))
      .filter(({ messages }) => messages.length > 0);
  }
}

function attributes({ flag, variant }) {
  return { "feature_flag.key": flag, "feature_flag.result.variant": variant };
}

// Not unref'd: the process ends when everything is sent, and close() was called.
function pause(ms) {
  return new Promise((resolve) => setTimeout(resolve, ms));
}
