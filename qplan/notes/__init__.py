"""What a reader must know, as codes with values: artifacts hold these, sentences are written where they are read.

A note is made with `note`, of a code that `qplan.notes.catalog` lists; there stand its fields and its English sentence.
Other languages keep their sentences, by the same codes, where they keep their other words.
"""

from qplan.notes.note import Note, few, note, text_note

__all__ = ["Note", "few", "note", "text_note"]
