"""What a run folder holds: every artifact's name, schema, record, reader and writer; imports numpy at most."""
