"""The client: any OpenAI-compatible server from Python, and the conversation in a terminal. No torch."""
