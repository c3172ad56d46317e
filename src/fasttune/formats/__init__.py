"""Prompt formats as data: rows, declarations, and what follows from them."""
