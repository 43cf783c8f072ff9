"""What a reader must know, as codes with values: artifacts hold these, sentences are written where they are read.

`note` makes a note from a code in `qplan.notes.catalog`, which holds its fields and its English sentence. Other
languages keep their sentences by the same codes, with the rest of their words.
"""

from qplan.notes.note import Note, few, note, text_note

__all__ = ["Note", "few", "note", "text_note"]
