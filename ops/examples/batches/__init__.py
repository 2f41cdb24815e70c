"""A Prefect flow whose new transform rolloutd rolls out: see README.md."""
