"""Any flag system that takes a percentage over HTTP, by calls that a template describes."""
