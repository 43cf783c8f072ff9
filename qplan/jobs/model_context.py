"""How long a context the built model may have, before the model is loaded: what the exporter drops decides."""

from __future__ import annotations

from dataclasses import dataclass

from qplan.calibration import check_limits
from qplan.compat.settings import check_settings
from qplan.compat.table import CompatTable
from qplan.errors import InputError
from qplan.jobs.options import SEQ_LEN, AnalyzeOptions
from qplan.mnn.build.exporter_source import find_exporter
from qplan.model.model_settings import model_config, settings_of
from qplan.notes import Note, note


@dataclass(frozen=True)
class ModelContext:
    """The context that a model is planned and built with."""

    tokens: int
    notes: tuple[Note, ...]
    """What a reader must know about it."""


def check_context(options: AnalyzeOptions) -> ModelContext:
    """Hold a model's config against what the exporter gets right, and sequences against its context.

    Raises:
        InputError: the exporter would drop a setting within the context, ``--max-context`` is above the model's, or
            ``--seq-len`` above both.
    """
    config = model_config(options.model)
    own = config.max_position_embeddings
    limit = options.max_context
    if limit is not None and limit > own:
        msg = f"--max-context {limit} is above the model's own context of {own} tokens; lower it or leave it out"
        raise InputError(msg)
    context = own if limit is None else limit
    exporter = find_exporter(options.llmexport).version
    found = check_settings(CompatTable.read(), config.model_type, settings_of(config), context, exporter)
    seq_len = options.sequence(context)
    check_limits(options.samples, seq_len, context)
    limited = [note("context-limited", tokens=context, own_tokens=own)] if context < own else []
    if options.seq_len is None and seq_len < SEQ_LEN:
        limited.append(note("sequences-shortened", tokens=seq_len, usual_tokens=SEQ_LEN))
    return ModelContext(context, (*limited, *found))
