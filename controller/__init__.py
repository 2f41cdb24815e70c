"""The rollout controller. ARCHITECTURE.md says where things are."""
