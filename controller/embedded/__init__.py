"""The demo: a broker, a store, apps and a stand-in advisor around the daemon, which knows nothing of it."""
