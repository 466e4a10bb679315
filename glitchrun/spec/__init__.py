"""Text to Spec: loading with positions, composition, overrides, schema, located errors."""
