"""The configuration: composed from conf/, checked against schemas that lie beside what they configure.

Every option of a group names its schema here by its `name`; what a configuration says beyond its schema is an error.
No schema holds a class path: models, losses and samplers are looked up by name, so a stranger's run is data.
"""

from dcdt.config.command_line import check_choices
from dcdt.config.job_names import job_name, relevant_overrides
from dcdt.config.options import as_text, flatten, model_option, model_presets
from dcdt.config.paths import cache_home, cache_root, config_folder, demo_collection, outputs_root
from dcdt.config.registry import depends_on, search_space
from dcdt.config.resolvers import register_resolvers
from dcdt.config.settings import Named, Settings, parse, vector_fields
from dcdt.config.validation import schema, validate

__all__ = [
    "Named",
    "Settings",
    "as_text",
    "cache_home",
    "cache_root",
    "check_choices",
    "config_folder",
    "demo_collection",
    "depends_on",
    "flatten",
    "job_name",
    "model_option",
    "model_presets",
    "outputs_root",
    "parse",
    "register_resolvers",
    "relevant_overrides",
    "schema",
    "search_space",
    "validate",
    "vector_fields",
]
