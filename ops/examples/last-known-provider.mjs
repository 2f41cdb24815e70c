// An OpenFeature provider for Node.js that keeps each user's variant while the flag server is away.
// Copy it. What it does, and why, is in last_known_provider.py, its twin for Python.
//
//   const ofrep = new OFREPProvider({ baseUrl: "http://rolloutd:8080", timeoutMs: 1000 });
//   await OpenFeature.setProviderAndWait(new LastKnownProvider(ofrep));
//
// Needs @openfeature/server-sdk 1; nothing of rolloutd.

// These are answers of a server that works: nothing is given in their place.
const ANSWERS = new Set([
  "FLAG_NOT_FOUND",
  "INVALID_CONTEXT",
  "TARGETING_KEY_MISSING",
  "TYPE_MISMATCH",
]);

export class LastKnownProvider {
  runsOn = "server";
  #provider;
  #options;
  #kept = new Map(); // the least recently used first
  #failedAt = null;

  // `capacity` answers are kept at most. None is given again after `keepMs`. After a failure the
  // provider is asked once in `retryMs`: other evaluations do not wait for a server that hangs.
  constructor(provider, options = {}) {
    this.#provider = provider;
    const defaults = { capacity: 100_000, keepMs: 86_400_000, retryMs: 1_000, now: Date.now };
    this.#options = { ...defaults, ...options };
  }

  get metadata() {
    return { name: `last known of ${this.#provider.metadata.name}` };
  }

  get hooks() {
    return this.#provider.hooks;
  }

  get events() {
    return this.#provider.events;
  }

  async initialize(context) {
    await this.#provider.initialize?.(context);
  }

  async onClose() {
    await this.#provider.onClose?.();
  }

  resolveBooleanEvaluation(...args) {
    return this.#resolve("resolveBooleanEvaluation", args);
  }

  resolveStringEvaluation(...args) {
    return this.#resolve("resolveStringEvaluation", args);
  }

  resolveNumberEvaluation(...args) {
    return this.#resolve("resolveNumberEvaluation", args);
  }

  resolveObjectEvaluation(...args) {
    return this.#resolve("resolveObjectEvaluation", args);
  }

  async #resolve(method, args) {
    const [flagKey, , context] = args;
    const key = JSON.stringify([method, flagKey, Object.entries(context ?? {}).sort()]);
    if (!this.#mayAsk()) {
      return this.#last(key, new Error("the flag server did not answer a moment ago"));
    }
    let details;
    try {
      details = await this.#provider[method](...args);
    } catch (error) {
      if (ANSWERS.has(error.code)) {
        this.#noteAnswer(key, null);
        throw error;
      }
      return this.#fail(key, error);
    }
    if (details.errorCode && !ANSWERS.has(details.errorCode)) {
      return this.#fail(key, new Error(details.errorMessage ?? "the provider failed"));
    }
    this.#noteAnswer(key, details);
    return details;
  }

  #mayAsk() {
    const now = this.#options.now();
    if (this.#failedAt === null) return true;
    if (now - this.#failedAt < this.#options.retryMs) return false;
    this.#failedAt = now; // this evaluation asks; the others wait for its outcome
    return true;
  }

  #noteAnswer(key, details) {
    this.#failedAt = null;
    this.#kept.delete(key);
    if (details === null || details.errorCode) return;
    this.#kept.set(key, { details, at: this.#options.now() });
    if (this.#kept.size > this.#options.capacity) {
      this.#kept.delete(this.#kept.keys().next().value);
    }
  }

  #fail(key, error) {
    this.#failedAt = this.#options.now();
    return this.#last(key, error);
  }

  #last(key, error) {
    const kept = this.#kept.get(key);
    if (!kept || this.#options.now() - kept.at > this.#options.keepMs) throw error;
    this.#kept.delete(key);
    this.#kept.set(key, kept); // used now
    return { ...kept.details, reason: "STALE" };
  }
}
