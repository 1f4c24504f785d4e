"""Rendered scenes: does a sample obey the prompt? The answer is read from the pixels, not from an encoder."""
