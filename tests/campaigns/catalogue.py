"""All campaigns, in the order in which they run."""

from __future__ import annotations

from campaigns.base import Campaign
from campaigns.damage import Damage
from campaigns.disk_calls import DiskCalls
from campaigns.fuzz import Fuzz
from campaigns.kills import Kills
from campaigns.power_cut import PowerCut
from campaigns.real_kills import RealKills
from campaigns.soak import SOAK
from campaigns.storage import Storage
from campaigns.strangers import Strangers
from campaigns.too_small import TooSmall
from campaigns.verdicts import Verdicts

CAMPAIGNS: tuple[Campaign, ...] = (
    Kills(),
    RealKills(),
    DiskCalls(),
    PowerCut(),
    Storage(),
    Damage(),
    Strangers(),
    TooSmall(),
    Verdicts(),
    SOAK,
    Fuzz(),
)
