"""Clip art: pictures of 64x64 from public packages, a given encoder with a frozen text tower, prompts in no caption."""
