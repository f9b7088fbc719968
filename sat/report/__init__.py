"""Run directories, or one file of kept runs, as tables, verdicts, figures and pages.

Reads plain data alone: no torch for tables, and no class of a run's config is ever imported.
"""
