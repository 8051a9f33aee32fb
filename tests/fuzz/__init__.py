"""Readers under fire: everything that reads a file, a packet or a command line, fed with damaged and hostile input.

target.py      what a reader is to a fuzzer: seeds, how to call it, what may come out
mutate.py      the byte-level engine: flips, splices, truncation, repetition, tokens of the format
documents.py   the structural engine: hypothesis edits real documents (delete, retype, rename, hostile values)
guard.py       one execution: no other exception, no hang, no gigabytes, one clear line
shots.py       both engines on one reader, so many times, from a seed
child.py       `python -m fuzz.child`: the same in a process of its own, which may hang or die
of_*.py        the readers, a file each
"""
