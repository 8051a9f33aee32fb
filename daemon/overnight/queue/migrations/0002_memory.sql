-- What a cell's attempts may take of memory, what they took, and the peaks that later claims are learned from.

-- claim_bytes: raised after it met its cap or was killed for memory; NULL = as predicted. evictions: in a row, without
-- a new turn. alone: it runs only while nothing else does.
ALTER TABLE cells ADD COLUMN claim_bytes INTEGER;
ALTER TABLE cells ADD COLUMN evictions INTEGER NOT NULL DEFAULT 0;
ALTER TABLE cells ADD COLUMN alone INTEGER NOT NULL DEFAULT 0 CHECK (alone IN (0, 1));

-- claim_source: what the claim was taken from (learned, hint, ...). Bytes beyond the warm server; NULL = not known.
ALTER TABLE attempts ADD COLUMN claim_bytes INTEGER;
ALTER TABLE attempts ADD COLUMN claim_source TEXT NOT NULL DEFAULT '';
ALTER TABLE attempts ADD COLUMN cap_bytes INTEGER;
ALTER TABLE attempts ADD COLUMN peak_bytes INTEGER;

-- The newest peaks of each kind of cell (families are kinds that are alike). whole: its attempt came to its end, so it
-- would not have taken more.
CREATE TABLE peaks (
    id INTEGER PRIMARY KEY,
    kind TEXT NOT NULL,
    family TEXT NOT NULL,
    attempt_id INTEGER NOT NULL REFERENCES attempts (id),
    at REAL NOT NULL,
    peak_bytes INTEGER NOT NULL,
    whole INTEGER NOT NULL CHECK (whole IN (0, 1))
) STRICT;

CREATE INDEX peaks_by_kind ON peaks (kind, id);
CREATE INDEX peaks_by_family ON peaks (family, id);
