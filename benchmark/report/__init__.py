"""What a suite's result files say: tables, slopes, comparisons and figures, as Markdown, CSV and one HTML page."""
