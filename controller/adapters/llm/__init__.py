"""Language models that are asked for advice: LocalAI and all that speak its dialect, and Ollama."""
