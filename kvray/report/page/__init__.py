"""A report's blocks as one HTML page that needs nothing else: templates, style, scripts, fonts, the answers."""
