"""Typed, strict settings of every stage. Reading them from recipes and the command line is in `recipe.py`.

Only `build/` and the stages see these classes; below, plain arguments. Each field's description is its line in
`ssl-ft STAGE --help`.
"""

from ssl_ft.config.adapt import AdaptSettings
from ssl_ft.config.compare import AdviseSettings, CompareSettings
from ssl_ft.config.compress import CompressSettings
from ssl_ft.config.distill import DistillSettings
from ssl_ft.config.export import ExportSettings
from ssl_ft.config.features import EmbedSettings, NeighborsSettings, SuggestSettings
from ssl_ft.config.looking import BenchSettings, Check, DoctorSettings, IndexSettings, ReportSettings
from ssl_ft.config.parts import AlsoSettings, DataSettings, EncoderSettings, OptimSettings, SourceSettings, ViewSettings
from ssl_ft.config.pretrain import ContrastSettings, JointSettings, MaskedSettings, PretrainSettings
from ssl_ft.config.prune import PruneSettings
from ssl_ft.config.quantize import QuantizeSettings
from ssl_ft.config.selftrain import SelftrainSettings
from ssl_ft.config.shift import ShiftSettings
from ssl_ft.config.strategies import (
    AdapterSettings,
    DistanceSettings,
    GradualSettings,
    HeadSettings,
    L2SPSettings,
    LayerDecaySettings,
    LowRankSettings,
    PartialSettings,
)
from ssl_ft.config.transfer import FinetuneSettings, PredictSettings, ProbeSettings, RunSettings
from ssl_ft.config.tune import RangeSettings, TuneSettings

__all__ = [
    "AdaptSettings",
    "AdapterSettings",
    "AdviseSettings",
    "AlsoSettings",
    "BenchSettings",
    "Check",
    "CompareSettings",
    "CompressSettings",
    "ContrastSettings",
    "DataSettings",
    "DistanceSettings",
    "DistillSettings",
    "DoctorSettings",
    "EmbedSettings",
    "EncoderSettings",
    "ExportSettings",
    "FinetuneSettings",
    "GradualSettings",
    "HeadSettings",
    "IndexSettings",
    "JointSettings",
    "L2SPSettings",
    "LayerDecaySettings",
    "LowRankSettings",
    "MaskedSettings",
    "NeighborsSettings",
    "OptimSettings",
    "PartialSettings",
    "PredictSettings",
    "PretrainSettings",
    "ProbeSettings",
    "PruneSettings",
    "QuantizeSettings",
    "RangeSettings",
    "ReportSettings",
    "RunSettings",
    "SelftrainSettings",
    "ShiftSettings",
    "SourceSettings",
    "SuggestSettings",
    "TuneSettings",
    "ViewSettings",
]
