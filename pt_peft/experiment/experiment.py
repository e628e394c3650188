"""One run, completely: `experiment.json`."""

import hashlib
import json
from pathlib import Path
from typing import Self

from pydantic import model_validator

from pt_peft import schema
from pt_peft.experiment.fields import ExperimentFields
from pt_peft.experiment.preprocessing import Preprocessing, preprocessing_of
from pt_peft.experiment.rules import RULES, broken
from pt_peft.experiment.sections import ModelSpec


class Experiment(ExperimentFields):
    """Everything a run depends on: the same experiment gives the same final adapter."""

    @model_validator(mode="after")
    def _keeps_the_rules(self) -> Self:
        if rule := broken(RULES, self):
            raise ValueError(rule.message(self))
        return self

    @classmethod
    def read(cls, path: str | Path) -> "Experiment":
        """Reads `experiment.json`. Raises UserError naming the field, the value seen and what would be right."""
        return schema.read(cls, path)

    @property
    def model(self) -> ModelSpec:
        """What its model follows from."""
        return ModelSpec(
            seed=self.seed, backbone=self.backbone, classes=self.data.classes, task=self.data.task, method=self.method
        )

    @property
    def preprocessing(self) -> Preprocessing:
        """How its images become the model's input."""
        return preprocessing_of(self.backbone, self.data)

    def to_json(self) -> str:
        """Indented JSON that `read` takes back, complete with defaults."""
        return json.dumps(self.model_dump(mode="json"), indent=2) + "\n"

    def digest(self) -> str:
        """SHA-256 of the canonical JSON: two experiments with equal digests are the same run."""
        canonical = json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()
