"""The side of the processes: what they pass, and what is to happen there. The other side is `helpers.fault_points`."""
