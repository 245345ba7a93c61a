"""The HTTP server: OpenAI's, A1111's and Hugging Face's APIs around one engine. Nothing here imports jax."""
