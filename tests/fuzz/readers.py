"""All readers."""

from __future__ import annotations

from fuzz import (
    of_arguments,
    of_daemon_state,
    of_grids,
    of_heartbeats,
    of_kernel,
    of_models,
    of_packets,
    of_queue,
    of_registrations,
    of_results,
    of_secrets,
    of_settings,
    of_transcripts,
    of_verdicts,
)
from fuzz.target import Target

READERS: tuple[type[Target], ...] = (
    of_grids.GridFile,
    *(of_arguments.Submit, of_arguments.Overnight, of_arguments.Watchdog),
    *(of_settings.Settings, of_settings.Budget, of_secrets.Secrets),
    *(of_transcripts.Transcript, of_transcripts.Resume, of_transcripts.Tail),
    *(of_results.CommandResult, of_results.CellResult, of_results.UserResult),
    *(of_registrations.Roster, of_registrations.Leftovers),
    *(of_heartbeats.Pressure, of_heartbeats.OwnPressure, of_heartbeats.Answer),
    *(of_verdicts.Eviction, of_verdicts.Ring),
    *(of_daemon_state.Beat, of_daemon_state.State, of_daemon_state.Locks, of_daemon_state.Pid),
    *(of_kernel.Eye, of_kernel.Daemon),
    *(of_models.Manifests, of_models.Config, of_models.Safetensors, of_models.Index, of_models.Gguf),
    of_packets.Packets,
    *(of_queue.File, of_queue.Values),
)
BY_NAME = {reader.name: reader for reader in READERS}
