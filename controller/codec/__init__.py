"""Values of the core to documents and back: JSON of our records, stored totals, formats of other systems."""
