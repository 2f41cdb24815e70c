"""The rollout controller. Where things live is in CONTRIBUTING.md."""
