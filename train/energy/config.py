"""What the energy ledger must be told. Meanings, units and defaults stand in ``configs/train.yaml``."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class FactorConfig:
    """An emission factor of electricity that was given, not looked up."""

    kg_co2e_per_kwh: float | None = None
    year: int | None = None
    source: str | None = None

    def problems(self, key: str) -> list[str]:
        """Everything wrong with the values of ``key``, one line each."""
        if self.kg_co2e_per_kwh is None:
            return []
        found = []
        if not 0 <= self.kg_co2e_per_kwh < float("inf"):
            found.append(f"{key}.kg_co2e_per_kwh={self.kg_co2e_per_kwh}: must be 0 or more")
        if self.year is None or not self.source:
            found.append(f"{key}.kg_co2e_per_kwh={self.kg_co2e_per_kwh}: a factor needs {key}.year=... and "
                         f"{key}.source=..., who says so")  # fmt: skip
        return found


@dataclass
class EnergyConfig:
    """What the energy ledger must be told about the place it runs at. Changes nothing of what is computed."""

    country: str | None = None
    grid: FactorConfig = field(default_factory=FactorConfig)
    market: FactorConfig = field(default_factory=FactorConfig)
    pue: float | None = None
    pue_source: str | None = None
    gpu_watts: float | None = None
    thread_watts: float = 3.5

    def problems(self) -> list[str]:
        """Everything wrong with the values, one line each."""
        from train.energy.grid import country_factors

        found = [*self.grid.problems("energy.grid"), *self.market.problems("energy.market")]
        if self.country is not None and self.country not in country_factors():
            found.append(f"energy.country={self.country}: one of {', '.join(country_factors())}; for another one give "
                         "energy.grid.kg_co2e_per_kwh, energy.grid.year and energy.grid.source")  # fmt: skip
        if self.pue is not None and not 1 <= self.pue < float("inf"):
            found.append(f"energy.pue={self.pue}: what a site draws for each unit its machines draw, 1 or more")
        if self.gpu_watts is not None and not 0 < self.gpu_watts < float("inf"):
            found.append(f"energy.gpu_watts={self.gpu_watts}: must be above 0")
        if not 0 <= self.thread_watts < float("inf"):
            found.append(f"energy.thread_watts={self.thread_watts}: must be 0 or more")
        return found
