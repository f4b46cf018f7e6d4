"""Typed, strict settings of every stage. Reading them from recipes and the command line is in `recipe.py`.

Only `build/` and the stages see these classes; below, plain arguments. Each field's description is its line in
`ssl-ft STAGE --help`.
"""

from ssl_ft.config.features import EmbedSettings, NeighborsSettings, SuggestSettings
from ssl_ft.config.looking import BenchSettings, Check, DoctorSettings, IndexSettings, ReportSettings
from ssl_ft.config.parts import DataSettings, EncoderSettings, OptimSettings, ViewSettings
from ssl_ft.config.pretrain import ContrastSettings, JointSettings, MaskedSettings, PretrainSettings
from ssl_ft.config.transfer import FinetuneSettings, PredictSettings, ProbeSettings, RunSettings

__all__ = [
    "BenchSettings",
    "Check",
    "ContrastSettings",
    "DataSettings",
    "DoctorSettings",
    "EmbedSettings",
    "EncoderSettings",
    "FinetuneSettings",
    "IndexSettings",
    "JointSettings",
    "MaskedSettings",
    "NeighborsSettings",
    "OptimSettings",
    "PredictSettings",
    "PretrainSettings",
    "ProbeSettings",
    "ReportSettings",
    "RunSettings",
    "SuggestSettings",
    "ViewSettings",
]
