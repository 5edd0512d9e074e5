"""Move a site's data: back up and restore it, export and import finished labels as BIDS data sets."""
