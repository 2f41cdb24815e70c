"""The demo: broker, store and synthetic apps in one process tree."""

"""The demo: a broker, a store, apps and a stand-in advisor around the daemon, which knows nothing of it."""
