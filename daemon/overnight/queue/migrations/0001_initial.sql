-- Grids, cells, attempts, events. A cell costs about 200 bytes with its indexes: what many cells share (the template
-- of their specification) is stored once, by its hash.

CREATE TABLE migrations (
    version INTEGER PRIMARY KEY,
    applied_at REAL NOT NULL
) STRICT;

CREATE TABLE grids (
    id INTEGER PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    spec TEXT NOT NULL,
    policy TEXT NOT NULL,
    created_at REAL NOT NULL,
    last_submitted_at REAL NOT NULL
) STRICT;

-- What a warm server has to load. Cells carry warm_id so that the next cell of a loaded model is one index lookup.
CREATE TABLE warms (
    id INTEGER PRIMARY KEY,
    key TEXT NOT NULL UNIQUE,
    json TEXT NOT NULL
) STRICT;

CREATE TABLE specs (
    id INTEGER PRIMARY KEY,
    hash TEXT NOT NULL UNIQUE,
    json TEXT NOT NULL,
    warm_id INTEGER NOT NULL REFERENCES warms (id),
    threads INTEGER NOT NULL
) STRICT;

-- generation: how often the cell was started afresh (reset, replaced). attempts: those of this generation.
-- not_before: unix seconds; 0 = ready, in the order of ids. run_ms: time its attempts took, of this generation.
-- stalled: interrupted attempts in a row without a new turn.
CREATE TABLE cells (
    id INTEGER PRIMARY KEY,
    grid_id INTEGER NOT NULL REFERENCES grids (id),
    spec_id INTEGER NOT NULL REFERENCES specs (id),
    warm_id INTEGER NOT NULL REFERENCES warms (id),
    key TEXT NOT NULL,
    coords TEXT NOT NULL,
    seed INTEGER NOT NULL,
    status TEXT NOT NULL DEFAULT 'pending'
        CHECK (status IN ('pending', 'running', 'done', 'failed', 'quarantined', 'cancelled')),
    not_before REAL NOT NULL DEFAULT 0,
    generation INTEGER NOT NULL DEFAULT 0,
    attempts INTEGER NOT NULL DEFAULT 0,
    tries_used INTEGER NOT NULL DEFAULT 0,
    stalled INTEGER NOT NULL DEFAULT 0,
    turns INTEGER NOT NULL DEFAULT 0,
    output_tokens INTEGER NOT NULL DEFAULT 0,
    run_ms INTEGER NOT NULL DEFAULT 0,
    cancel_requested INTEGER NOT NULL DEFAULT 0 CHECK (cancel_requested IN (0, 1)),
    accept_conditions INTEGER NOT NULL DEFAULT 0 CHECK (accept_conditions IN (0, 1)),
    reason_code TEXT NOT NULL DEFAULT '',
    reason TEXT NOT NULL DEFAULT '',
    end_reason TEXT,
    transcript_sha256 TEXT,
    started_at REAL,
    finished_at REAL,
    UNIQUE (grid_id, key)
) STRICT;

CREATE INDEX cells_by_status ON cells (grid_id, status);
CREATE INDEX cells_pending ON cells (warm_id, not_before) WHERE status = 'pending';
CREATE INDEX cells_running ON cells (id) WHERE status = 'running';
CREATE INDEX cells_to_cancel ON cells (id) WHERE cancel_requested = 1;

-- One row for each try. outcome NULL = under way.
CREATE TABLE attempts (
    id INTEGER PRIMARY KEY,
    cell_id INTEGER NOT NULL REFERENCES cells (id),
    generation INTEGER NOT NULL,
    number INTEGER NOT NULL,
    boot_id TEXT NOT NULL,
    daemon TEXT NOT NULL,
    pid INTEGER,
    start_ticks INTEGER,
    claimed_at REAL NOT NULL,
    started_at REAL,
    ended_at REAL,
    outcome TEXT CHECK (outcome IN ('completed', 'evicted', 'yielded', 'lost', 'over_cap', 'oom_killed', 'failed',
        'timed_out', 'corrupt', 'diverged', 'conditions_changed', 'cancelled')),
    reason_code TEXT NOT NULL DEFAULT '',
    reason TEXT NOT NULL DEFAULT '',
    evidence TEXT NOT NULL DEFAULT '{}',
    turns INTEGER,
    output_tokens INTEGER,
    end_reason TEXT,
    transcript_sha256 TEXT,
    load_s REAL,
    replay_s REAL,
    max_rss_bytes INTEGER,
    UNIQUE (cell_id, generation, number),
    CHECK ((outcome IS NULL) = (ended_at IS NULL))
) STRICT;

-- One running attempt a cell: the database itself refuses a second one.
CREATE UNIQUE INDEX attempts_open ON attempts (cell_id) WHERE outcome IS NULL;

-- What happened, in order. Every change of a cell's status has one row here, written in the same transaction.
CREATE TABLE events (
    id INTEGER PRIMARY KEY,
    at REAL NOT NULL,
    kind TEXT NOT NULL,
    grid_id INTEGER REFERENCES grids (id),
    cell_id INTEGER REFERENCES cells (id),
    attempt_id INTEGER REFERENCES attempts (id),
    old_status TEXT,
    new_status TEXT,
    detail TEXT NOT NULL DEFAULT '{}'
) STRICT;

CREATE INDEX events_by_cell ON events (cell_id) WHERE cell_id IS NOT NULL;

-- How many cells a grid has in each status and how long their attempts took, kept by the triggers below: a status
-- report reads six rows a grid, never the cells.
CREATE TABLE grid_counts (
    grid_id INTEGER NOT NULL REFERENCES grids (id),
    status TEXT NOT NULL,
    n INTEGER NOT NULL DEFAULT 0 CHECK (n >= 0),
    run_ms INTEGER NOT NULL DEFAULT 0 CHECK (run_ms >= 0),
    PRIMARY KEY (grid_id, status)
) STRICT, WITHOUT ROWID;

CREATE TRIGGER grids_inserted AFTER INSERT ON grids BEGIN
    INSERT INTO grid_counts (grid_id, status) VALUES
        (new.id, 'pending'), (new.id, 'running'), (new.id, 'done'),
        (new.id, 'failed'), (new.id, 'quarantined'), (new.id, 'cancelled');
END;

CREATE TRIGGER cells_inserted AFTER INSERT ON cells BEGIN
    UPDATE grid_counts SET n = n + 1, run_ms = run_ms + new.run_ms
    WHERE grid_id = new.grid_id AND status = new.status;
END;

CREATE TRIGGER cells_changed AFTER UPDATE OF status, run_ms, grid_id ON cells
WHEN new.status <> old.status OR new.run_ms <> old.run_ms OR new.grid_id <> old.grid_id BEGIN
    UPDATE grid_counts SET n = n - 1, run_ms = run_ms - old.run_ms
    WHERE grid_id = old.grid_id AND status = old.status;
    UPDATE grid_counts SET n = n + 1, run_ms = run_ms + new.run_ms
    WHERE grid_id = new.grid_id AND status = new.status;
END;

CREATE TRIGGER cells_deleted AFTER DELETE ON cells BEGIN
    UPDATE grid_counts SET n = n - 1, run_ms = run_ms - old.run_ms
    WHERE grid_id = old.grid_id AND status = old.status;
END;
