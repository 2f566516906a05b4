"""Compose a configuration from conf/ without a command line."""

from collections.abc import Sequence

from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from dcdt.config.paths import config_folder
from dcdt.config.resolvers import register_resolvers


def compose_config(overrides: Sequence[str]) -> DictConfig:
    """Compose conf/config.yaml with overrides, as `python -m dcdt.run` does."""
    register_resolvers()
    with initialize_config_dir(str(config_folder()), version_base="1.3"):
        return compose("config", overrides=list(overrides))
