"""What a kilowatt-hour emits, and who says so."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import yaml

from common.configuration import CONFIGS

if TYPE_CHECKING:
    from train.energy.config import EnergyConfig, FactorConfig


@dataclass(frozen=True)
class GridFactor:
    """An emission factor of electricity.

    Attributes:
        kg_co2e_per_kwh: kilograms of CO2 equivalent a kilowatt-hour; ``year``: the one that it speaks of.
        country: two letters (ISO 3166-1), where it is a country's average.
    """

    kg_co2e_per_kwh: float
    year: int
    source: str
    country: str | None = None


@cache
def country_factors() -> Mapping[str, GridFactor]:
    """{country: average of its grid}, of ``configs/energy/grid.yaml``."""
    held: dict[str, Any] = yaml.safe_load((CONFIGS / "energy/grid.yaml").read_text(encoding="utf-8"))
    return {country: GridFactor(grams / 1000, held["year"], held["source"], country)
            for country, grams in held["g_co2e_per_kwh"].items()}  # fmt: skip


def location_based(config: EnergyConfig) -> GridFactor | None:
    """The factor of the grid: the one given, else the country's; None where neither is."""
    return _given(config.grid) or (country_factors()[config.country] if config.country else None)


def market_based(config: EnergyConfig) -> GridFactor | None:
    """The factor of the site's contracts, if it was given."""
    return _given(config.market)


def _given(factor: FactorConfig) -> GridFactor | None:
    if factor.kg_co2e_per_kwh is None:
        return None
    assert factor.year is not None
    assert factor.source is not None
    return GridFactor(factor.kg_co2e_per_kwh, factor.year, factor.source)
