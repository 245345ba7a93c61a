"""Adapters: files that change a checkpoint's layers, which people call LoRA whatever their kind."""
