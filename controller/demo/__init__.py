"""The demo: a broker, a store, apps and a stand-in advisor around the daemon.

Which knows nothing of it.
"""
