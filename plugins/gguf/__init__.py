"""GGUF files: the exporter, what writes them, and llama.cpp to read them back."""
