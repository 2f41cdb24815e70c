"""A FastAPI service whose new checkout rolloutd rolls out: see README.md."""
