"""Makes a report from a suite's result file: tables, slopes, comparisons, figures; as Markdown, CSV and HTML."""
