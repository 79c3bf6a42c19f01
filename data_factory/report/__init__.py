"""What a run leaves for people: summary.json, the text on the terminal, report.html and report.json."""
