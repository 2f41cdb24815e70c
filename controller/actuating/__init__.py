"""Makes every flag plane serve what was decided."""
