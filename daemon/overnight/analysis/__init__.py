"""Where conversations repeat themselves, how diverse they are: a step after the run, in a process of its own.

    conversation   one form for our transcripts and the older harness's files     standard library only
    tokens         the words of a text
    similarity     turns as vectors: `tfidf` or `embedding`                       numpy, scipy; torch when asked for
    collapse       spans of repetitive turns: `absolute`, `profile`
    metrics        diversity of a conversation, series over its turns
    analyze        all of it for one conversation: a record of JSON values
    store, jobs    what is kept of it, and the short-lived process that makes it

Only `conversation`, `collapse`'s records and `online` are light: nothing that lives long may import the others.
"""
