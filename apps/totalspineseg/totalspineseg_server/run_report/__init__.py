"""Show a run on one HTML page: every scan with its pictures, what to check first, and a list to save."""

from totalspineseg_server.run_report.page import ScanRow, report_html

__all__ = ["ScanRow", "report_html"]
