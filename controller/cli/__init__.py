"""The two commands: `rolloutd`, the daemon, and `rolloutctl`, the operator's tool."""
