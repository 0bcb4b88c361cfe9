"""The teacher: any OpenAI-compatible server. The only room that imports `openai`."""
