"""What a sprint leaves for people to read: report.html, report.md and figures."""
