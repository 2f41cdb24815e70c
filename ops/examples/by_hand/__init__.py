"""The commands of ops/examples/README.md for curl and kcat, as they stand there."""
