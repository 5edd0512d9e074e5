"""One HTML page for a run: every scan with its sheet, what to look at first, and a list to take along."""

from totalspineseg_server.run_report.page import ScanRow, report_html

__all__ = ["ScanRow", "report_html"]
