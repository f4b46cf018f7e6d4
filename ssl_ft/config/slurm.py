"""What a Slurm job asks for: the section `slurm` of the settings of pretrain.

The job itself is made in `build/cluster.py`.
"""

from typing import Annotated, Self

from pydantic import BeforeValidator, Field, field_validator, model_validator

from ssl_ft.config.base import Count, Settings, several


class SlurmSettings(Settings):
    nodes: Count = Field(1, description="nodes; any setting of slurm sends the stage off as a Slurm job")
    gpus: int = Field(8, ge=0, description="GPUs a node, a rank on each; 0 for ranks on CPUs")
    ranks: Count | None = Field(None, description="with gpus=0: ranks a node; none: 1")
    cpus: Count = Field(8, description="cores a rank")
    memory_gb: Count | None = Field(None, description="memory a node; none: the partition's own rule")
    hours: float = Field(24.0, gt=0, description="length of a turn; the job takes turns until training is done")
    partition: str | None = Field(None, description="partition of the cluster; none: its default")
    account: str | None = Field(None, description="account the time is booked on; none: your default")
    options: Annotated[tuple[str, ...], BeforeValidator(several)] = Field(
        (), description="further options of sbatch, such as --qos=low"
    )
    setup: str | None = Field(None, description="shell command before the ranks start, such as 'module load cuda'")
    warn_seconds: Count = Field(120, description="how long before a turn's end the ranks are told to save")
    restarts: int = Field(3, ge=0, description="times a turn starts all ranks again after one died")
    turns: Count = Field(100, description="most turns")

    @property
    def ranks_per_node(self) -> int:
        """One on each GPU, or as many as asked for on CPUs."""
        return self.gpus or self.ranks or 1

    @field_validator("partition", "account")
    @classmethod
    def _is_a_word(cls, text: str | None) -> str | None:
        if text is not None and (not text or set(text) & set(" \t\n#'\"")):
            raise ValueError("must be one word, as Slurm has it")
        return text

    @field_validator("options")
    @classmethod
    def _are_options(cls, words: tuple[str, ...]) -> tuple[str, ...]:
        if not all(word.startswith("--") and "\n" not in word for word in words):
            raise ValueError("must be options of sbatch in full, each beginning with --")
        return words

    @model_validator(mode="after")
    def _fit_together(self) -> Self:
        problems = []
        if self.gpus and self.ranks is not None:
            problems.append(f"ranks={self.ranks} with gpus={self.gpus}: each GPU has one rank; leave ranks out")
        if self.warn_seconds >= self.hours * 3600:
            problems.append(f"warn_seconds={self.warn_seconds} leaves nothing of hours={self.hours:g} to train in")
        if problems:
            raise ValueError("\n".join(problems))
        return self
