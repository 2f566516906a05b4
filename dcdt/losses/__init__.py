"""Training losses, one class per file, registered by name in `config.py`.

To add one: its class in a file (a subclass of `base.Loss`), its schema and a line in `config.py`, its values in
`conf/loss/NAME.yaml`. From outside the package: docs/extending.md.
"""
