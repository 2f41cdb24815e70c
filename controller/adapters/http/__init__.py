"""What adapters that call over HTTP share: how a server is checked, and when it is called again."""
