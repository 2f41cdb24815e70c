"""What is said of rollouts to people, in one place for terminal, page and HTTP API."""
