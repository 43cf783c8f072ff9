"""Tables, figures and pages for people.

`qplan.report.page` makes the page and its Markdown, `qplan.report.figures` figures for notebooks. Nothing is imported
here: the command line imports `qplan.report.words` and must not wait for templates or figures.
"""
