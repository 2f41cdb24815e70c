"""The HTTP surface: reads views, decides nothing."""
