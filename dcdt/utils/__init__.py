"""Files, errors, redaction, text and YAML: independent of the field."""
