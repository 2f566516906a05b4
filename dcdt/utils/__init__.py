"""Files, errors, redaction, text and YAML: what knows nothing of the field."""
