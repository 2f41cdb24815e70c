"""Language models that give advice: servers with the OpenAI dialect (LocalAI, vLLM), and Ollama."""
