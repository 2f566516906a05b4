"""Typed schema of the whole configuration: names, types and limits. The values live in conf/.

Every option of a group names a schema here by its `name`; what a configuration says beyond its schema is an error.
No schema holds a class path: models, losses and samplers are looked up by name, so a stranger's run is data.
"""

from dcdt.config.hydra import check_choices, job_name, read_overrides, register_resolvers
from dcdt.config.inputs import EmbedderConfig, EmbedJob, LocalEmbedderConfig, MultilingualEmbedderConfig, SplitConfig
from dcdt.config.models import (
    BM25_VARIANTS,
    BM25Config,
    CollaborativeConfig,
    DCDTConfig,
    DCDTResidualConfig,
    HistoryConfig,
    HybridConfig,
    JointTwoStageConfig,
    ModelConfig,
    RidgeConfig,
    SingleTowerConfig,
    TwoStageConfig,
    ZeroShotConfig,
    reads,
)
from dcdt.config.openai import OpenAIEmbedderConfig
from dcdt.config.options import as_text, flatten, model_option, model_presets
from dcdt.config.paths import cache_home, cache_root, config_folder, demo_collection, outputs_root
from dcdt.config.reading import typed
from dcdt.config.reporting import LoggerConfig
from dcdt.config.schema import SCHEMAS, SINGLE, Settings, parse, take_embed_job
from dcdt.config.training import (
    CatalogueSamplerConfig,
    ContrastiveConfig,
    DynamicHardSamplerConfig,
    HardSamplerConfig,
    InBatchSamplerConfig,
    InfoNCEConfig,
    MarginMSEConfig,
    MixedSamplerConfig,
    OptimizerConfig,
    RandomSamplerConfig,
    TrainerConfig,
    TripletConfig,
    WindowSamplerConfig,
)

__all__ = [
    "BM25_VARIANTS",
    "SCHEMAS",
    "SINGLE",
    "BM25Config",
    "CatalogueSamplerConfig",
    "CollaborativeConfig",
    "ContrastiveConfig",
    "DCDTConfig",
    "DCDTResidualConfig",
    "DynamicHardSamplerConfig",
    "EmbedJob",
    "EmbedderConfig",
    "HardSamplerConfig",
    "HistoryConfig",
    "HybridConfig",
    "InBatchSamplerConfig",
    "InfoNCEConfig",
    "JointTwoStageConfig",
    "LocalEmbedderConfig",
    "LoggerConfig",
    "MarginMSEConfig",
    "MixedSamplerConfig",
    "ModelConfig",
    "MultilingualEmbedderConfig",
    "OpenAIEmbedderConfig",
    "OptimizerConfig",
    "RandomSamplerConfig",
    "RidgeConfig",
    "Settings",
    "SingleTowerConfig",
    "SplitConfig",
    "TrainerConfig",
    "TripletConfig",
    "TwoStageConfig",
    "WindowSamplerConfig",
    "ZeroShotConfig",
    "as_text",
    "cache_home",
    "cache_root",
    "check_choices",
    "config_folder",
    "demo_collection",
    "flatten",
    "job_name",
    "model_option",
    "model_presets",
    "outputs_root",
    "parse",
    "read_overrides",
    "reads",
    "register_resolvers",
    "take_embed_job",
    "typed",
]
