-- A queue as the program of schema version 1 left it: two grids, cells in every status, one attempt of each outcome.
BEGIN TRANSACTION;
PRAGMA application_id = 1330532692;
PRAGMA user_version = 1;
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
INSERT INTO "attempts" VALUES(1,1,0,1,'boot','d1',4001,901,1700000000.0,1700000001.0,1700000006.0,'completed','code_completed','it was completed','{"exit":0}',2,50,NULL,NULL,0.5,0.25,268435456);
INSERT INTO "attempts" VALUES(2,2,0,1,'boot','d1',4002,902,1700000006.0,1700000007.0,1700000012.0,'evicted','code_evicted','it was evicted','{"exit":0}',2,50,NULL,NULL,0.5,0.25,268435456);
INSERT INTO "attempts" VALUES(3,2,0,2,'boot','d1',4002,902,1700000012.0,1700000013.0,1700000018.0,'yielded','code_yielded','it was yielded','{"exit":0}',2,50,NULL,NULL,0.5,0.25,268435456);
INSERT INTO "attempts" VALUES(4,3,0,1,'boot','d1',4003,903,1700000018.0,1700000019.0,1700000024.0,'lost','code_lost','it was lost','{"exit":0}',2,50,NULL,NULL,0.5,0.25,268435456);
INSERT INTO "attempts" VALUES(5,4,0,1,'boot','d1',4004,904,1700000024.0,1700000025.0,1700000030.0,'over_cap','code_over_cap','it was over_cap','{"exit":0}',2,50,NULL,NULL,0.5,0.25,268435456);
INSERT INTO "attempts" VALUES(6,5,0,1,'boot','d1',4005,905,1700000030.0,1700000031.0,1700000036.0,'oom_killed','code_oom_killed','it was oom_killed','{"exit":0}',2,50,NULL,NULL,0.5,0.25,268435456);
INSERT INTO "attempts" VALUES(7,6,0,1,'boot','d1',4006,906,1700000036.0,1700000037.0,1700000042.0,'failed','code_failed','it was failed','{"exit":0}',2,50,NULL,NULL,0.5,0.25,268435456);
INSERT INTO "attempts" VALUES(8,7,0,1,'boot','d1',4007,907,1700000042.0,1700000043.0,1700000048.0,'timed_out','code_timed_out','it was timed_out','{"exit":0}',2,50,NULL,NULL,0.5,0.25,268435456);
INSERT INTO "attempts" VALUES(9,8,0,1,'boot','d1',4008,908,1700000048.0,1700000049.0,1700000054.0,'corrupt','code_corrupt','it was corrupt','{"exit":0}',2,50,NULL,NULL,0.5,0.25,268435456);
INSERT INTO "attempts" VALUES(10,9,0,1,'boot','d1',4009,909,1700000054.0,1700000055.0,1700000060.0,'diverged','code_diverged','it was diverged','{"exit":0}',2,50,NULL,NULL,0.5,0.25,268435456);
INSERT INTO "attempts" VALUES(11,10,0,1,'boot','d1',4010,910,1700000060.0,1700000061.0,1700000066.0,'conditions_changed','code_conditions_changed','it was conditions_changed','{"exit":0}',2,50,NULL,NULL,0.5,0.25,268435456);
INSERT INTO "attempts" VALUES(12,11,0,1,'boot','d1',4011,911,1700000066.0,1700000067.0,1700000072.0,'cancelled','code_cancelled','it was cancelled','{"exit":0}',2,50,NULL,NULL,0.5,0.25,268435456);
INSERT INTO "attempts" VALUES(13,8,0,2,'boot','d1',NULL,NULL,1700000072.0,NULL,NULL,NULL,'','','{}',NULL,NULL,NULL,NULL,NULL,NULL,NULL);
INSERT INTO "attempts" VALUES(14,17,0,1,'boot','d1',NULL,NULL,1700000072.0,NULL,1700000074.0,'failed','exit_status','it ended with 1','{}',NULL,NULL,NULL,NULL,NULL,NULL,NULL);
INSERT INTO "attempts" VALUES(15,12,0,1,'boot','d1',NULL,NULL,1700000104.0,NULL,NULL,NULL,'','','{}',NULL,NULL,NULL,NULL,NULL,NULL,NULL);
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
INSERT INTO "cells" VALUES(1,1,1,1,'baseline_135m_run1','{"model":"135m","run":1,"scaffold":"baseline"}',1,'done',0.0,0,1,0,0,2,50,6000,0,0,'code_completed','it was completed',NULL,NULL,1700000000.0,1700000006.0);
INSERT INTO "cells" VALUES(2,1,1,1,'baseline_135m_run2','{"model":"135m","run":2,"scaffold":"baseline"}',2,'pending',1700000618.0,0,2,0,1,2,50,12000,0,0,'code_yielded','it was yielded',NULL,NULL,1700000006.0,NULL);
INSERT INTO "cells" VALUES(3,1,1,1,'baseline_135m_run3','{"model":"135m","run":3,"scaffold":"baseline"}',3,'pending',1700000624.0,0,1,0,0,2,50,6000,0,0,'code_lost','it was lost',NULL,NULL,1700000018.0,NULL);
INSERT INTO "cells" VALUES(4,1,1,1,'baseline_135m_run4','{"model":"135m","run":4,"scaffold":"baseline"}',4,'pending',1700000630.0,0,1,0,0,2,50,6000,0,0,'code_over_cap','it was over_cap',NULL,NULL,1700000024.0,NULL);
INSERT INTO "cells" VALUES(5,1,1,1,'baseline_135m_run5','{"model":"135m","run":5,"scaffold":"baseline"}',5,'pending',1700000636.0,0,1,0,0,2,50,6000,0,0,'code_oom_killed','it was oom_killed',NULL,NULL,1700000030.0,NULL);
INSERT INTO "cells" VALUES(6,1,1,1,'baseline_135m_run6','{"model":"135m","run":6,"scaffold":"baseline"}',6,'pending',1700000642.0,0,1,1,0,2,50,6000,0,0,'code_failed','it was failed',NULL,NULL,1700000036.0,NULL);
INSERT INTO "cells" VALUES(7,1,1,1,'baseline_135m_run7','{"model":"135m","run":7,"scaffold":"baseline"}',7,'pending',1700000648.0,0,1,1,0,2,50,6000,0,0,'code_timed_out','it was timed_out',NULL,NULL,1700000042.0,NULL);
INSERT INTO "cells" VALUES(8,1,1,1,'baseline_135m_run8','{"model":"135m","run":8,"scaffold":"baseline"}',8,'running',0.0,0,2,0,0,2,50,6000,1,0,'','',NULL,NULL,1700000048.0,NULL);
INSERT INTO "cells" VALUES(9,1,1,1,'baseline_135m_run9','{"model":"135m","run":9,"scaffold":"baseline"}',9,'quarantined',0.0,0,1,0,0,2,50,6000,0,0,'code_diverged','it was diverged',NULL,NULL,1700000054.0,1700000060.0);
INSERT INTO "cells" VALUES(10,1,1,1,'baseline_135m_run10','{"model":"135m","run":10,"scaffold":"baseline"}',10,'quarantined',0.0,0,1,0,0,2,50,6000,0,0,'code_conditions_changed','it was conditions_changed',NULL,NULL,1700000060.0,1700000066.0);
INSERT INTO "cells" VALUES(11,1,1,1,'baseline_135m_run11','{"model":"135m","run":11,"scaffold":"baseline"}',11,'cancelled',0.0,0,1,0,0,2,50,6000,0,0,'code_cancelled','it was cancelled',NULL,NULL,1700000066.0,1700000072.0);
INSERT INTO "cells" VALUES(12,1,1,1,'baseline_135m_run12','{"model":"135m","run":12,"scaffold":"baseline"}',12,'running',0.0,0,1,0,0,0,0,0,0,0,'','',NULL,NULL,1700000104.0,NULL);
INSERT INTO "cells" VALUES(13,1,1,1,'baseline_135m_run13','{"model":"135m","run":13,"scaffold":"baseline"}',13,'pending',0.0,0,0,0,0,0,0,0,0,0,'','',NULL,NULL,NULL,NULL);
INSERT INTO "cells" VALUES(14,1,1,1,'baseline_135m_run14','{"model":"135m","run":14,"scaffold":"baseline"}',14,'pending',0.0,0,0,0,0,0,0,0,0,0,'','',NULL,NULL,NULL,NULL);
INSERT INTO "cells" VALUES(15,1,1,1,'baseline_135m_run15','{"model":"135m","run":15,"scaffold":"baseline"}',15,'pending',0.0,0,0,0,0,0,0,0,0,0,'','',NULL,NULL,NULL,NULL);
INSERT INTO "cells" VALUES(16,2,2,2,'baseline_360m_run1','{"model":"360m","run":1,"scaffold":"baseline"}',1000001,'pending',0.0,1,0,0,0,0,0,0,0,0,'','',NULL,NULL,NULL,NULL);
INSERT INTO "cells" VALUES(17,2,2,2,'baseline_360m_run2','{"model":"360m","run":2,"scaffold":"baseline"}',2,'failed',0.0,0,1,1,0,0,0,2000,0,0,'exit_status','it ended with 1',NULL,NULL,1700000072.0,1700000074.0);
INSERT INTO "cells" VALUES(18,2,2,2,'baseline_360m_run3','{"model":"360m","run":3,"scaffold":"baseline"}',3,'cancelled',0.0,0,0,0,0,0,0,0,0,0,'','',NULL,NULL,NULL,1700000072.0);
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
INSERT INTO "events" VALUES(1,1700000000.0,'grid_enqueued',1,NULL,NULL,NULL,NULL,'{"added":15,"existing":0,"replaced":0}');
INSERT INTO "events" VALUES(2,1700000000.0,'grid_enqueued',2,NULL,NULL,NULL,NULL,'{"added":3,"existing":0,"replaced":0}');
INSERT INTO "events" VALUES(3,1700000000.0,'claimed',1,1,1,'pending','running','{}');
INSERT INTO "events" VALUES(4,1700000006.0,'finished',1,1,1,'running','done','{"outcome":"completed","reason_code":"code_completed"}');
INSERT INTO "events" VALUES(5,1700000006.0,'claimed',1,2,2,'pending','running','{}');
INSERT INTO "events" VALUES(6,1700000012.0,'finished',1,2,2,'running','pending','{"outcome":"evicted","reason_code":"code_evicted"}');
INSERT INTO "events" VALUES(7,1700000012.0,'claimed',1,2,3,'pending','running','{}');
INSERT INTO "events" VALUES(8,1700000018.0,'finished',1,2,3,'running','pending','{"outcome":"yielded","reason_code":"code_yielded"}');
INSERT INTO "events" VALUES(9,1700000018.0,'claimed',1,3,4,'pending','running','{}');
INSERT INTO "events" VALUES(10,1700000024.0,'finished',1,3,4,'running','pending','{"outcome":"lost","reason_code":"code_lost"}');
INSERT INTO "events" VALUES(11,1700000024.0,'claimed',1,4,5,'pending','running','{}');
INSERT INTO "events" VALUES(12,1700000030.0,'finished',1,4,5,'running','pending','{"outcome":"over_cap","reason_code":"code_over_cap"}');
INSERT INTO "events" VALUES(13,1700000030.0,'claimed',1,5,6,'pending','running','{}');
INSERT INTO "events" VALUES(14,1700000036.0,'finished',1,5,6,'running','pending','{"outcome":"oom_killed","reason_code":"code_oom_killed"}');
INSERT INTO "events" VALUES(15,1700000036.0,'claimed',1,6,7,'pending','running','{}');
INSERT INTO "events" VALUES(16,1700000042.0,'finished',1,6,7,'running','pending','{"outcome":"failed","reason_code":"code_failed"}');
INSERT INTO "events" VALUES(17,1700000042.0,'claimed',1,7,8,'pending','running','{}');
INSERT INTO "events" VALUES(18,1700000048.0,'finished',1,7,8,'running','pending','{"outcome":"timed_out","reason_code":"code_timed_out"}');
INSERT INTO "events" VALUES(19,1700000048.0,'claimed',1,8,9,'pending','running','{}');
INSERT INTO "events" VALUES(20,1700000054.0,'finished',1,8,9,'running','quarantined','{"outcome":"corrupt","reason_code":"code_corrupt"}');
INSERT INTO "events" VALUES(21,1700000054.0,'claimed',1,9,10,'pending','running','{}');
INSERT INTO "events" VALUES(22,1700000060.0,'finished',1,9,10,'running','quarantined','{"outcome":"diverged","reason_code":"code_diverged"}');
INSERT INTO "events" VALUES(23,1700000060.0,'claimed',1,10,11,'pending','running','{}');
INSERT INTO "events" VALUES(24,1700000066.0,'finished',1,10,11,'running','quarantined','{"outcome":"conditions_changed","reason_code":"code_conditions_changed"}');
INSERT INTO "events" VALUES(25,1700000066.0,'claimed',1,11,12,'pending','running','{}');
INSERT INTO "events" VALUES(26,1700000072.0,'finished',1,11,12,'running','cancelled','{"outcome":"cancelled","reason_code":"code_cancelled"}');
INSERT INTO "events" VALUES(27,1700000072.0,'retried',1,8,NULL,'quarantined','pending','{}');
INSERT INTO "events" VALUES(28,1700000072.0,'claimed',1,8,13,'pending','running','{}');
INSERT INTO "events" VALUES(29,1700000072.0,'cancelled',2,18,NULL,'pending','cancelled','{}');
INSERT INTO "events" VALUES(30,1700000072.0,'grid_enqueued',2,NULL,NULL,NULL,NULL,'{"added":0,"existing":3,"replaced":0}');
INSERT INTO "events" VALUES(31,1700000072.0,'cancelled',2,16,NULL,'pending','cancelled','{}');
INSERT INTO "events" VALUES(32,1700000072.0,'claimed',2,17,14,'pending','running','{}');
INSERT INTO "events" VALUES(33,1700000074.0,'finished',2,17,14,'running','failed','{"outcome":"failed","reason_code":"exit_status"}');
INSERT INTO "events" VALUES(34,1700000074.0,'retried',2,16,NULL,'cancelled','pending','{}');
INSERT INTO "events" VALUES(35,1700000074.0,'replaced',2,16,NULL,'pending','pending','{}');
INSERT INTO "events" VALUES(36,1700000074.0,'grid_enqueued',2,NULL,NULL,NULL,NULL,'{"added":0,"existing":0,"replaced":1}');
INSERT INTO "events" VALUES(37,1700000104.0,'claimed',1,12,15,'pending','running','{}');
INSERT INTO "events" VALUES(38,1700000104.0,'cancel_requested',1,8,NULL,NULL,NULL,'{}');
CREATE TABLE grid_counts (
    grid_id INTEGER NOT NULL REFERENCES grids (id),
    status TEXT NOT NULL,
    n INTEGER NOT NULL DEFAULT 0 CHECK (n >= 0),
    run_ms INTEGER NOT NULL DEFAULT 0 CHECK (run_ms >= 0),
    PRIMARY KEY (grid_id, status)
) STRICT, WITHOUT ROWID;
INSERT INTO "grid_counts" VALUES(1,'cancelled',1,6000);
INSERT INTO "grid_counts" VALUES(1,'done',1,6000);
INSERT INTO "grid_counts" VALUES(1,'failed',0,0);
INSERT INTO "grid_counts" VALUES(1,'pending',9,42000);
INSERT INTO "grid_counts" VALUES(1,'quarantined',2,12000);
INSERT INTO "grid_counts" VALUES(1,'running',2,6000);
INSERT INTO "grid_counts" VALUES(2,'cancelled',1,0);
INSERT INTO "grid_counts" VALUES(2,'done',0,0);
INSERT INTO "grid_counts" VALUES(2,'failed',1,2000);
INSERT INTO "grid_counts" VALUES(2,'pending',1,0);
INSERT INTO "grid_counts" VALUES(2,'quarantined',0,0);
INSERT INTO "grid_counts" VALUES(2,'running',0,0);
CREATE TABLE grids (
    id INTEGER PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    spec TEXT NOT NULL,
    policy TEXT NOT NULL,
    created_at REAL NOT NULL,
    last_submitted_at REAL NOT NULL
) STRICT;
INSERT INTO "grids" VALUES(1,'night','{"name":"night"}','{"tries":3}',1700000000.0,1700000000.0);
INSERT INTO "grids" VALUES(2,'day','{"name":"day"}','{"tries":2}',1700000000.0,1700000074.0);
CREATE TABLE migrations (
    version INTEGER PRIMARY KEY,
    applied_at REAL NOT NULL
) STRICT;
INSERT INTO "migrations" VALUES(1,1700000000.0);
CREATE TABLE specs (
    id INTEGER PRIMARY KEY,
    hash TEXT NOT NULL UNIQUE,
    json TEXT NOT NULL,
    warm_id INTEGER NOT NULL REFERENCES warms (id),
    threads INTEGER NOT NULL
) STRICT;
INSERT INTO "specs" VALUES(1,'49c38c363cdc26d277708963ccd490d429ece7a917d2fe5fb0540259020ed64b','{"engine":"scripted","kind":"idle_loop","model":{"device":"cpu","dtype":"float32","name":"135m","options":{},"source":"135m"},"sampling":{"temperature":0.8,"top_k":0,"top_p":1.0},"system":"You have nothing to do.","threads":1,"v":1}',1,1);
INSERT INTO "specs" VALUES(2,'16014fae29593b4337fa616094cb1724ba6424eeef7631f6b0f6090ef64c78a0','{"engine":"scripted","kind":"idle_loop","model":{"device":"cpu","dtype":"float32","name":"360m","options":{},"source":"360m"},"sampling":{"temperature":0.8,"top_k":0,"top_p":1.0},"system":"You have nothing to do.","threads":1,"v":1}',2,1);
CREATE TABLE warms (
    id INTEGER PRIMARY KEY,
    key TEXT NOT NULL UNIQUE,
    json TEXT NOT NULL
) STRICT;
INSERT INTO "warms" VALUES(1,'c71b6cfb7c6543bf','{"device":"cpu","dtype":"float32","engine":"scripted","options":{},"source":"135m"}');
INSERT INTO "warms" VALUES(2,'175177972da86582','{"device":"cpu","dtype":"float32","engine":"scripted","options":{},"source":"360m"}');
CREATE INDEX cells_by_status ON cells (grid_id, status);
CREATE INDEX cells_pending ON cells (warm_id, not_before) WHERE status = 'pending';
CREATE INDEX cells_running ON cells (id) WHERE status = 'running';
CREATE INDEX cells_to_cancel ON cells (id) WHERE cancel_requested = 1;
CREATE UNIQUE INDEX attempts_open ON attempts (cell_id) WHERE outcome IS NULL;
CREATE INDEX events_by_cell ON events (cell_id) WHERE cell_id IS NOT NULL;
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
COMMIT;
