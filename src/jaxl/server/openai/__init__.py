"""OpenAI's APIs: images, chats and responses."""
