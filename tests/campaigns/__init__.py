"""Campaigns: the promises of docs/guarantees.md, tried many times. `make prove` runs them whole, tests a part of each.

A campaign is a list of rounds that follows from a seed. Each round makes what it needs in a folder of its own, breaks
something, and says what it counted and which promise did not hold. Its report, `var/prove/NAME.json`, is on disk after
every round: a campaign that is broken off goes on where it was.
"""
