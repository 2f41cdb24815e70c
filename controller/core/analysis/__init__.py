"""The sequential tests behind the gate: one file per question, arithmetic only, nothing about plans or people."""
