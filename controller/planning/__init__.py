"""What would a plan do? The real state machine and the real engine in virtual time, on drawn or on recorded events."""
