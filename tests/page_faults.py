"""Find with axe what keeps people from using a page."""

from playwright.sync_api import Page
from server_process import APP

AXE = APP / "npm" / "node_modules" / "axe-core" / "axe.min.js"


def faults(page: Page) -> list[str]:
    """Return the serious faults of the page that is shown."""
    # A script in the page would be against its policy.
    page.evaluate(AXE.read_text(encoding="utf-8"))
    found = page.evaluate("axe.run()")["violations"]
    return [
        f"{one['id']}: {node['html'][:200]}"
        for one in found
        if one["impact"] in ("serious", "critical")
        for node in one["nodes"]
    ]
