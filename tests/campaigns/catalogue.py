"""All campaigns, in the order in which they run."""

from __future__ import annotations

from campaigns.base import Campaign
from campaigns.too_small import TooSmall
from campaigns.verdicts import Verdicts

CAMPAIGNS: tuple[Campaign, ...] = (
    TooSmall(),
    Verdicts(),
)
