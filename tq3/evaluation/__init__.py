"""How far a compressed model is from its source: measured on text, layer by layer."""
