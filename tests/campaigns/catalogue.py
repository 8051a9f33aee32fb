"""All campaigns, in the order in which they run."""

from __future__ import annotations

from campaigns.base import Campaign

CAMPAIGNS: tuple[Campaign, ...] = ()
