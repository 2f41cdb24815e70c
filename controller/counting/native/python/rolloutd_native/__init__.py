"""The native fold of rolloutd, `_native`. rolloutd finds it; nothing else reads it."""
