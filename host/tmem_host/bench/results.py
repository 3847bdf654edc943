# SPDX-License-Identifier: Apache-2.0
"""The results format `tmem-results/1`: what every bench leaves in `DIR/results.json`.

One file holds one run: the properties of host, guest and configuration once, then one record per arm and metric with
all its raw samples, then what failed and why. Statistics are never stored: they are computed from the samples by
whoever reads them (`stats`). The committed JSON Schema (`results.schema.json` beside this file) is generated from the
models below: `python -m tmem_host.bench.results > host/tmem_host/bench/results.schema.json`.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections import Counter
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError, model_validator

from tmem_host.errors import TmemError

SCHEMA_NAME = "tmem-results/1"
RESULTS_FILE = "results.json"
SCHEMA_FILE = "results.schema.json"

Scalar = str | bool | int | FiniteFloat
"""What a dimension may be."""
Property = Scalar | None | list[Scalar] | dict[str, Scalar | None]
"""What a property may be: a scalar, a flat list, or one level of names."""


class ResultsError(TmemError):
    """A results file is missing, unreadable or not of this format."""


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", populate_by_name=True)


class Properties(_Model):
    """What was the same for all records of the run."""

    host: dict[str, Property] = Field(default_factory=dict, description="Machine, kernel, versions, accelerator.")
    guest: dict[str, Property] = Field(
        default_factory=dict, description="Guest kernel, memory, vCPUs; empty without a guest."
    )
    configuration: dict[str, Property] = Field(
        default_factory=dict, description="Options of the bench as they were used."
    )


class Record(_Model):
    """All samples of one metric of one arm."""

    bench: str = Field(min_length=1, description="Name of the bench: swap, store, channel, ...")
    metric: str = Field(
        pattern=r"^[a-z][a-z0-9_]*$", description="What was measured; the unit is not part of the name."
    )
    unit: str = Field(
        description="ns, s, bytes, pages, pages/s, ratio, ...; SI base form, no prefix unless named here."
    )
    dimensions: dict[str, Scalar] = Field(
        description="What tells this record from others of the same metric; `arm` is the name of what is compared."
    )
    samples: list[FiniteFloat] = Field(min_length=1, description="Raw samples in the order they were taken.")
    round_sizes: list[Annotated[int, Field(gt=0)]] = Field(
        default_factory=list,
        description="Samples of each round, in order; their sum is the number of samples. Samples of one round are "
        "not independent of each other, so intervals are made by resampling rounds first. Empty: all are independent.",
    )
    better: Literal["lower", "higher"] | None = Field(
        default=None, description="Direction that is an improvement, if any."
    )

    @model_validator(mode="after")
    def _rounds_add_up(self) -> Self:
        if self.round_sizes and sum(self.round_sizes) != len(self.samples):
            raise ValueError("round_sizes do not add up to the number of samples")
        return self

    @property
    def arm(self) -> str:
        """Name of what is compared; empty when the record belongs to no arm."""
        return str(self.dimensions.get("arm", ""))


class Failure(_Model):
    """An arm (or a whole bench) that has no number, and why."""

    bench: str
    dimensions: dict[str, Scalar] = Field(default_factory=dict)
    kind: Literal["failed", "skipped"] = Field(
        default="failed", description="skipped: this machine cannot do it; failed: it should have worked."
    )
    reason: str = Field(min_length=1)


class Results(_Model):
    """One run of one bench."""

    schema_: Literal["tmem-results/1"] = Field(default="tmem-results/1", alias="schema")
    bench: str
    started: datetime = Field(description="ISO 8601 with zone.")
    seconds: FiniteFloat | None = Field(default=None, description="Wall-clock time of the run.")
    complete: bool = Field(
        default=False, description="False: interrupted or still running; records hold what was there."
    )
    command: list[str] = Field(description="argv that reproduces the run.")
    quick: bool = False
    seed: int = Field(description="Seed of arm order, synthetic pages and resampling.")
    arm_order: list[list[str]] = Field(
        default_factory=list, description="Names of the arms of each round, in the order run."
    )
    properties: Properties = Field(default_factory=Properties)
    records: list[Record] = Field(default_factory=list)
    failures: list[Failure] = Field(default_factory=list)
    notes: list[str] = Field(default_factory=list, description="Sentences a reader must see beside the figures.")

    def find(self, metric: str, **dimensions: Scalar) -> list[Record]:
        """Records of `metric` whose dimensions include all of `dimensions`, in file order."""
        return [
            r
            for r in self.records
            if r.metric == metric and all(r.dimensions.get(k) == v for k, v in dimensions.items())
        ]

    def arms(self) -> list[str]:
        """Arm names in the order they first appear; records without an arm and the harness's own are left out."""
        seen = dict.fromkeys(r.arm for r in self.records)
        return [a for a in seen if a not in ("", "harness")]

    @property
    def rounds(self) -> int:
        """Rounds of the arm that took part in most: a bench in parts has rounds of its own in each."""
        return max(Counter(arm for order in self.arm_order for arm in set(order)).values(), default=0)

    def write(self, folder: Path) -> Path:
        """Writes `folder/results.json` so that a reader sees the old file or the new one, never half of one."""
        text = json.dumps(self.model_dump(mode="json", by_alias=True), indent=None, separators=(",", ":"))
        return write_atomic(folder / RESULTS_FILE, pretty_records(text))

    @classmethod
    def read(cls, path: Path) -> Results:
        """Reads a results file, or the one in a folder. Raises ResultsError with what to do."""
        file = path / RESULTS_FILE if path.is_dir() else path
        try:
            data: Any = json.loads(file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise ResultsError(f"no results at {file}", "give the folder that a bench wrote with --out") from None
        except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
            raise ResultsError(f"cannot read {file}: {error}", "run the bench again") from error
        found = data.get("schema") if isinstance(data, Mapping) else None
        if found != SCHEMA_NAME:
            raise ResultsError(
                f"{file} has schema {found!r}, not {SCHEMA_NAME!r}", "use the tmem version that wrote it"
            )
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            raise ResultsError(f"{file} is not valid at {where}: {first['msg']}", "run the bench again") from error


def pretty_records(compact: str) -> str:
    """Breaks a compact results JSON so that each record is one line: diffs and `grep` work, samples stay dense."""
    data = json.loads(compact)
    lines = ["{"]
    for position, (key, value) in enumerate(data.items()):
        comma = "," if position < len(data) - 1 else ""
        if isinstance(value, list) and value and isinstance(value[0], (dict, list)):
            rows = ",\n  ".join(json.dumps(v, separators=(",", ":")) for v in value)
            lines.append(f" {json.dumps(key)}: [\n  {rows}\n ]{comma}")
        else:
            lines.append(f" {json.dumps(key)}: {json.dumps(value)}{comma}")
    return "\n".join([*lines, "}", ""])


def write_atomic(path: Path, text: str) -> Path:
    """Writes `text` to a temporary file in the same folder, syncs it, and renames it over `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        Path(name).chmod(0o644)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    return path


def json_schema() -> str:
    """The JSON Schema of the format, as committed."""
    schema = Results.model_json_schema(by_alias=True)
    schema["$id"] = SCHEMA_NAME
    return json.dumps(schema, indent=1, sort_keys=True) + "\n"


if __name__ == "__main__":
    print(json_schema(), end="")
