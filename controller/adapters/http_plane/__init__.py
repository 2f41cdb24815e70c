"""Any flag system that is told a percentage over HTTP, as a template words it."""
